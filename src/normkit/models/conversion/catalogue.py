"""The layers that conversions choose from, and what converted ones remember."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import nn

from normkit.torch import layers
from normkit.torch.beyond import FilterResponseNorm

__all__ = [
    "BATCH",
    "GROUP",
    "INSTANCE",
    "LIBRARIES",
    "NORMKIT_OF",
    "SYNC",
    "TORCH_OF",
    "Origin",
    "RefusedError",
    "library_of",
]

#: Who makes a layer: torch.nn or normkit.torch.
LIBRARIES = ("torch", "normkit")

#: By library and spatial dimensions.
BATCH: dict[str, dict[int, type]] = {
    "torch": {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d},
    "normkit": {1: layers.BatchNorm1d, 2: layers.BatchNorm2d, 3: layers.BatchNorm3d},
}
INSTANCE: dict[str, dict[int, type]] = {
    "torch": {1: nn.InstanceNorm1d, 2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d},
    "normkit": {1: layers.InstanceNorm1d, 2: layers.InstanceNorm2d, 3: layers.InstanceNorm3d},
}
SYNC: dict[str, type] = {"torch": nn.SyncBatchNorm, "normkit": layers.SyncBatchNorm}
GROUP: dict[str, type] = {"torch": nn.GroupNorm, "normkit": layers.GroupNorm}

#: Exactly these classes: a subclass may have a forward of its own.
NORMKIT_OF: dict[type, type] = {
    getattr(nn, name): getattr(layers, name)
    for name in layers.__all__
    if hasattr(nn, name) and not name.startswith("Lazy")
}
TORCH_OF: dict[type, type] = {ours: theirs for theirs, ours in NORMKIT_OF.items()}


def library_of(module: nn.Module) -> str:
    """Who made a layer; a user's own counts as torch.nn's."""
    ours = type(module) in TORCH_OF or isinstance(module, FilterResponseNorm)
    return "normkit" if ours else "torch"


@dataclass(frozen=True)
class Origin:
    """What a layer was before its first conversion.

    Args:
        dims: spatial dimensions of a batch norm, which a synchronized one does not tell.
        library: whose layers it is made of where both have the kind.
        momentum: of its running statistics; None for a cumulative average.
        frozen: the class of a user's own batch norm with fixed statistics.
        attributes, buffers: what that class had beside its tensors; its buffers' names, each with
            whether it held a tensor.
    """

    dims: int | None
    library: str
    momentum: float | None = 0.1
    frozen: type[nn.Module] | None = None
    attributes: dict[str, Any] = field(default_factory=dict)
    buffers: dict[str, bool] = field(default_factory=dict)


class RefusedError(Exception):
    """A layer cannot become what was asked for; its text says why, ``remedy`` what would do."""

    def __init__(self, reason: str, remedy: str) -> None:
        super().__init__(reason)
        self.remedy = remedy
