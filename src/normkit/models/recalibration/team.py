"""The ranks that recalibrate together: what each has seen is merged, and all change or none."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

import torch

from normkit.errors import OptionError, SyncError
from normkit.models.recalibration.averages import Average
from normkit.torch.ranks import Header, group_of, ranks_of

__all__ = ["Team", "team_of"]

Tensor = torch.Tensor


class Team:
    """One process, which has nobody to ask."""

    alone = True

    @contextmanager
    def step(self) -> Iterator[None]:
        """A part of the work after which all ranks meet; if it fails on one, it fails on all."""
        yield

    def merge(self, averages: Sequence[Average]) -> None:
        """Make each average that of all ranks."""

    def first(self, calls: list[int]) -> list[int]:
        """What the first rank that has anything says."""
        return calls


class _Ranks(Team):
    alone = False

    def __init__(self, group: Any, what: str, device: Any) -> None:
        self._ranks, self._device = ranks_of(group), device
        self._header = Header(what, "recalibration")

    @contextmanager
    def step(self) -> Iterator[None]:
        try:
            yield
        except Exception:
            with suppress(SyncError):
                self._meet(failed=True)
            raise
        self._meet()

    def _meet(self, failed: bool = False) -> None:
        """Come together; ``samples`` of the header says who has failed.

        Raises:
            SyncError: another rank has, or does not come.
        """
        call = self._header.call + 1
        self._header = replace(self._header, call=call)
        headers = self._ranks.meet(replace(self._header, samples=int(failed)), self._device)
        lost = tuple(m for m, h in zip(self._ranks.members, headers, strict=True) if h.samples)
        if lost and not failed:
            raise SyncError(
                "Another rank could not do its part; nothing was changed",
                received=f"an error on rank {', '.join(map(str, lost))}",
                expected="all ranks to read their data",
                remedy="See that rank's error.",
                layer=self._header.layer,
                ranks=lost,
            )

    def merge(self, averages: Sequence[Average]) -> None:
        rows = [a.pack().to(self._ranks.device_for(self._device)) for a in averages]
        if not rows:
            return
        table = self._ranks.gather(torch.cat(rows), self._header)
        for average, part in zip(averages, table.split([len(r) for r in rows], 1), strict=True):
            average.merge(part)

    def first(self, calls: list[int]) -> list[int]:
        table = self._gather(calls, self.most(len(calls)))
        chosen = next((row for row in table if row[0] >= 0), [])
        return [number for number in chosen if number >= 0]

    def most(self, number: int) -> int:
        return max(row[0] for row in self._gather([number], 1))

    def _gather(self, numbers: list[int], length: int) -> list[list[int]]:
        padded = torch.tensor(numbers + [-1] * (max(length, 1) - len(numbers)))
        device = self._ranks.device_for(self._device)
        return self._ranks.gather(padded.to(device), self._header, needed=True).tolist()


def team_of(group: Any, words: Iterable[str], what: str, method: str, device: Any) -> Team:
    """The team of a process group: all ranks for None, nobody for False.

    Args:
        words: what must be alike on all ranks.
        what: is recalibrated, for messages.

    Raises:
        OptionError: the method has no meaning over several ranks.
    """
    found = None if group is False else group_of(group)
    if found is None:
        return Team()
    if method == "ema":
        raise OptionError(
            "A running average has no order over several ranks",
            received='method="ema"',
            expected='"population" or "cumulative"',
            remedy="group=False lets each rank follow its own batches.",
        )
    mark = zlib.crc32(repr(list(words)).encode())
    return _Ranks(found, f"recalibration of {what}, checksum {mark:08x}", device)
