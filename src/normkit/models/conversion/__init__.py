"""Norms of a model turned into another kind, and back where the mathematics allows it."""

from normkit.models.conversion.converting import convert
from normkit.models.conversion.targets import TARGETS

__all__ = ["TARGETS", "convert"]
