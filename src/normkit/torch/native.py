"""PyTorch's own operators for inputs so small that the call costs more than the work."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional as F  # noqa: N812 - its usual name

from normkit.errors import OptionError
from normkit.layout import ALL, Split
from normkit.norms import Norm

#: Elements up to which PyTorch's own operators are at least as quick (measured on two cores): its
#: batch norm walks memory poorly, its other norms and all its 16-bit ones only suffer from size.
_BATCH, _OTHERS = 1 << 17, 1 << 19
_forced: int | None = None

_ACTIVATIONS: dict[str | None, Callable[[Any], Any]] = {
    None: lambda z: z,
    "relu": torch.relu,
    "leaky_relu": F.leaky_relu,
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda z: F.gelu(z, approximate="tanh"),
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "hardswish": F.hardswish,
}


def use_native_up_to(elements: int | None) -> None:
    """Send inputs of at most this many elements to PyTorch's own operators.

    Args:
        elements: 0 sends everything through normkit's kernels, None goes back to measured limits.

    Raises:
        OptionError: not a whole number of at least 0.
    """
    global _forced
    whole = isinstance(elements, int) and not isinstance(elements, bool)
    if elements is not None and (not whole or elements < 0):
        raise OptionError(
            "No number of elements",
            received=repr(elements),
            expected="a whole number of at least 0, or None",
            remedy="use_native_up_to(0) sends everything through normkit's kernels.",
        )
    _forced = elements


def is_small(norm: Norm, x: torch.Tensor) -> bool:
    """Whether x is not empty and so small that PyTorch's own operators are as quick."""
    limit = _forced
    if limit is None:
        wide = x.dtype in (torch.float32, torch.float64)
        limit = _BATCH if norm.channels == 1 and wide else _OTHERS
    return 0 < x.numel() <= limit


def normalize(
    norm: Norm, x: Any, weight: Any, bias: Any, axis: int, residual: Any, activation: str | None
) -> torch.Tensor | None:
    """The same result by PyTorch's operators; None where they have no such norm."""
    if activation not in _ACTIVATIONS or not x.is_floating_point() or not 2 <= x.dim() <= 5:
        return None
    narrow = x.dtype in (torch.float16, torch.bfloat16)
    if narrow and (residual is not None or activation is not None):
        return None  # PyTorch would round between the steps
    if isinstance(axis, bool):
        return None
    if residual is not None and (residual.shape != x.shape or residual.dtype != x.dtype):
        return None
    channel = (x.shape[axis],) if -x.dim() <= axis < x.dim() else None
    if any(p is not None and (tuple(p.shape) != channel or p.dtype != x.dtype)
           for p in (weight, bias)):  # fmt: skip
        return None
    if narrow:  # with parameters as narrow as x, PyTorch takes statistics in that precision
        weight, bias = (None if p is None else p.float() for p in (weight, bias))
    z = _plain(norm, x, weight, bias, axis % x.dim())
    if z is None:
        return None
    return _ACTIVATIONS[activation](z if residual is None else z + residual)


def _plain(norm: Norm, x: Any, weight: Any, bias: Any, axis: int) -> torch.Tensor | None:
    if not norm.scale or norm.eps == 0:  # PyTorch refuses an eps of 0
        return None
    last = axis == x.dim() - 1
    tokens = norm.samples == 1 and norm.channels == ALL and last
    if tokens and (norm.positions == 1 or x.dim() == 2):
        if norm.center:
            return F.layer_norm(x, x.shape[-1:], weight, bias, norm.eps)
        return None if bias is not None else F.rms_norm(x, x.shape[-1:], weight, norm.eps)
    if axis != 1 or not norm.center or norm.positions == 1:
        return None
    per_channel = x.numel() // x.shape[1]
    if norm.samples == ALL and norm.channels == 1 and per_channel > 1:
        return F.batch_norm(x, None, None, weight, bias, True, 0.0, norm.eps)
    if norm.samples != 1:
        return None
    if norm.channels == 1 and x.dim() > 2 and per_channel > x.shape[0]:
        return F.instance_norm(x, weight=weight, bias=bias, eps=norm.eps)
    groups = 1 if norm.channels == ALL else None
    if isinstance(norm.channels, Split):
        groups = norm.channels.parts
    if groups is None or x.shape[1] % groups or x[0].numel() == groups:
        return None
    return F.group_norm(x, groups, weight, bias, norm.eps)
