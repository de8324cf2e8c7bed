"""A norm of a model read for conversion: what it keeps, what it remembers, and what forbids it."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 - its usual name

from normkit.models.conversion.catalogue import (
    NORMKIT_OF,
    TORCH_OF,
    Origin,
    RefusedError,
    library_of,
)
from normkit.models.sites import NormSite
from normkit.models.wrappers import HOOKS
from normkit.torch.beyond import FilterResponseNorm
from normkit.torch.layers.base import KernelLayer
from normkit.torch.options import BatchOptions

__all__ = ["Source", "read"]

Tensor = torch.Tensor
#: Parts that a norm of timm's applies behind itself, in this order.
_TAIL = ("drop", "act")
_TENSORS = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
#: float32 inside a user's own forward is close enough to be the same formula.
_CLOSE = 1e-4


@dataclass(frozen=True, eq=False)
class Source:
    """A norm that is to be converted.

    Args:
        site: what it is.
        is_foreign: neither torch.nn's nor normkit's, but known to compute batch norm.
        tail: what it applies behind the norm, by name.
    """

    site: NormSite
    is_foreign: bool = False
    tail: tuple[tuple[str, nn.Module], ...] = ()

    @property
    def module(self) -> Any:
        return self.site.module

    @property
    def is_batch(self) -> bool:
        return self.site.kind == "batch"

    @property
    def is_sync(self) -> bool:
        return self.is_batch and self.site.synced

    @property
    def channels(self) -> int:
        return int(self.site.channels or 0)

    @property
    def options(self) -> BatchOptions:
        return self.module.__dict__.get("options", BatchOptions())

    @cached_property
    def origin(self) -> Origin:
        """What it was before its first conversion; what it is, where it had none."""
        known = self.module.__dict__.get("converted_from")
        if isinstance(known, Origin):
            return known
        library, frozen = library_of(self.module), None
        momentum = getattr(self.module, "momentum", 0.1) if self.is_batch else 0.1
        if self.is_foreign and self.site.frozen and not self.module._modules:
            frozen = type(self.module)
        attributes = {} if frozen is None else _plain(self.module)
        held = {} if frozen is None else self.module._buffers
        buffers = {name: tensor is not None for name, tensor in held.items()}
        return Origin(self.site.dims, library, momentum, frozen, attributes, buffers)

    @cached_property
    def parameters(self) -> dict[str, Any]:
        """Gamma and beta as parameters; those that were buffers do not learn."""
        found = {"weight": self.site.gamma, "bias": self.site.beta}
        return {
            name: value
            if value is None or isinstance(value, nn.Parameter)
            else nn.Parameter(value, requires_grad=False)
            for name, value in found.items()
        }


def _plain(module: nn.Module) -> dict[str, Any]:
    """Attributes that nn.Module does not have."""
    common = nn.Module().__dict__
    return {name: value for name, value in module.__dict__.items() if name not in common}


def read(site: NormSite) -> Source:
    """A norm as a source of conversions.

    Raises:
        RefusedError: it does something that the new layer would not.
    """
    module = site.module
    if isinstance(module, torch.jit.ScriptModule):
        raise RefusedError("it is TorchScript", "Convert the model before it is scripted.")
    if hasattr(module, "parametrizations"):
        raise RefusedError(
            "its parameters are parametrized",
            "torch.nn.utils.parametrize.remove_parametrizations() makes them plain.",
        )
    if "forward" in module.__dict__:
        raise RefusedError("its forward was replaced on the instance", "Convert before that.")
    if type(module) in NORMKIT_OF or type(module) in TORCH_OF:
        return Source(site)
    if type(module) is FilterResponseNorm and module.axis == 1 and module.learned_eps is None:
        return Source(site)
    if isinstance(module, KernelLayer) or site.kind != "batch":
        raise RefusedError(
            f"{type(module).__name__} is a norm of its own kind",
            "only= leaves it out.",
        )
    return _read_foreign(site)


def _read_foreign(site: NormSite) -> Source:
    """A batch norm of the user's own: by what it has, and tried on an input."""
    module = site.module
    own = {**module._parameters, **module._buffers}
    more = [name for name, t in own.items() if t is not None and name not in _TENSORS]
    more += [name for name in module._modules if name not in _TAIL]
    if more:
        raise RefusedError(
            f"{type(module).__name__} has more than a batch norm: {', '.join(more)}",
            "only= leaves it out.",
        )
    if not site.tracks:
        raise RefusedError(
            f"{type(module).__name__} keeps no running statistics, and has a forward of its own",
            "only= leaves it out.",
        )
    tail = tuple(
        (name, part) for name in _TAIL
        if (part := module._modules.get(name)) is not None and type(part) is not nn.Identity
    )  # fmt: skip
    if not _is_batch_norm(site, tail):
        raise RefusedError(
            f"{type(module).__name__}'s forward computes something else than batch norm"
            + (f" and {', '.join(name for name, _ in tail)}" if tail else ""),
            "only= leaves it out.",
        )
    return Source(site, is_foreign=True, tail=tail)


def _is_batch_norm(site: NormSite, tail: Any) -> bool:
    """Whether a layer in eval mode gives what its statistics and parameters say."""
    if site.var is None or site.mean is None or site.var.dim() != 1:
        return False
    for dtype in dict.fromkeys((torch.float64, site.var.dtype)):
        try:
            found, expected = _tried(site, [part for _, part in tail], dtype)
        except Exception:  # its forward may ask for one dtype, or for more than an input
            continue
        near = max(_CLOSE, 8 * torch.finfo(dtype).eps)
        return found.shape == expected.shape and bool(
            torch.isclose(found.double(), expected.double(), near, near, equal_nan=True).all()
        )
    return False


def _tried(site: NormSite, tail: list[nn.Module], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """A copy of a layer on a random input, and what batch norm gives."""
    trial, parts = copy.deepcopy((site.module, tail))
    trial.to(dtype).eval()
    for hooks in HOOKS:
        getattr(trial, hooks).clear()
    shape = (4, int(site.channels or 0), *[3] * (site.dims or 2))
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator).to(trial.running_var)
    values = (trial.running_mean, trial.running_var, trial.weight, trial.bias)
    with torch.no_grad():
        expected = F.batch_norm(x, *values, False, 0.0, site.eps or 0.0)
        for part in parts:
            expected = part.eval()(expected)
        return trial(x.clone()), expected
