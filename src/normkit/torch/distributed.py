"""Statistics of all ranks of a process group, as one :class:`normkit.torch.calls.Reducer`.

Each rank's counts, means and M2 are gathered and merged in rank order in float64, so that all ranks
compute bitwise the same; a rank without elements counts for nothing and takes part all the same.
What is merged is differentiable any number of times: the gradient of a gather is the sum over the
ranks of what each wants of one's own part, and that of a sum is a sum.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import array_api_compat.torch as portable_torch
import torch
from torch import nn

from normkit.moments import Moments, merge_along
from normkit.torch.ghosts import Span
from normkit.torch.ranks import Header, Place, Ranks

__all__ = ["Line", "RankReducer", "name_layers"]

Tensor = torch.Tensor
_WIDE = torch.float64


def name_layers(model: nn.Module, prefix: str = "") -> list[str]:
    """Let the model's synchronized layers know their names, for :class:`normkit.errors.SyncError`.

    Without it, errors count the layers in the order of their first calls.

    Returns:
        The names.

    >>> import torch, normkit.torch as nt
    >>> from normkit.torch.layers.sync import SyncBatchNorm
    >>> name_layers(torch.nn.Sequential(torch.nn.Linear(2, 2), SyncBatchNorm(2)))
    ['1']
    """
    names = []
    for name, module in model.named_modules(prefix=prefix):
        place = getattr(module, "place", None)
        if isinstance(place, Place):
            place.name = name or type(module).__name__
            names.append(place.name)
    return names


# --- collectives as differentiable functions ------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Line:
    """A way to the other ranks.

    Args:
        group, size, rank: name of the process group, its ranks, and this one among them.
        ranks, header: for guarded collectives with headers in front; None where a compiler traces
            the collectives, which can look at no header.
    """

    group: str
    size: int
    rank: int
    ranks: Ranks | None = None
    header: Header | None = None

    def meet(self, phase: str, device: Any) -> None:
        """Make sure that all ranks are here, in this phase."""
        if self.ranks is not None and self.header is not None:
            self.ranks.meet(replace(self.header, phase=phase), device)

    def gather(self, values: Tensor) -> Tensor:
        """Values of all ranks, stacked in a new first axis."""
        if self.ranks is not None and self.header is not None:
            return self.ranks.gather(values, self.header)
        ops = torch.ops._c10d_functional
        table = ops.all_gather_into_tensor(values.contiguous().view(-1), self.size, self.group)
        return ops.wait_tensor(table).view(self.size, *values.shape)

    def total(self, values: Tensor, phase: str) -> Tensor:
        """Sum of all ranks' values, once they have met."""
        if self.ranks is not None and self.header is not None:
            self.meet(phase, values.device)
            return self.ranks.total(values, replace(self.header, phase=phase))
        ops = torch.ops._c10d_functional
        return ops.wait_tensor(ops.all_reduce(values.contiguous(), "sum", self.group))


class _Gather(torch.autograd.Function):
    """All ranks' values, on each of them."""

    @staticmethod
    def forward(values: Tensor, line: Line) -> Tensor:
        return line.gather(values)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:  # noqa: ARG004
        ctx.line = inputs[1]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        line = ctx.line
        return _Total.apply(gradient, line, "backward through operators")[line.rank], None


class _Total(torch.autograd.Function):
    """The sum of all ranks' values, on each of them."""

    @staticmethod
    def forward(values: Tensor, line: Line, phase: str) -> Tensor:
        return line.total(values, phase)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:  # noqa: ARG004
        ctx.line = inputs[1]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        return _Total.apply(gradient, ctx.line, "second backward"), None, None


# --- the reducer ----------------------------------------------------------------------------------


class RankReducer:
    """Merges the statistics of one forward, and the sums of its backward, with all ranks'.

    Args:
        line: the way to the others; its header has been exchanged already.
        span: which ghost batches of the whole batch this rank's sets are; None where all of the
            batch is one set.
        smallest: elements in the smallest set of the whole batch; 0 where that is not known.
        masked: whether any rank has a mask.
    """

    def __init__(
        self, line: Line, span: Span | None = None, smallest: int = 0, masked: bool = True
    ) -> None:
        self.line, self.span = line, span
        self.smallest, self.masked = smallest, masked
        self._met = True

    def moments(self, moments: Moments) -> Moments:
        """Of the union; see :class:`normkit.torch.calls.Reducer`."""
        mean = moments.mean.to(_WIDE)
        if not self._met:
            self.line.meet("forward again for second derivatives", mean.device)
        self._met = False
        packed = torch.stack([_counts(moments), mean, moments.m2.to(_WIDE)], -2)
        if self.span is None:
            return _merge(_Gather.apply(packed, self.line))
        ends = _Gather.apply(self.span.ends(packed), self.line)
        merged = [torch.stack(_triple(_merge(own)), -2) for own in self.span.matching(ends)]
        return Moments(*self.span.placed(packed, merged).unbind(-2))

    def sums(self, dz: Tensor, dzx: Tensor) -> tuple[Tensor, Tensor]:
        """Sums over all ranks; once differentiable no more."""
        packed = torch.stack([dz.to(_WIDE), dzx.to(_WIDE)], -2)
        if self.span is None:
            whole = self.line.total(packed, "backward")
        else:
            self.line.meet("backward", packed.device)
            ends = self.line.gather(self.span.ends(packed))
            own = [same.sum(0) for same in self.span.matching(ends)]
            whole = self.span.placed(packed, own)
        first, second = whole.unbind(-2)
        return first, second

    def whole(self, moments: Moments) -> Moments:
        """Of the whole batch, from :meth:`moments` of ghost batches: each counts once."""
        assert self.span is not None
        count = torch.where(self.span.owned(moments.mean), _counts(moments), 0.0)
        sets = torch.stack([count, moments.mean.to(_WIDE), moments.m2.to(_WIDE)], -2)
        self.line.meet("update of the running statistics", sets.device)
        return _merge(self.line.gather(torch.stack(_triple(_merge(sets)), -2)))


def _counts(moments: Moments) -> Tensor:
    """Counts as wide as the means, whoever has a mask."""
    mean = moments.mean
    return torch.as_tensor(moments.count, dtype=_WIDE, device=mean.device).expand(mean.shape)


def _triple(moments: Moments) -> tuple[Tensor, Tensor, Tensor]:
    return moments.count, moments.mean, moments.m2


def _merge(table: Tensor) -> Moments:
    """Moments of the union along the first axis of (parts, 3, C)."""
    count, mean, m2 = table.unbind(-2)
    # What has no elements has no say, whatever rounding, NaN or infinity left in it.
    mean, m2 = (torch.where(count > 0, values, 0.0) for values in (mean, m2))
    total = count.sum(0)
    return Moments(total, *merge_along(portable_torch, count, mean, m2, 0, total.clamp(min=1)))
