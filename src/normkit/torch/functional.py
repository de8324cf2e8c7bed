"""Every norm as a differentiable function of tensors."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import array_api_compat.torch as portable_torch
import torch

from normkit import checks, engine
from normkit.errors import DTypeError
from normkit.kernels import registry
from normkit.kernels.call import Backend, Call
from normkit.moments import Moments
from normkit.norms import Norm
from normkit.torch import native
from normkit.torch.host import TorchHost

__all__ = ["normalize"]


@cache
def _compiled() -> Any:
    from normkit.kernels.cpu.backend import CpuBackend

    return CpuBackend(TorchHost())


def is_plain_cpu(x: torch.Tensor) -> bool:
    """Whether x lies in this machine's memory as an ordinary strided tensor."""
    return (
        type(x) in _PLAIN
        and x.device.type == "cpu"
        and x.layout is torch.strided
        and not x.is_neg()
    )


_PLAIN = (torch.Tensor, torch.nn.Parameter)


def _backend(call: Call) -> Backend:
    if is_plain_cpu(call.x) and _compiled().refusal(call) is None:
        return _compiled()
    return registry.portable(portable_torch)


class _Normalize(torch.autograd.Function):
    """One node of the graph that saves references to the inputs and the statistics."""

    @staticmethod
    def forward(
        ctx: Any, x: Any, gamma: Any, beta: Any, residual: Any, norm: Norm, axis: int,
        activation: str | None, statistics: Any, box: list[Any],
    ) -> torch.Tensor:  # fmt: skip
        call = checks.make_call(
            norm, x, gamma, beta, axis, residual=residual, activation=activation
        )
        backend = _backend(call)
        if isinstance(statistics, tuple) and backend is _compiled():
            statistics = tuple(t.detach().to(torch.float64).numpy() for t in statistics)
        y, saved = engine.run_forward(norm, call, backend, statistics, None, None)
        box.append(saved.statistics if not box else None)
        # Tensors travel through save_for_backward, which notices changes in place.
        ctx.save_for_backward(x, gamma, beta, residual)
        call.x = call.gamma = call.beta = call.residual = call.prepared = None
        ctx.saved_call, ctx.norm = saved, norm
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: torch.Tensor) -> tuple[Any, ...]:
        x, gamma, beta, residual = ctx.saved_tensors
        # A copy: several threads may walk one graph.
        call = replace(
            ctx.saved_call.call, x=x, gamma=gamma, beta=beta, residual=residual, prepared=None
        )
        grads = engine.backward(ctx.norm, dy, replace(ctx.saved_call, call=call))
        return (
            grads.x if ctx.needs_input_grad[0] else None,
            grads.gamma if ctx.needs_input_grad[1] else None,
            grads.beta if ctx.needs_input_grad[2] else None,
            grads.residual if ctx.needs_input_grad[3] else None,
            None, None, None, None, None,
        )  # fmt: skip


def normalize(
    norm: Norm,
    x: torch.Tensor,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    axis: int = 1,
    residual: torch.Tensor | None = None,
    activation: str | None = None,
    statistics: Any = None,
) -> torch.Tensor:
    """activation(weight * (x - mean) / sqrt(var + eps) + bias + residual), differentiable once.

    Args:
        norm: any norm; the rest as in :meth:`normkit.Norm.forward`.

    Returns:
        A tensor of x's shape, dtype and memory format.

    Raises:
        ShapeError, DTypeError, OptionError: as there.

    >>> import torch, normkit as nk
    >>> x = torch.tensor([[1.0, 2.0], [3.0, 6.0]], requires_grad=True)
    >>> normalize(nk.BatchNorm(eps=0.0), x, activation="relu")
    tensor([[0., 0.],
            [1., 1.]], grad_fn=<_NormalizeBackward>)
    """
    if not isinstance(x, torch.Tensor):
        raise DTypeError(
            "normalize() takes tensors",
            received=type(x).__name__,
            expected="torch.Tensor",
            remedy="NumPy arrays go to norm.forward(x).",
        )
    if statistics is None and native.is_small(norm, x, axis):
        y = native.normalize(norm, x, weight, bias, axis, residual, activation)
        if y is not None:
            return y
    return normalize_with_statistics(norm, x, weight, bias, axis, residual, activation, statistics)[
        0
    ]


def normalize_with_statistics(
    norm: Norm, x: torch.Tensor, weight: Any, bias: Any, axis: int, residual: Any,
    activation: str | None, statistics: Any,
) -> tuple[torch.Tensor, Moments]:  # fmt: skip
    """y, and the moments that it was normalized with."""
    box: list[Moments] = []
    y = _Normalize.apply(x, weight, bias, residual, norm, axis, activation, statistics, box)
    return y, box[0]
