"""What goes into the tools: models and data, from objects, files or code.

Files are data. Nothing in them is run, nothing about them is changed.
"""

from __future__ import annotations

from normkit.models.opening.data import open_data
from normkit.models.opening.model import Opened, open_model

__all__ = ["Opened", "open_data", "open_model"]
