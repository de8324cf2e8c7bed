"""PyTorch layers and functions: torch.nn's names and signatures on normkit's kernels."""

from __future__ import annotations

from normkit.torch import functional
from normkit.torch.layers import *  # noqa: F403 - every layer is public
from normkit.torch.layers import __all__ as _layers
from normkit.torch.native import use_native_up_to
from normkit.torch.options import RenormSchedule
from normkit.torch.statistics import (
    HeldStatistics,
    RunningStatistics,
    commit,
    hold_statistics,
    rollback,
)

__all__ = [
    "HeldStatistics",
    "RenormSchedule",
    "RunningStatistics",
    "commit",
    "functional",
    "hold_statistics",
    "rollback",
    "use_native_up_to",
    *_layers,
]
