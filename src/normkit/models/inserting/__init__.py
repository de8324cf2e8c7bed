"""Batch norm put into a network that goes on computing the same, and taken out again."""

from normkit.models.inserting.adding import insert
from normkit.models.inserting.removing import remove

__all__ = ["insert", "remove"]
