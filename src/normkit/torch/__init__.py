"""PyTorch layers and functions: torch.nn's names and signatures on normkit's kernels."""

from __future__ import annotations

from normkit.torch import functional
from normkit.torch.layers import BatchNorm1d, BatchNorm2d

__all__ = ["BatchNorm1d", "BatchNorm2d", "functional"]
