"""From the numbers of some seeds to a verdict."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal

from normkit.lab.claim import Claim, Number
from normkit.lab.results import Record
from normkit.words import counted

__all__ = ["SEEDS", "Judged", "Outcome", "judge"]

#: Fewer seeds than this give no verdict.
SEEDS = 3

Status = Literal["reproduced", "not reproduced", "reported", "first look", "not run"]


@dataclass(frozen=True)
class Outcome:
    """One number over the seeds.

    Args:
        number: what was measured.
        values: by seed, in their order.
    """

    number: Number
    values: tuple[float, ...]

    @property
    def median(self) -> float:
        """NaN where there are no seeds, or one of them is NaN."""
        if not self.values or any(map(math.isnan, self.values)):
            return math.nan
        return median(self.values)

    @property
    def low(self) -> float:
        """The smallest; NaN where there are none, or one of them is."""
        return math.nan if math.isnan(self.median) else min(self.values)

    @property
    def high(self) -> float:
        """The largest; NaN likewise."""
        return math.nan if math.isnan(self.median) else max(self.values)

    @property
    def held(self) -> int:
        """Seeds whose value is within the bounds."""
        return sum(map(self.number.holds, self.values))

    @property
    def shown(self) -> str:
        """The median, and the spread where there is one."""
        number = self.number
        if not self.values:
            return "-"
        if math.isnan(self.median):
            broken = sum(map(math.isnan, self.values))
            return f"{number.shown(math.nan)} ({broken} of {counted(len(self.values), 'seed')})"
        middle = number.shown(self.median)
        low, high = number.shown(self.low), number.shown(self.high)
        return middle if low == high else f"{middle} ({low} to {high})"


@dataclass(frozen=True)
class Judged:
    """A claim and what came of it.

    Args:
        claim: what was tried.
        records: one a seed, in the order of seeds.
        outcomes: one a number, in the claim's order.
    """

    claim: Claim
    records: tuple[Record, ...]
    outcomes: tuple[Outcome, ...]

    @property
    def status(self) -> Status:
        """Reproduced if every criterion holds for every seed, of which there are at least three."""
        if not self.records:
            return "not run"
        if not self.claim.criteria:
            return "reported"
        if len(self.records) < SEEDS or any(record.quick for record in self.records):
            return "first look"
        return "reproduced" if self.held == len(self.records) else "not reproduced"

    @property
    def held(self) -> int:
        """Seeds for which every criterion holds."""
        tests = [one for one in self.outcomes if one.number.is_criterion]
        return sum(
            all(one.number.holds(one.values[i]) for one in tests) for i in range(len(self.records))
        )

    @property
    def words(self) -> str:
        """The status with the seeds behind it."""
        seeds = counted(len(self.records), "seed")
        if self.status in ("reported", "not run"):
            return f"{self.status}, {seeds}" if self.records else self.status
        which = f"the criterion holds in {self.held} of {seeds}"
        return f"{self.status}: {which}"


def judge(claim: Claim, records: Sequence[Record]) -> Judged:
    """What the records of a claim come to; those of other claims are not looked at."""
    own = sorted((r for r in records if r.claim == claim.name), key=lambda record: record.seed)
    outcomes = tuple(
        Outcome(number, tuple(record.numbers.get(number.name, math.nan) for record in own))
        for number in claim.numbers
    )
    return Judged(claim, tuple(own), outcomes)
