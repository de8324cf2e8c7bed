"""Rules about running statistics and the data that they should describe."""

from __future__ import annotations
