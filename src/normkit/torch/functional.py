"""Norms as functions of tensors: any norm, torch.nn.functional's twins, and state as a value."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from normkit.coefficients import Renorm
from normkit.errors import DTypeError, OptionError
from normkit.norms import BatchNorm, GroupNorm, InstanceNorm, Norm, RMSNorm, TokenLayerNorm
from normkit.torch import native
from normkit.torch.calls import Plan, is_plain_cpu, run
from normkit.torch.options import RenormSchedule, check_choice
from normkit.torch.statistics import (
    NONFINITE,
    RULES,
    RunningStatistics,
    advance,
    merge_sets,
)

__all__ = [
    "batch_norm",
    "batch_norm_with_state",
    "group_norm",
    "instance_norm",
    "layer_norm",
    "normalize",
    "rms_norm",
]

Tensor = torch.Tensor


def normalize(
    norm: Norm,
    x: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    axis: int = 1,
    residual: Tensor | None = None,
    activation: str | None = None,
    statistics: tuple[Tensor, Tensor] | None = None,
    *,
    mask: Tensor | None = None,
    lengths: Tensor | None = None,
    renorm: Renorm | None = None,
) -> Tensor:
    """activation(weight * (x - mean) / sqrt(var + eps) + bias + residual).

    Differentiable any number of times, and seen through by every transform of PyTorch's.

    Args:
        norm: any norm; the rest as in :meth:`normkit.Norm.forward`.
        statistics: (mean, var) to use in place of the batch's; constants for the gradient.

    Returns:
        A tensor of x's shape, dtype and memory format.

    Raises:
        ShapeError, DTypeError, OptionError: as there.

    >>> import torch, normkit as nk
    >>> x = torch.tensor([[1.0, 2.0], [3.0, 6.0]], requires_grad=True)
    >>> normalize(nk.BatchNorm(eps=0.0), x, activation="relu")
    tensor([[0., 0.],
            [1., 1.]], grad_fn=<_NodeBackward>)
    """
    if not isinstance(x, Tensor):
        raise DTypeError(
            "normalize() takes tensors",
            received=type(x).__name__,
            expected="torch.Tensor",
            remedy="NumPy arrays go to norm.forward(x).",
        )
    ordinary = statistics is None and mask is None and lengths is None and renorm is None
    if ordinary and (torch.compiler.is_compiling() or native.is_small(norm, x, axis)):
        y = native.normalize(norm, x, weight, bias, axis, residual, activation)
        if y is not None:
            return y
    if statistics is not None:  # constants, whatever becomes of the caller's tensors
        statistics = (statistics[0].detach().clone(), statistics[1].detach().clone())
    plan = Plan(norm, axis, activation, mask, lengths, statistics, renorm)
    return run(plan, x, weight, bias, residual)[0]


def batch_norm_with_state(
    x: Tensor,
    state: RunningStatistics,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    training: bool = True,
    norm: Norm | None = None,
    axis: int = 1,
    rule: str = "ema",
    momentum: float | None = 0.1,
    on_nonfinite: str = "propagate",
    mask: Tensor | None = None,
    lengths: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str | None = None,
    renorm: Any = None,
) -> tuple[Tensor, RunningStatistics]:
    """Batch norm as a pure function: the statistics go in as a value and come out as the next.

    Nothing is changed in place, so ``torch.func`` (vmap, grad, jacrev), ``torch.compile`` and
    ``torch.export`` take it as it is.

    Args:
        x: (N, C, ...), or channels along ``axis``.
        state: the running statistics so far.
        training: normalize with the batch's statistics and advance the running ones; if not,
            normalize with the running ones and return them as they are.
        norm: a norm whose sets are channels of some samples: batch norm with eps=1e-5 by default,
            or ghost or mean-only batch norm.
        rule, momentum, on_nonfinite: see :func:`normkit.torch.statistics.advance`.
        renorm: a :class:`normkit.torch.RenormSchedule`.

    Returns:
        y and the next state, whose tensors carry no gradient.

    >>> import torch
    >>> x, state = torch.randn(4, 8, 3), RunningStatistics.start(3)
    >>> many = torch.func.vmap(batch_norm_with_state, in_dims=(0, None))
    >>> y, states = many(x, state)
    >>> y.shape, states.mean.shape
    (torch.Size([4, 8, 3]), torch.Size([4, 3]))
    """
    norm = BatchNorm() if norm is None else norm
    if norm.channels != 1 or norm.positions != "all" or norm.samples == 1:
        raise OptionError(
            "Running statistics are kept for each channel",
            received=str(norm),
            expected="a norm over several samples of one channel",
            remedy="Other norms need no state: use normalize().",
        )
    check_choice("rule", rule, RULES)
    check_choice("on_nonfinite", on_nonfinite, NONFINITE)
    if isinstance(renorm, bool):
        renorm = RenormSchedule() if renorm else None
    rest = (axis, activation, mask, lengths)
    if not training:
        norm = replace(norm, samples="all")
        plan = Plan(norm, *rest, statistics=(state.mean, state.var))
        return run(plan, x, weight, bias, residual)[0], state
    if renorm is not None:
        wide = torch.promote_types(state.mean.dtype, torch.float32)
        reference = [state.mean, state.var]
        if norm.samples != "all":  # one for each ghost batch
            sets = -(-x.shape[0] // int(norm.samples))
            reference = [values.expand(sets, -1) for values in reference]
        renorm = Renorm(*reference, *renorm.at(state.batches.to(wide)))
    plan = Plan(norm, *rest, renorm=renorm)
    y, moments = run(plan, x, weight, bias, residual)
    if moments.mean.dim() == 2:
        moments = merge_sets(moments)
    return y, advance(state, moments, rule, momentum, on_nonfinite)


# --- torch.nn.functional's twins ------------------------------------------------------------------


def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """``torch.nn.functional.batch_norm`` on normkit's kernels.

    >>> import torch
    >>> batch_norm(torch.tensor([[1.0], [3.0]]), None, None, training=True).round(decimals=2)
    tensor([[-1.],
            [ 1.]])
    """
    norm = BatchNorm(eps=eps)
    odd = input.dim() < 2 or input.numel() <= input.size(1)
    if odd or not is_plain_cpu(input) or native.is_small(norm, input):
        return torch.nn.functional.batch_norm(
            input, running_mean, running_var, weight, bias, training, momentum, eps
        )
    if not training:
        if running_mean is None or running_var is None:
            raise ValueError(
                "Expected running_mean and running_var to be defined when training=False"
            )
        given = (running_mean.clone(), running_var.clone())
        return run(Plan(norm, statistics=given), input, weight, bias)[0]
    y, moments = run(Plan(norm), input, weight, bias)
    with torch.no_grad():
        pairs = ((running_mean, moments.mean), (running_var, moments.population_var))
        for buffer, values in pairs:
            if buffer is not None:
                buffer.lerp_(values.to(buffer.dtype), momentum)
    return y


def instance_norm(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """``torch.nn.functional.instance_norm``; on normkit's kernels where no statistics are kept."""
    kept = running_mean is not None or not use_input_stats
    norm = InstanceNorm(eps=eps)
    odd = input.dim() < 3 or input.numel() <= input.size(0) * input.size(1)
    small = native.is_small(norm, input) and not native.misreads_gradient(input)
    if kept or odd or small or not is_plain_cpu(input):
        return torch.nn.functional.instance_norm(
            input, running_mean, running_var, weight, bias, use_input_stats, momentum, eps
        )
    return run(Plan(norm), input, weight, bias)[0]


def group_norm(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """``torch.nn.functional.group_norm`` on normkit's kernels."""
    odd = not 2 <= input.dim() <= 5 or num_groups < 1 or input.size(1) % num_groups
    if odd or input.numel() <= input.size(0) * num_groups or not is_plain_cpu(input):
        return torch.nn.functional.group_norm(input, num_groups, weight, bias, eps)
    return normalize(GroupNorm(num_groups, eps=eps), input, weight, bias)


def layer_norm(
    input: Tensor,
    normalized_shape: Any,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """``torch.nn.functional.layer_norm`` on normkit's kernels."""
    shape = _trailing(input, normalized_shape)
    if shape is None or native.is_small(TokenLayerNorm(), input, -1):
        return torch.nn.functional.layer_norm(input, normalized_shape, weight, bias, eps)
    return _over_trailing(TokenLayerNorm(eps=eps), input, shape, weight, bias)


def rms_norm(
    input: Tensor,
    normalized_shape: Any,
    weight: Tensor | None = None,
    eps: float | None = None,
) -> Tensor:
    """``torch.nn.functional.rms_norm`` on normkit's kernels."""
    shape = _trailing(input, normalized_shape)
    if shape is None or native.is_small(RMSNorm(), input, -1):
        return torch.nn.functional.rms_norm(input, normalized_shape, weight, eps)
    if eps is None:  # torch.nn computes narrow dtypes in float32, and takes that dtype's eps
        eps = torch.finfo(torch.promote_types(input.dtype, torch.float32)).eps
    return _over_trailing(RMSNorm(eps=eps), input, shape, weight, None)


def _trailing(input: Tensor, normalized_shape: Any) -> tuple[int, int] | None:
    """The input as (tokens, elements); None where PyTorch has words for it."""
    wanted = [normalized_shape] if isinstance(normalized_shape, int) else list(normalized_shape)
    if not wanted or list(input.shape[-len(wanted) :]) != wanted or not is_plain_cpu(input):
        return None
    size = torch.Size(wanted).numel()
    return (input.numel() // size, size) if input.numel() else None


def _over_trailing(
    norm: Norm,
    input: Tensor,
    shape: tuple[int, int],
    weight: Any,
    bias: Any,
) -> Tensor:
    flat = [None if values is None else values.reshape(-1) for values in (weight, bias)]
    return run(Plan(norm, -1), input.reshape(shape), *flat)[0].reshape(input.shape)
