"""How normalization works, for people who learn by looking: a page, and numbers in the terminal."""

from __future__ import annotations

from normkit.explain.values import Values, values

__all__ = ["Values", "values"]
