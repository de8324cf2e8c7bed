"""Passes over the data, in which norms are measured."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from normkit.errors import DataError, NonFiniteError
from normkit.models.batches import Batch, Forward, batches_of, call, count_of
from normkit.models.progress import track
from normkit.models.recalibration.averages import Reading
from normkit.models.recalibration.levels import levels_of
from normkit.models.recalibration.listening import Heard, listening
from normkit.models.recalibration.target import Target
from normkit.models.recalibration.team import Team

__all__ = ["Passes"]

Tensor = torch.Tensor


@dataclass(eq=False)
class Passes:
    """The model, its data, and what has been seen of them.

    Args:
        targets: the norms by name, which collect what they are called with.
        batches, skipped: of one pass.
    """

    model: nn.Module
    data: Any
    targets: Mapping[str, Target]
    team: Team
    forward: Forward | None
    limit: int | None
    on_nonfinite: str
    progress: bool | None
    batches: int = 0
    skipped: int = 0
    number: int = 0

    def levels(self, layerwise: bool) -> list[list[str]]:
        """The layers that each pass is to measure.

        Raises:
            DataError: several passes, and data that can be read once.
        """
        names = list(self.targets)
        if not layerwise:
            return [names]
        with self.team.step():
            if isinstance(self.data, Iterator):
                raise DataError(
                    "layerwise=True reads the data several times",
                    received=f"an iterator, {type(self.data).__name__}",
                    expected="data that can be iterated again",
                    remedy="Pass a DataLoader, a list, or a function that makes a new iterator.",
                )
            calls = self._calls()
        levels, loops = levels_of(self.model, [names[n] for n in self.team.first(calls)])
        for name in loops:
            self.targets[name].note = (
                "called several times in one run of the model; where one call follows from "
                "another, its statistics are close to those of eval mode, not the same"
            )
        return levels or [names]

    def _calls(self) -> list[int]:
        """Which norms the first batch calls, in order; by number, to travel to other ranks."""
        heard: list[str] = []
        names = list(self.targets)
        with self._listening(names, lambda name, *_: heard.append(name)):
            for batch in itertools.islice(self._filled(None), 1):
                call(self.model, batch, self.forward)
        return [names.index(name) for name in heard]

    def measure(self, level: list[str], words: str) -> None:
        """One pass.

        Raises:
            DataError, NonFiniteError: see ``recalibrate()``.
        """
        heard: list[tuple[str, int | None, Reading]] = []
        seen = skipped = 0
        total = self.limit or count_of(self.data)
        with self._listening(level, lambda *call: heard.append(call)):
            for batch in track(self._filled(total), words, total, self.progress):
                heard.clear()
                call(self.model, batch, self.forward)
                seen += 1
                bad = next((name for name, _, reading in heard if not _is_finite(reading)), None)
                if bad is None:
                    for name, domain, reading in heard:
                        self.targets[name].add(domain, reading)
                elif self.on_nonfinite == "raise":
                    raise _nonfinite(bad, seen)
                else:
                    skipped += 1
        if self.number and seen != self.batches:
            raise DataError(
                "The data changed between two passes; nothing was changed",
                received=f"{self.batches} batches, then {seen}",
                expected="the same in each pass",
                remedy="Pass data that can be iterated again, in the same way.",
            )
        self.batches, self.skipped = seen, max(skipped, self.skipped)
        self.number += 1

    def _listening(self, names: list[str], heard: Heard) -> AbstractContextManager[None]:
        stored = {name: (self.targets[name].mean, self.targets[name].var) for name in names}
        return listening([self.targets[name].site for name in names], stored, heard)

    def _filled(self, total: int | None) -> Iterator[Batch]:
        """The batches that have samples.

        Raises:
            DataError: there are fewer than ``total`` with and without.
        """
        own = self.forward is None
        source = batches_of(
            self.data,
            like=self.model if own else None,
            opaque=not own,
            required=self.team.alone,
        )
        number = 0
        for batch in itertools.islice(source, self.limit):
            number += 1
            if not _is_empty(batch):
                yield batch
        if total is not None and number != total and (number or self.team.alone):
            early = "ended early" if number < total else "went on behind their end"
            raise DataError(
                f"The data {early}; nothing was changed",
                received=f"{number} batches",
                expected=f"{total}, " + ("as limit= asks" if self.limit else "by their length"),
                remedy="Look for what stopped them, or say how many with limit=.",
            )


def _is_empty(batch: Batch) -> bool:
    tensors = [v for v in (*batch.args, *batch.kwargs.values()) if isinstance(v, Tensor)]
    return bool(tensors) and batch.samples == 0 and any(t.dim() for t in tensors)


def _is_finite(reading: Reading) -> bool:
    moments = reading.moments
    return bool((torch.isfinite(moments.mean) & torch.isfinite(moments.m2)).all())


def _nonfinite(name: str, number: int) -> NonFiniteError:
    return NonFiniteError(
        "A norm met NaN or infinity; nothing was changed",
        received=f"such values at {name!r} in batch {number}",
        expected="finite values",
        remedy='Look at this batch, or leave such ones out: on_nonfinite="skip".',
    )
