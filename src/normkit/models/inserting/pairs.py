"""A layer and the norm behind it, as they stand together in a model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from normkit.errors import DTypeError, ModelError
from normkit.models.batches import Batch, Forward
from normkit.models.proof import difference
from normkit.models.sites import NormSite, site_of
from normkit.models.wrappers import check_bare

__all__ = [
    "LAYERS",
    "SHOWN",
    "compared",
    "deviation",
    "dims_of",
    "op_of",
    "pairs_of",
    "sayer",
]

Tensor = torch.Tensor

#: Layers that a norm can stand behind: op, and axes of the output behind (N, C).
LAYERS: dict[type[nn.Module], tuple[str, int]] = {
    nn.Conv1d: ("conv", 1), nn.Conv2d: ("conv", 2), nn.Conv3d: ("conv", 3),
    nn.ConvTranspose1d: ("conv_transpose", 1), nn.ConvTranspose2d: ("conv_transpose", 2),
    nn.ConvTranspose3d: ("conv_transpose", 3), nn.Linear: ("linear", 0),
}  # fmt: skip
#: Layers that a message names.
SHOWN = 3


def op_of(module: nn.Module) -> str:
    """What a layer does, as of :data:`normkit.models.graphs.OPS`; "" for none."""
    return next((op for kind, (op, _) in LAYERS.items() if isinstance(module, kind)), "")


def dims_of(module: nn.Module) -> int:
    """Axes of a layer's output behind (N, C)."""
    return next(dims for kind, (_, dims) in LAYERS.items() if isinstance(module, kind))


def pairs_of(model: nn.Module) -> dict[str, tuple[Any, NormSite]]:
    """What insert() made, by name: each pair, and its norm."""
    found = {}
    for name, pair in model.named_modules():
        if type(pair) is nn.Sequential and list(pair._modules) == ["layer", "norm"]:
            site = site_of(f"{name}.norm".lstrip("."), pair[1])
            if op_of(pair[0]) and site is not None:
                found[name] = (pair, site)
    return found


def deviation(norm: Any) -> Tensor:
    """√(variance + ε) in the dtype in which it is kept: the gamma of an identity."""
    return (norm.running_var.double() + norm.eps).sqrt().to(norm.running_var.dtype)


# --- what is said ---------------------------------------------------------------------------------


def sayer(name: str, model: Any, report: Callable[[str], Any] | None) -> Callable[[str], Any]:
    """What takes the lines of a report.

    Raises:
        DTypeError: the model is none.
    """
    if not isinstance(model, nn.Module):
        raise DTypeError(
            f"{name}() has no model",
            received=type(model).__name__,
            expected="a torch.nn.Module",
            remedy="Pass the model itself.",
        )
    check_bare(model, name)
    return lambda line: None if report is None else report(f"{name}: {line}")


def compared(
    name: str,
    before: nn.Module,
    after: nn.Module,
    exact: Callable[[], tuple[nn.Module, nn.Module]],
    batch: Batch,
    forward: Forward | None = None,
) -> str:
    """How far a model's outputs before and after a change lie apart, in words.

    Args:
        name: of the function that changed it.
        before, after: the models in their own dtype.
        exact: gives both in float64, where what is stored is not rounded.
        batch, forward: as of :func:`normkit.models.batches.call`.

    Raises:
        ModelError: further than rounding explains.
        DataError: the model does not take the batch.
    """
    own = difference(before, after, batch, forward, wide=False)
    wide = difference(*exact(), batch, forward)
    found = {apart.dtype: apart for apart in (wide, own) if apart is not None}
    for apart in found.values():
        if not apart.is_rounding:
            raise ModelError(
                f"The model does not do the same after {name}(); nothing was changed",
                received=f"outputs that differ by {apart}",
                expected="a difference that rounding explains",
                remedy="Find the layer by naming a few at a time, and report it.",
            )
    return f"outputs differ by at most {', '.join(map(str, found.values()))}"
