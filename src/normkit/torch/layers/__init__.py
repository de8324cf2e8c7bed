"""torch.nn's norm layers on normkit's kernels, with options that torch.nn's do not have.

Subclasses of torch.nn's own: constructor, parameters, buffers, ``state_dict`` and ``repr`` are
inherited, and ``isinstance`` checks hold. Small inputs and tensors on other devices go to
torch.nn's own forward, which is as quick there.
"""

from normkit.torch.layers.batch import (
    BatchNorm1d,
    BatchNorm2d,
    BatchNorm3d,
    LazyBatchNorm1d,
    LazyBatchNorm2d,
    LazyBatchNorm3d,
)
from normkit.torch.layers.instance import (
    InstanceNorm1d,
    InstanceNorm2d,
    InstanceNorm3d,
    LazyInstanceNorm1d,
    LazyInstanceNorm2d,
    LazyInstanceNorm3d,
)
from normkit.torch.layers.sample import GroupNorm, LayerNorm, RMSNorm
from normkit.torch.layers.sync import SyncBatchNorm

__all__ = [
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "GroupNorm",
    "InstanceNorm1d",
    "InstanceNorm2d",
    "InstanceNorm3d",
    "LayerNorm",
    "LazyBatchNorm1d",
    "LazyBatchNorm2d",
    "LazyBatchNorm3d",
    "LazyInstanceNorm1d",
    "LazyInstanceNorm2d",
    "LazyInstanceNorm3d",
    "RMSNorm",
    "SyncBatchNorm",
]
