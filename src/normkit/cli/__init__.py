"""The command `normkit`: parses, calls :mod:`normkit.models`, prints."""

from __future__ import annotations

from normkit.cli.entry import main

__all__ = ["main"]
