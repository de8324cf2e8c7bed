"""Images with classes: scikit-learn's digits, MNIST, CIFAR-10, or a folder of the user's own."""

from __future__ import annotations

from normkit.lab.data.images import Data
from normkit.lab.data.loading import NAMES, load

__all__ = ["NAMES", "Data", "load"]
