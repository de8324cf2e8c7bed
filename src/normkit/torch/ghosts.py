"""Ghost batches of a batch that lies on several ranks.

The ghost batches of the whole batch, its samples in rank order, begin where they begin, whatever
ranks they lie on. Samples that count for nothing are put in front of a rank's own, so that its sets
are whole ones of the batch; then only its first and last set can have parts on other ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.nn import functional as F  # noqa: N812 - its usual name

from normkit.torch.calls import Plan

__all__ = ["Span", "smallest_set"]

Tensor = torch.Tensor


@dataclass(frozen=True, eq=False)
class Span:
    """Where a rank's samples lie in the whole batch.

    Args:
        ghost: samples in a ghost batch.
        samples: of this rank.
        before: samples of the ranks before it: a number, or a tensor where a compiler traces.
    """

    ghost: int
    samples: int
    before: Any

    @property
    def shift(self) -> Any:
        """Samples of this rank's first ghost batch that lie on ranks before it."""
        return self.before % self.ghost

    @property
    def length(self) -> int:
        """Samples with those in front."""
        traced = isinstance(self.before, Tensor)
        front = self.ghost - 1 if traced else self.shift
        return max(self.samples + front, 1)

    @property
    def moved(self) -> bool:
        """Whether samples have to be put in front."""
        return isinstance(self.before, Tensor) or self.length != self.samples

    # --- samples --------------------------------------------------------------------------------

    def pad(self, values: Tensor) -> Tensor:
        """(samples, ...) to (length, ...), zeros around."""
        rest = (0, 0) * (values.dim() - 1)
        if not isinstance(self.before, Tensor):
            return F.pad(values, (*rest, self.shift, self.length - self.samples - self.shift))
        around = F.pad(values, (*rest, self.ghost, self.ghost))
        rows = torch.arange(self.length, device=values.device) + self.ghost - self.shift
        return around.index_select(0, rows)

    def cut(self, values: Tensor) -> Tensor:
        """The inverse of :meth:`pad`."""
        if not isinstance(self.before, Tensor):
            return values[self.shift : self.shift + self.samples]
        rows = torch.arange(self.samples, device=values.device) + self.shift
        return values.index_select(0, rows)

    def pad_plan(self, plan: Plan, x: Tensor) -> Plan:
        """The plan for the longer x: what was put in front does not count."""
        if plan.lengths is not None:
            return replace(plan, lengths=self.pad(plan.lengths))  # of length 0
        mask = plan.mask
        if mask is None:
            mask = torch.ones((self.samples,) + (1,) * (x.dim() - 1), device=x.device).bool()
        return replace(plan, mask=self.pad(mask.expand(self.samples, *mask.shape[1:])))

    def pad_rows(self, values: Any) -> Any:
        """A call's weight, bias or residual, where it has a row for each sample."""
        rows = values is not None and values.dim() > 1 and values.shape[0] == self.samples
        return self.pad(values) if rows else values

    # --- sets -----------------------------------------------------------------------------------

    @property
    def _last(self) -> Any:
        """Index of this rank's last set with samples."""
        last = (self.shift + self.samples - 1) // self.ghost
        return last.clamp(min=0) if isinstance(last, Tensor) else max(last, 0)

    def _names(self, like: Tensor) -> Tensor:
        """Numbers in the whole batch of the first and last set; -1 for a last that is the first."""
        first = self.before // self.ghost
        names = _number(first, like), _number(first + self._last, like)
        return torch.stack([names[0], torch.where(names[0] == names[1], -1.0, names[1])])

    def ends(self, sets: Tensor) -> Tensor:
        """The first and last of sets (K, V, C), each with its number in front: (2, 1 + V, C)."""
        rows = torch.stack([_number(0, sets), _number(self._last, sets)]).to(torch.int64)
        names = self._names(sets)[:, None, None].expand(2, 1, sets.shape[-1])
        return torch.cat([names, sets.index_select(0, rows)], 1)

    def matching(self, ends: Tensor) -> list[Tensor]:
        """What all ranks have of this rank's first and last set, zeros elsewhere.

        Args:
            ends: of all ranks, (ranks, 2, 1 + V, C).

        Returns:
            Two of (2 * ranks, V, C).
        """
        flat = ends.flatten(0, 1)
        names, values = flat[:, :1], flat[:, 1:]
        return [torch.where(names == name, values, 0.0) for name in self._names(values)]

    def placed(self, sets: Tensor, ends: Sequence[Tensor]) -> Tensor:
        """The sets with the first and last replaced by the whole ones."""
        numbers = torch.arange(sets.shape[0], device=sets.device)[:, None, None]
        sets = torch.where(numbers == self._last, ends[1], sets)
        # Where the first is the last, its number has found all of it.
        return torch.where(numbers == 0, ends[0], sets)

    def owned(self, sets: Tensor) -> Tensor:
        """(K, 1): the sets that begin on this rank; each of the whole batch does on one."""
        numbers = torch.arange(sets.shape[0], device=sets.device)[:, None]
        begins = (_number(self.shift, sets) == 0) & (self.samples > 0)
        return (numbers > 0) | begins


def _number(value: Any, like: Tensor) -> Tensor:
    """A number or scalar tensor as a scalar in float64, which is exact for these."""
    return torch.as_tensor(value, dtype=torch.float64, device=like.device)


def smallest_set(brought: Sequence[tuple[int, int]], ghost: int) -> int:
    """Elements a channel in the smallest set of a batch that lies on several ranks.

    Args:
        brought: samples and positions of each rank.
        ghost: samples in a set; 0 for all.

    >>> smallest_set([(3, 10), (2, 10)], 0), smallest_set([(3, 10), (2, 20)], 4)
    (50, 20)
    """
    total = sum(samples for samples, _ in brought)
    if not ghost or not total:
        return sum(samples * positions for samples, positions in brought)
    begin = (total - 1) // ghost * ghost  # of the last set
    least, start = 0, 0
    for samples, positions in brought:
        least += max(start + samples - max(begin, start), 0) * positions
        start += samples
    if begin:
        least = min(least, ghost * min(positions for samples, positions in brought if samples))
    return least
