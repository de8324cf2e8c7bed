"""PyTorch's own operators for inputs so small that the call costs more than the work."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch.nn import functional as F  # noqa: N812 - its usual name

from normkit.errors import OptionError
from normkit.layout import ALL, Split
from normkit.norms import Norm

#: Bytes of x up to which PyTorch's own operators are at least as quick, measured on two cores with
#: 32 MB of last-level cache. Its channels-last batch norm, its group norm of small planes and its
#: layer norm are good while x stays in that cache; its channels-first batch norm is slow from early
#: on, and so is its RMS norm.
_BATCH, _OTHERS, _FUSED_COLUMNS, _IN_CACHE = 1 << 20, 2 << 20, 12 << 20, 28 << 20
_PLANE = 64
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


def is_small(norm: Norm, x: torch.Tensor, axis: int = 1, fused: bool = False) -> bool:
    """Whether x is not empty and so small that PyTorch's own operators are as quick.

    ``fused`` says that more passes over memory would follow the norm.
    """
    count = x.numel()
    if _forced is not None:
        return 0 < count <= _forced
    size = count * x.element_size()
    if size <= _BATCH:  # the least of the limits
        return size > 0
    limit = _limit(norm, x, axis)
    if fused:  # PyTorch makes several passes where normkit makes one
        return limit == _IN_CACHE and norm.samples == ALL and size <= _FUSED_COLUMNS
    return size <= limit


def _limit(norm: Norm, x: torch.Tensor, axis: int) -> int:
    if norm.samples == ALL and norm.channels == 1:
        columns = x.dim() <= 2 or (axis == 1 and x.stride(1) == 1)
        return _IN_CACHE if columns else _BATCH
    if isinstance(norm.channels, Split) and x.dim() > 2 and x[0, 0].numel() <= _PLANE:
        return _IN_CACHE
    tokens = norm.channels == ALL and norm.positions == 1 and norm.center
    return _IN_CACHE if tokens and axis == -1 else _OTHERS


def misreads_gradient(x: torch.Tensor) -> bool:
    """Whether PyTorch's instance norm could give wrong gradients of x, without a word.

    On the CPU it takes a channels-last gradient of a single sample for a contiguous one (2.13).
    """
    return x.dim() > 3 and x.shape[0] == 1 and x.device.type == "cpu" and torch.is_grad_enabled()


def knows(activation: str | None) -> bool:
    """Whether PyTorch has the activation."""
    return activation in _ACTIVATIONS


def finish(y: Any, residual: Any, activation: str | None) -> Any:
    """activation(y + residual) by PyTorch's operators."""
    return _ACTIVATIONS[activation](y if residual is None else y + residual)


class ConstantBatchNorm(torch.autograd.Function):
    """PyTorch's batch norm with given statistics, without its copy of x: dx does not need it.

    For a gamma that needs no gradient; the forward is PyTorch's, bit for bit.
    """

    @staticmethod
    def forward(ctx: Any, x: Any, weight: Any, bias: Any, mean: Any, var: Any, eps: float) -> Any:
        slope = torch.rsqrt(var.to(torch.promote_types(var.dtype, torch.float32)) + eps)
        ctx.slope = slope if weight is None else slope * weight
        ctx.bias_dtype = None if bias is None else bias.dtype
        return F.batch_norm(x, mean, var, weight, bias, False, 0.0, eps)

    @staticmethod
    def backward(ctx: Any, dy: Any) -> tuple[Any, ...]:
        dx = dbias = None
        if ctx.needs_input_grad[0]:
            shape = (1, -1) + (1,) * (dy.dim() - 2)
            dx = (dy * ctx.slope.view(shape)).to(dy.dtype)
        if ctx.needs_input_grad[2]:
            others = [axis for axis in range(dy.dim()) if axis != 1]
            dbias = dy.sum(others, dtype=ctx.slope.dtype).to(ctx.bias_dtype)
        return dx, None, dbias, None, None, None


def normalize(
    norm: Norm, x: Any, weight: Any, bias: Any, axis: int, residual: Any, activation: str | None
) -> torch.Tensor | None:
    """The same result by PyTorch's operators; None where they have no such norm."""
    if type(axis) is not int:
        return None
    find = _operator.__wrapped__ if torch.compiler.is_compiling() else _operator
    operator = find(norm, x.dim(), axis)
    if operator is None or activation not in _ACTIVATIONS:
        return None
    if residual is not None and (residual.shape != x.shape or residual.dtype != x.dtype):
        return None
    dtype = x.dtype
    for parameter in (weight, bias):
        if parameter is not None and (
            parameter.dim() != 1 or parameter.shape[0] != x.shape[axis] or parameter.dtype != dtype
        ):
            return None
    if dtype is torch.float16 or dtype is torch.bfloat16:
        if residual is not None or activation is not None:
            return None  # PyTorch would round between the steps
        if norm.samples == ALL:
            # With parameters as narrow as x, it takes a batch's statistics in that precision.
            weight = None if weight is None else weight.float()
            bias = None if bias is None else bias.float()
    elif dtype is not torch.float32 and dtype is not torch.float64:
        return None
    z = operator(x, weight, bias)
    return None if z is None else finish(z, residual, activation)


def standardize(
    norm: Norm, x: Any, mean: Any, var: Any, weight: Any, bias: Any, axis: int
) -> torch.Tensor | None:
    """By given statistics of each channel; None where kernels are quicker, or a gradient is asked.

    Not PyTorch's batch norm, which folds the mean into the bias and cancels digits far from zero.
    ``python -m benchmarks.keras_layers`` times it.
    """
    parameters = [p for p in (mean, var, weight, bias) if p is not None]
    if (
        torch.is_grad_enabled()
        or x.dtype not in (torch.float32, torch.float64)
        or x.numel() * x.element_size() > _BATCH
        or not is_small(norm, x, axis)
        or any(p.dim() != 1 or p.dtype != x.dtype for p in parameters)
    ):
        return None
    along = [1] * x.dim()
    along[axis] = -1
    slope = (var + norm.eps).rsqrt()
    slope = slope if weight is None else slope * weight
    y = (x - mean.view(along)).mul_(slope.view(along))
    return y if bias is None else y.add_(bias.view(along))


@lru_cache(maxsize=256)
def _operator(norm: Norm, rank: int, axis: int) -> Callable[[Any, Any, Any], Any] | None:
    """PyTorch's operator for a norm; it returns None for what it would refuse or misread."""
    if not (2 <= rank <= 5 and -rank <= axis < rank):
        return None
    if not norm.scale or norm.eps == 0:  # PyTorch refuses an eps of 0
        return None
    eps, axis = norm.eps, axis % rank
    tokens = norm.samples == 1 and norm.channels == ALL and axis == rank - 1
    if tokens and (norm.positions == 1 or rank == 2):
        if norm.center:
            return lambda x, w, b: F.layer_norm(x, x.shape[-1:], w, b, eps)
        return lambda x, w, b: None if b is not None else F.rms_norm(x, x.shape[-1:], w, eps)
    if axis != 1 or not norm.center or norm.positions == 1:
        return None
    if norm.samples == ALL and norm.channels == 1:
        return lambda x, w, b: (
            F.batch_norm(x, None, None, w, b, True, 0.0, eps) if x.numel() > x.shape[1] else None
        )
    if norm.samples != 1:
        return None
    if norm.channels == 1:
        return lambda x, w, b: (
            F.instance_norm(x, weight=w, bias=b, eps=eps)
            if x.numel() > x.shape[0] * x.shape[1] and not misreads_gradient(x)
            else None
        )
    return _group_operator(1 if norm.channels == ALL else norm.channels, eps)


def _group_operator(channels: Any, eps: float) -> Callable[[Any, Any, Any], Any] | None:
    groups = channels.parts if isinstance(channels, Split) else channels
    if channels != 1 and not isinstance(channels, Split):
        return None  # so many channels a set: PyTorch counts in groups
    return lambda x, w, b: (
        F.group_norm(x, groups, w, b, eps)
        if x.shape[1] % groups == 0 and x.numel() > x.shape[0] * groups
        else None
    )
