"""PyTorch layers and functions: torch.nn's names and signatures on normkit's kernels."""

from __future__ import annotations

from normkit.torch import functional
from normkit.torch.layers import BatchNorm1d, BatchNorm2d
from normkit.torch.native import use_native_up_to

__all__ = ["BatchNorm1d", "BatchNorm2d", "functional", "use_native_up_to"]
