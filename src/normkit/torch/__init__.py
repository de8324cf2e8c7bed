"""PyTorch layers and functions: torch.nn's names and signatures on normkit's kernels."""

from __future__ import annotations

from normkit.torch import beyond, functional
from normkit.torch.acceleration import accelerate
from normkit.torch.distributed import name_layers
from normkit.torch.domains import (
    AdaptiveBatchNorm1d,
    AdaptiveBatchNorm2d,
    AdaptiveBatchNorm3d,
    SplitBatchNorm1d,
    SplitBatchNorm2d,
    SplitBatchNorm3d,
)
from normkit.torch.freezing import freeze, unfreeze
from normkit.torch.layers import *  # noqa: F403 - every layer is public
from normkit.torch.layers import __all__ as _layers
from normkit.torch.lean import lean_memory
from normkit.torch.merging import sync_statistics
from normkit.torch.native import use_native_up_to
from normkit.torch.normact import NormAct
from normkit.torch.options import RenormSchedule
from normkit.torch.scaling import InputScaling
from normkit.torch.statistics import (
    HeldStatistics,
    RunningStatistics,
    commit,
    hold_statistics,
    rollback,
)

__all__ = [
    "AdaptiveBatchNorm1d",
    "AdaptiveBatchNorm2d",
    "AdaptiveBatchNorm3d",
    "HeldStatistics",
    "InputScaling",
    "NormAct",
    "RenormSchedule",
    "RunningStatistics",
    "SplitBatchNorm1d",
    "SplitBatchNorm2d",
    "SplitBatchNorm3d",
    "accelerate",
    "beyond",
    "commit",
    "freeze",
    "functional",
    "hold_statistics",
    "lean_memory",
    "name_layers",
    "rollback",
    "sync_statistics",
    "unfreeze",
    "use_native_up_to",
    *_layers,
]
