"""What a target is, and the ratios that most of them are about."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Row = dict[str, Any]
Results = dict[str, Any]


@dataclass(frozen=True)
class Measured:
    """The judged number, and what to know beside it."""

    value: float
    note: str = ""


@dataclass(frozen=True)
class Target:
    """One promise: the measured value is at least, or at most, the goal."""

    group: str
    text: str
    goal: float
    measure: Callable[[Results], Measured | None]
    at_most: bool = False
    unit: str = "×"

    def met(self, measured: Measured) -> bool:
        return measured.value <= self.goal if self.at_most else measured.value >= self.goal

    def verdict(self, measured: Measured | None) -> str:
        if measured is None:
            return "not measured"
        if self.met(measured):
            return "met"
        return f"**missed by {abs(measured.value / self.goal - 1):.1%}**"

    def show(self, value: float) -> str:
        return f"{value:.2f}{self.unit}"

    @property
    def goal_text(self) -> str:
        return f"{'≤' if self.at_most else '≥'} {self.goal:g}{self.unit}"


def ratio(row: Row, over: str, under: str, quantity: str) -> float | None:
    """How many times longer `over` takes than `under`, by medians; None where one is missing."""
    times = row["times"]
    if over not in times or under not in times:
        return None
    return times[over][quantity]["median"] / times[under][quantity]["median"]
