"""Running statistics of ranks that trained apart, merged into those of all that any of them saw."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from normkit.torch.ranks import Header, group_of, ranks_of
from normkit.torch.statistics import RunningStatistics

__all__ = ["sync_statistics"]

Tensor = torch.Tensor
_WIDE = torch.float64


def sync_statistics(model: nn.Module, process_group: Any = None) -> dict[str, RunningStatistics]:
    """Merge the ranks' running statistics, in place, before an evaluation or a checkpoint.

    For layers that are not synchronized while they train, torch.nn's and normkit's: each rank's
    have seen its own samples only. The merged variance has the spread of the ranks' means in it.
    A layer with ``running="population"`` comes out as if one process had seen all elements, also
    when ranks go on training and merge again: what they had in common counts once. In other layers
    a rank weighs as much as the batches that it saw (``num_batches_tracked``, of which the largest
    is kept).

    All ranks must call it; all layers travel together, and either all are changed or none.
    Batches that :func:`normkit.torch.hold_statistics` holds are not in it before their commit.

    Args:
        model: the same on all ranks, but for the values.
        process_group: the ranks that merge; all of them by default.

    Returns:
        What changed: the layers whose statistics differed between the ranks, by name, with this
        rank's statistics as they were. Nothing without several ranks.

    Raises:
        SyncError: the ranks' models differ, or a rank does not come.

    >>> import torch, normkit.torch as nt
    >>> from normkit.torch.merging import sync_statistics
    >>> sync_statistics(nt.BatchNorm1d(3))
    {}
    """
    group = group_of(process_group)
    if group is None:
        return {}
    ranks, kept = ranks_of(group), list(_kept(model))
    words = [(k.name, tuple(k.state.var.shape), k.population) for k in kept]
    mark = zlib.crc32(repr(words).encode())
    what = f"sync_statistics of {type(model).__name__}, {len(kept)} layers, checksum {mark:08x}"
    header = Header(what, "sync_statistics")
    device = ranks.device_for(kept[0].state.var.device if kept else torch.device("cpu"))
    ranks.meet(header, device)
    if not kept:
        return {}
    with torch.no_grad():
        packed = [k.pack().to(device) for k in kept]
        table = ranks.gather(torch.cat(packed), header)
        parts = table.split([values.numel() for values in packed], 1)
        merged = [k.merge(rows) for k, rows in zip(kept, parts, strict=True)]
        # Nothing has been written yet; nobody writes unless all ranks have come this far.
        ranks.meet(replace(header, call=1), device)
        changed = {}
        for k, new in zip(kept, merged, strict=True):
            if new is not None:
                changed[k.name] = k.write(new)
            if k.population:
                k.remember()
    return changed


def _kept(model: nn.Module) -> Iterator[_Kept]:
    for name, module in model.named_modules():
        var = module._buffers.get("running_var")
        if var is not None and not nn.parameter.is_lazy(var):
            yield _Kept.of(name, module)


@dataclass(frozen=True, eq=False)
class _Kept:
    """One layer's running statistics, whatever it is made of.

    Shapes: (C,), or (D, C) for D domains.
    """

    name: str
    module: Any
    state: RunningStatistics  # the buffers themselves; zeros for one that is missing
    population: bool

    @classmethod
    def of(cls, name: str, module: Any) -> _Kept:
        buffers = module._buffers
        var = buffers["running_var"]
        mean, batches = buffers.get("running_mean"), buffers.get("num_batches_tracked")
        mean = torch.zeros_like(var) if mean is None else mean
        batches = torch.ones((), dtype=torch.int64) if batches is None else batches
        elements = buffers.get("num_elements_tracked")
        return cls(
            name, module, RunningStatistics(mean, var, batches, elements), elements is not None
        )

    def pack(self) -> Tensor:
        """weights, mean, var, batches, and what the ranks may have had in common before."""
        state, like = self.state, self.state.var
        batches = state.batches.to(like.device)
        batches = batches.view(batches.shape + (1,) * (like.dim() - batches.dim())).expand_as(like)
        weights = batches if state.elements is None else state.elements
        found: list[Any] = [weights, state.mean, state.var, batches]
        if self.population:
            common = self.module.common_statistics
            none = [torch.zeros_like(like)] * 3
            found += none if common is None else [common.elements, common.mean, common.var]
        return torch.cat([values.to(like.device, _WIDE).reshape(-1) for values in found])

    def merge(self, rows: Tensor) -> RunningStatistics | None:
        """The merged statistics from all ranks' packed ones; None where these are all the same."""
        shape = self.state.var.shape
        parts = rows.reshape(len(rows), -1, shape.numel())
        if _same(parts[:, :4]):
            return None
        weights, means, variances, batches = parts[:, :4].unbind(1)
        if self.population:
            total, mean, var = _by_elements(weights, means, variances, parts[:, 4:])
        else:
            total, mean, var = _by_weights(weights, means, variances)
        mean = torch.where(total > 0, mean, means[0])
        var = torch.where(total > 0, var, variances[0])
        most = batches.amax(0).view(shape)[..., 0]  # the same for all channels
        return RunningStatistics(mean.view(shape), var.view(shape), most, total.view(shape))

    def write(self, new: RunningStatistics) -> RunningStatistics:
        """Put merged statistics in place; those before."""
        before = self._copy()
        for buffer, values in zip(self.state, new, strict=True):
            if buffer is not None and values is not None:
                buffer.copy_(values)
        return before

    def remember(self) -> None:
        """From now on all ranks have these in common."""
        self.module.common_statistics = self._copy()

    def _copy(self) -> RunningStatistics:
        copies: list[Any] = [None if values is None else values.clone() for values in self.state]
        return RunningStatistics(*copies)


def _same(rows: Tensor) -> bool:
    """Whether all rows are equal, bit for bit."""
    bits = rows.contiguous().view(torch.int64)
    return bool((bits == bits[:1]).all())


def _by_weights(weights: Tensor, means: Tensor, variances: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Total weight, mean and variance of a mixture of (ranks, C)."""
    total = weights.sum(0)
    share = weights / total.clamp(min=1)
    means, variances = (torch.where(weights > 0, v, 0.0) for v in (means, variances))
    mean = (share * means).sum(0)
    return total, mean, (share * (variances + (means - mean) ** 2)).sum(0)


def _by_elements(
    counts: Tensor, means: Tensor, variances: Tensor, common: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Count, mean and population variance of all elements; the common past counts once."""
    past = common[:1].unbind(1)
    signs = torch.ones_like(counts[:, :1])
    if _same(common) and bool((counts >= past[0]).all()):
        # One more part, which counts against the others as often as it is in them too often.
        signs = torch.cat([signs, 1.0 - signs.sum(0, keepdim=True)])
        found = zip((counts, means, variances), past, strict=True)
        counts, means, variances = (torch.cat(pair) for pair in found)
    means, variances = (torch.where(counts > 0, v, 0.0) for v in (means, variances))
    m2 = variances * (counts - 1).clamp(min=1) * (counts > 0)
    total = (signs * counts).sum(0)
    mean = (signs * counts * means).sum(0) / total.clamp(min=1)
    m2 = (signs * (m2 + counts * (means - mean) ** 2)).sum(0).clamp(min=0)
    return total, mean, m2 / (total - 1).clamp(min=1)
