"""One call of a norm on tensors, on the kernels or, under transforms, by PyTorch's operators.

On the kernels a call is one node of the graph that keeps references to its inputs and a few numbers
a set. Differentiated twice, or seen through by a transform, the same definition runs on PyTorch's
own operators instead: :mod:`normkit.engine` with the portable backend, transparent to everything.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Protocol

import array_api_compat.torch as portable_torch
import numpy as np
import torch

from normkit import checks, engine
from normkit.coefficients import Renorm
from normkit.errors import OptionError
from normkit.kernels import registry
from normkit.kernels.call import Backend, Call
from normkit.kernels.masked import MaskedBackend
from normkit.layout import layout_of, make_layout
from normkit.moments import Moments
from normkit.norms import Norm
from normkit.torch.host import TorchHost
from normkit.torch.transforms import is_batched, is_mapped, is_transformed

__all__ = [
    "Plan", "Reducer", "Repeat", "can_repeat", "check_version", "is_plain_cpu", "run",
    "run_by_operators",
]  # fmt: skip

Tensor = torch.Tensor
for _kind in (torch.Tensor, torch.nn.Parameter):
    registry.know_namespace(_kind, portable_torch)


class Reducer(Protocol):
    """Makes of one rank's numbers those of all ranks."""

    def moments(self, moments: Moments) -> Moments:
        """Of the union, differentiable where the given tensors are."""

    def sums(self, dz: Tensor, dzx: Tensor) -> tuple[Tensor, Tensor]:
        """Sums over all ranks of two tensors shaped as the statistics."""


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """What a call does, beside the tensors that gradients flow to."""

    norm: Norm
    axis: int = 1
    activation: str | None = None
    mask: Tensor | None = None
    lengths: Tensor | None = None
    statistics: tuple[Tensor, Tensor] | None = None  # mean and variance to use as they are
    renorm: Renorm | None = None
    reducer: Reducer | None = None
    input_activation: str | None = None

    def call(self, x: Any, gamma: Any, beta: Any, residual: Any, transparent: bool) -> Call:
        """The checked call."""
        if self.lengths is not None and not transparent:
            positions = [s for a, s in enumerate(x.shape) if a not in (0, self.axis % x.dim())]
            check_lengths(self.lengths, positions[0] if positions else 0)
        return checks.make_call(
            self.norm, x, gamma, beta, self.axis, self.mask, self.lengths, residual,
            self.activation, self.input_activation, make_layout if transparent else layout_of,
        )  # fmt: skip


def run(
    plan: Plan, x: Tensor, gamma: Any = None, beta: Any = None, residual: Any = None
) -> tuple[Tensor, Moments]:
    """y, and the moments (tensors without gradients) that it was normalized with."""
    if is_transformed():
        return run_by_operators(plan, x, gamma, beta, residual)
    box: list[Moments] = []
    y = _Node.apply(x, gamma, beta, residual, plan, box)
    return y, box[0]


# --- by PyTorch's operators -----------------------------------------------------------------------


def run_by_operators(
    plan: Plan, x: Tensor, gamma: Any, beta: Any, residual: Any
) -> tuple[Tensor, Moments]:
    """The same through PyTorch's operators, which every transform sees through."""
    call = plan.call(x, gamma, beta, residual, transparent=True)
    reduce = None if plan.reducer is None else plan.reducer.moments
    y, saved = engine.run_forward(
        plan.norm, call, _PORTABLE, plan.statistics, plan.renorm, None, reduce
    )
    moments = saved.statistics
    count = moments.count
    if isinstance(count, Tensor):
        count = count.detach()
    y = _in_format_of(x, y)
    return y, Moments(count, moments.mean.detach(), moments.m2.detach())


def _in_format_of(x: Tensor, y: Tensor) -> Tensor:
    """y in x's memory format, where that is one of the channels-last ones."""
    if x.dim() not in (4, 5) or is_mapped() or not isinstance(x, Tensor):
        return y
    last = torch.channels_last if x.dim() == 4 else torch.channels_last_3d
    if x.is_contiguous() or not x.is_contiguous(memory_format=last):
        return y
    return y.contiguous(memory_format=last)


_PORTABLE = registry.portable(portable_torch)


# --- on the kernels -------------------------------------------------------------------------------

_PLAIN = (torch.Tensor, torch.nn.Parameter)
_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def is_plain_cpu(x: Tensor) -> bool:
    """Whether x lies in this machine's memory as an ordinary strided tensor of real numbers.

    What is being traced lies nowhere yet.
    """
    if torch.compiler.is_compiling():
        return False
    return (
        type(x) in _PLAIN
        and x.device.type == "cpu"
        and x.layout is torch.strided
        and x.dtype in _DTYPES
        and not x.is_neg()
    )


@cache
def _compiled() -> Any:
    from normkit.kernels.cpu.backend import CpuBackend

    return CpuBackend(TorchHost())


@cache
def _masked() -> Backend:
    return MaskedBackend(_compiled(), _PORTABLE)


def _backend(call: Call) -> Backend:
    if is_plain_cpu(call.x) and _compiled().refusal(call) is None:
        return _compiled() if call.mask is None else _masked()
    return _PORTABLE


def _numbers(values: Any) -> np.ndarray:
    """Statistics as the compiled kernels take them."""
    return values.detach().to("cpu", torch.float64).numpy()


def _tensors(moments: Moments) -> Moments:
    """NumPy moments as tensors that share their memory."""
    count = moments.count
    count = torch.from_numpy(np.array(count)) if np.ndim(count) else float(count)
    return Moments(count, torch.from_numpy(moments.mean), torch.from_numpy(moments.m2))


def _source(plan: Plan, backend: Backend) -> tuple[Any, Any, Any]:
    """statistics=, renorm= and reduce= as the backend takes them."""
    statistics: Any = plan.statistics
    renorm, reducer = plan.renorm, plan.reducer
    if backend.namespace() is not np:
        return statistics, renorm, None if reducer is None else reducer.moments
    if statistics is not None:
        statistics = tuple(_numbers(values) for values in statistics)
    if renorm is not None:
        renorm = Renorm(
            _numbers(renorm.mean), _numbers(renorm.var), float(renorm.r_max), float(renorm.d_max)
        )
    if reducer is None:
        return statistics, renorm, None

    def reduce(moments: Moments) -> Moments:
        whole = reducer.moments(_tensors(moments))
        count = whole.count
        count = _numbers(count) if isinstance(count, Tensor) else count
        return Moments(count, _numbers(whole.mean), _numbers(whole.m2))

    return statistics, renorm, reduce


class _Node(torch.autograd.Function):
    """One node of the graph that saves references to the inputs and the statistics."""

    @staticmethod
    def forward(
        ctx: Any, x: Any, gamma: Any, beta: Any, residual: Any, plan: Plan, box: list[Any]
    ) -> Tensor:
        call = plan.call(x, gamma, beta, residual, transparent=False)
        backend = _backend(call)
        statistics, renorm, reduce = _source(plan, backend)
        with np.errstate(all="ignore"):  # NaN and infinity in x spread as the definition says
            y, saved = engine.run_forward(
                plan.norm, call, backend, statistics, renorm, None, reduce
            )
            if backend is _PORTABLE:
                y = _in_format_of(x, y)
        moments = saved.statistics
        box.append(_tensors(moments) if backend.namespace() is np else moments)
        ctx.plan, ctx.engine_saved, ctx.has_residual = plan, saved, residual is not None
        # dx does not depend on x where the statistics are constants and gamma needs no gradient.
        activates = call.activation is not None or call.input_activation is not None
        ctx.holds_x = saved.taken or activates or ctx.needs_input_grad[1]
        # Tensors travel through save_for_backward, which notices changes in place.
        ctx.save_for_backward(
            x if ctx.holds_x else None, gamma, beta,
            residual if call.activation is not None else None, plan.mask, plan.lengths,
        )  # fmt: skip
        call.x = call.gamma = call.beta = call.residual = call.prepared = None
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
        x, gamma, beta, residual, *_ = ctx.saved_tensors
        # What was not held does not matter but for its shape, which is dy's.
        x = x if ctx.holds_x else dy
        if ctx.has_residual and residual is None:
            residual = dy
        differentiate = _gradients_by_operators if torch.is_grad_enabled() else _gradients
        gradients = differentiate(ctx, dy, x, gamma, beta, residual)
        pairs = zip(ctx.needs_input_grad, gradients, strict=False)
        return (*(gradient if wanted else None for wanted, gradient in pairs), None, None)


def can_repeat(node: Any) -> bool:
    """Whether a tensor's node is a norm's that holds all that its output follows from.

    A residual would be one more large tensor to keep, or to compute again in turn.
    """
    # By its attributes: the node is an instance of a class that PyTorch makes from _Node.
    return hasattr(node, "engine_saved") and node.holds_x and not node.has_residual


class Repeat:
    """All that the output of a norm's node follows from, whatever becomes of the node.

    Args:
        node: one that :func:`can_repeat`.
    """

    __slots__ = ("_saved", "_version", "_x")

    def __init__(self, node: Any) -> None:
        x, gamma, beta, *_ = node.saved_tensors
        # Parameters are small, and an optimizer may move them.
        gamma, beta = (None if p is None else p.detach().clone() for p in (gamma, beta))
        call = replace(node.engine_saved.call, gamma=gamma, beta=beta, prepared=None)
        self._saved = replace(node.engine_saved, call=call)
        self._x, self._version = x.detach(), x._version

    def output(self) -> Tensor:
        """The output once more.

        Raises:
            RuntimeError: the input was changed in place.
        """
        check_version(self._x, self._version)
        with torch.no_grad():
            saved = replace(self._saved, call=replace(self._saved.call, x=self._x))
            return _in_format_of(self._x, engine.output_again(saved))


def check_lengths(lengths: Any, most: int) -> None:
    """Lengths lie within the positions, where they can be looked at.

    Raises:
        OptionError: they do not.
    """
    if not isinstance(lengths, Tensor) or lengths.device.type == "meta" or not lengths.numel():
        return
    low, high = int(lengths.min()), int(lengths.max())
    if low < 0 or high > most:
        raise OptionError(
            "lengths= lie outside the input",
            received=f"lengths from {low} to {high}",
            expected=f"0 to {most}, the size of the first position axis",
            remedy="Check that lengths belong to this input, behind strides and pooling.",
        )


def check_version(tensor: Tensor, version: int) -> None:
    """What was kept for backward is still as it was.

    Raises:
        RuntimeError: it was changed in place, in PyTorch's words.
    """
    if tensor._version != version:
        raise RuntimeError(
            "one of the variables needed for gradient computation has been modified by an inplace "
            f"operation: a tensor of shape {tuple(tensor.shape)} is at version {tensor._version}; "
            f"expected version {version} instead. Leave inplace=True away, or clone it first."
        )


def _gradients(
    ctx: Any, dy: Tensor, x: Any, gamma: Any, beta: Any, residual: Any
) -> tuple[Any, ...]:
    saved, norm, reducer = ctx.engine_saved, ctx.plan.norm, ctx.plan.reducer
    # A copy: several threads may walk one graph.
    call = replace(saved.call, x=x, gamma=gamma, beta=beta, residual=residual, prepared=None)
    saved = replace(saved, call=call)
    if is_batched(dy):  # vmap over gradients: the kernels cannot see through it
        saved = _on_operators(saved)
    if reducer is None or not saved.taken:
        grads = engine.backward(norm, dy, saved)
    else:
        sums = engine.gradient_sums(norm, dy, saved)
        dz, dzx = reducer.sums(torch.as_tensor(sums.dz), torch.as_tensor(sums.dzx))
        if saved.backend.namespace() is np:
            sums = replace(sums, dz=_numbers(dz), dzx=_numbers(dzx))
        else:
            sums = replace(sums, dz=dz, dzx=dzx)
        grads = engine.gradient_apply(norm, dy, saved, sums)
    return grads.x, grads.gamma, grads.beta, grads.residual


def _on_operators(saved: Any) -> Any:
    """What forward saved, for a backward on PyTorch's operators."""
    if saved.backend is _PORTABLE:
        return saved
    dtype = _PORTABLE.statistics_dtype(saved.call)

    def tensor(values: Any) -> Any:
        return torch.from_numpy(np.array(values)).to(dtype) if np.ndim(values) else values

    names = ("count", "mean", "m2", "slope", "offset")
    numbers = {name: tensor(getattr(saved, name)) for name in names}
    return replace(saved, backend=_PORTABLE, **numbers)


def _gradients_by_operators(
    ctx: Any, dy: Tensor, x: Any, gamma: Any, beta: Any, residual: Any
) -> list[Any]:
    """The same as differentiable operators, for derivatives of derivatives."""
    plan = ctx.plan
    if not ctx.holds_x:
        x = torch.zeros_like(dy)
    inputs = [x, gamma, beta, residual]
    needs = ctx.needs_input_grad[:4]
    with torch.enable_grad():
        for i, needed in enumerate(needs):
            if needed and not inputs[i].requires_grad:  # it was not held, and does not matter
                inputs[i] = torch.zeros_like(dy).requires_grad_()
        # By aliases: one input may depend on another, and that way is counted outside this node.
        inputs = [
            value.view_as(value) if n else value for value, n in zip(inputs, needs, strict=True)
        ]
        wanted = [value for value, needed in zip(inputs, needs, strict=True) if needed]
        y, _ = run_by_operators(plan, *inputs)
        found = iter(torch.autograd.grad(y, wanted, dy, create_graph=True))
    return [next(found) if needed else None for needed in ctx.needs_input_grad[:4]]
