"""A normalization in a model as one value, and the layers of a model recognised by structure.

A layer counts as a norm for what it has, not for where it was imported from: running statistics and
an eps make a batch norm, whether torch.nn, normkit, timm, apex, detectron2 or the user wrote it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

__all__ = ["KINDS", "NormSite", "find_sites", "site_of"]

Tensor = torch.Tensor

#: Which set a norm's statistics belong to; "other" for norms without one (FRN, GRN, EvoNorm, ...).
KINDS = ("batch", "instance", "group", "layer", "rms", "other")


@dataclass(frozen=True, eq=False)
class NormSite:
    """One normalization, wherever its model came from. What is not known is None.

    Args:
        name: the layer's path in the model, or its node's name in a graph.
        kind: one of :data:`KINDS`.
        type_name: what the model calls it: a class, an operator.
        channels: elements of gamma, or of the running statistics.
        gamma, beta: as stored; None where the norm has none.
        mean, var: running statistics as stored: (C,), or (D, C) for D domains.
        eps: added to the variance.
        momentum: the weight of the new batch, PyTorch's convention. None for unknown, and for a
            cumulative average (``cumulative``).
        cumulative: each batch weighs the same.
        batches: batches that the running statistics have seen.
        groups: of a group norm.
        training: whether it is in training mode.
        tracks: whether it has running statistics to normalize with in eval mode.
        frozen: whether it uses its running statistics in training too, and does not move them.
        synced: whether its statistics are taken over all ranks.
        learns: whether gamma or beta takes a gradient.
        dims: spatial dimensions that its type asks for (BatchNorm2d: 2); None where any serve.
        module: the layer itself, in a model that has layers.
    """

    name: str
    kind: str
    type_name: str
    channels: int | None = None
    gamma: Tensor | None = None
    beta: Tensor | None = None
    mean: Tensor | None = None
    var: Tensor | None = None
    eps: float | None = None
    momentum: float | None = None
    cumulative: bool = False
    batches: int | None = None
    groups: int | None = None
    training: bool = False
    tracks: bool = False
    frozen: bool = False
    synced: bool = False
    learns: bool | None = None
    dims: int | None = None
    module: Any = field(default=None, repr=False)

    @property
    def uses_batch(self) -> bool:
        """Whether it normalizes with statistics of the batch at hand, as the model stands now."""
        return self.kind == "batch" and (not self.tracks or (self.training and not self.frozen))


def find_sites(model: nn.Module) -> list[NormSite]:
    """The model's norms in the order of its modules; a shared layer once, by its first name.

    >>> net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.LayerNorm(8))
    >>> [(s.name, s.kind, s.channels) for s in find_sites(net)]
    [('1', 'batch', 8), ('3', 'layer', 8)]
    """
    return list(_sites(model))


def _sites(model: nn.Module) -> Iterator[NormSite]:
    for name, module in model.named_modules():
        site = site_of(name, module)
        if site is not None:
            yield site


def site_of(name: str, module: nn.Module) -> NormSite | None:
    """What a layer is as a norm; None if it is none, or does not know its channels yet."""
    kind = _kind(module)
    if kind is None:
        return None
    gamma, beta = _tensor(module, "weight"), _tensor(module, "bias")
    mean, var = _tensor(module, "running_mean"), _tensor(module, "running_var")
    if any(t is not None and is_lazy(t) for t in (gamma, beta, mean, var)):
        return None
    statistics = kind in ("batch", "instance")
    tracks = statistics and mean is not None and var is not None
    return NormSite(
        name=name,
        kind=kind,
        type_name=type(module).__name__,
        channels=_channels(module, gamma, var),
        gamma=gamma,
        beta=beta,
        mean=mean if statistics else None,
        var=var if statistics else None,
        eps=_eps(module),
        momentum=_number(getattr(module, "momentum", None)) if statistics else None,
        cumulative=tracks and getattr(module, "momentum", 0.0) is None and kind == "batch",
        batches=_whole(_tensor(module, "num_batches_tracked")),
        groups=_count(getattr(module, "num_groups", None)) if kind == "group" else None,
        training=module.training,
        tracks=tracks,
        frozen=tracks and _is_frozen(module),
        synced="Sync" in type(module).__name__,
        learns=_learns(module),
        dims=_dims(module),
        module=module,
    )


def _kind(module: nn.Module) -> str | None:
    """By the family's base class where there is one, else by what the layer has."""
    word = type(module).__name__.lower()
    if isinstance(module, nn.modules.instancenorm._InstanceNorm):
        return "instance"
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        return "batch"
    if isinstance(module, nn.RMSNorm):
        return "rms"
    if isinstance(module, nn.LayerNorm):
        return "layer"
    if isinstance(module, nn.GroupNorm):
        return "group"
    if any(True for _ in module.children()) and not _has_own_statistics(module):
        return None  # a container with a norm's name
    if _has_own_statistics(module):
        return "instance" if "instance" in word else "batch"
    if _eps(module) is None:
        return None
    if _count(getattr(module, "num_groups", None)) is not None and "norm" in word:
        return "group"
    gain = _tensor(module, "weight")
    if "rms" in word and gain is not None and gain.dim() == 1:
        return "rms"
    if hasattr(module, "normalized_shape") or ("layernorm" in word and gain is not None):
        return "layer"
    return "other" if word.endswith(_OTHER) else None


_OTHER = (
    "filterresponsenorm", "globalresponsenorm", "evonormb0", "evonorms0", "switchablenorm",
    "filterresponsenormtlu2d", "filterresponsenormact2d", "evonorm2db0", "evonorm2ds0",
)  # fmt: skip


def _has_own_statistics(module: nn.Module) -> bool:
    own = {**module._buffers, **module._parameters}
    return "running_mean" in own and "running_var" in own and _eps(module) is not None


def _is_frozen(module: nn.Module) -> bool:
    """Statistics that stand still in training: normkit's freeze, or a layer without a momentum."""
    if getattr(module, "statistics_frozen", False):
        return True
    affine = [name for name in ("weight", "bias") if _tensor(module, name) is not None]
    fixed = bool(affine) and all(name in module._buffers for name in affine)
    return "Frozen" in type(module).__name__ or fixed


def _tensor(module: nn.Module, name: str) -> Any:
    own = module._parameters.get(name)
    value = module._buffers.get(name) if own is None else own
    if value is None:  # a parametrized or a plain one
        value = getattr(module, name, None)
    return value if isinstance(value, Tensor) else None


def _eps(module: nn.Module) -> float | None:
    for name in ("eps", "variance_epsilon", "epsilon"):
        value = getattr(module, name, None)
        if isinstance(value, Tensor) and value.numel() == 1:
            value = float(value)
        if _number(value) is not None:
            return _number(value)
    if isinstance(module, nn.RMSNorm):  # None: the dtype's own
        weight = module._parameters.get("weight")  # torch.fx puts a stand-in before the attribute
        dtype = torch.float32 if weight is None else weight.dtype
        return float(torch.finfo(dtype).eps)
    return None


def _number(value: Any) -> float | None:
    plain = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float(value) if plain else None


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _whole(value: Tensor | None) -> int | None:
    if value is None or not value.numel() or value.is_meta:
        return None
    return int(value.max())


def _channels(module: nn.Module, gamma: Tensor | None, var: Tensor | None) -> int | None:
    for name in ("num_features", "num_channels"):
        if _count(getattr(module, name, None)) is not None:
            return _count(getattr(module, name))
    for tensor in (gamma, var):
        if tensor is not None:
            return tensor.numel() if tensor is gamma else tensor.shape[-1]
    shape = getattr(module, "normalized_shape", None)
    return int(torch.Size(shape).numel()) if isinstance(shape, (tuple, list)) else None


def _learns(module: nn.Module) -> bool | None:
    affine = [module._parameters.get(name) for name in ("weight", "bias")]
    known = [p for p in affine if p is not None]
    return any(p.requires_grad for p in known) if known else None


def _dims(module: nn.Module) -> int | None:
    """Spatial dimensions by the ending of a class's name, its own or one it descends from."""
    for kind in type(module).__mro__:
        for dims in (1, 2, 3):
            if kind.__name__.endswith(f"{dims}d"):
                return dims
    return None
