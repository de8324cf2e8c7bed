"""Rules about what a model does when it runs on data."""

from __future__ import annotations
