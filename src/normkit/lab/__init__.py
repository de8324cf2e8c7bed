"""The lab: published claims about normalization as experiments that anyone reruns."""

from __future__ import annotations
