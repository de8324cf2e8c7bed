"""Which of several ways is faster, taken in turns."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["duel", "race"]


def race(ways: Mapping[str, Callable[[], Any]], seconds: float = 1.0) -> dict[str, float]:
    """The median milliseconds of each way, taken in turns, so that a busy machine slows them alike.

    Args:
        ways: what is called, by name.
        seconds: for all of them together; each runs three times at least, after one that is not
            counted.

    >>> sorted(race({"a": lambda: None, "b": lambda: None}, seconds=0.01))
    ['a', 'b']
    """
    taken = _taken(ways, seconds, 3)
    return {name: statistics.median(times) * 1e3 for name, times in taken.items()}


def duel(
    before: Callable[[], Any], after: Callable[[], Any], seconds: float = 1.0
) -> tuple[float, float, bool]:
    """The seconds of a call of each, and whether they differ by more than chance.

    Where others use the machine too, a call takes longer but never shorter: each has the lower
    quartile of its times. They differ where in three rounds of four the same one is faster.

    >>> duel(lambda: sum(range(50_000)), lambda: None, seconds=0.05)[2]
    True
    """
    taken = _taken({"before": before, "after": after}, seconds, 7)
    ratios = [b / a for a, b in zip(taken["before"], taken["after"], strict=True)]
    low, _, high = statistics.quantiles(ratios, n=4)
    usual = {name: statistics.quantiles(times, n=4)[0] for name, times in taken.items()}
    one_side = (usual["after"] - usual["before"]) * (low - 1) > 0
    return usual["before"], usual["after"], not low <= 1 <= high and one_side


def _taken(
    ways: Mapping[str, Callable[[], Any]], seconds: float, least: int
) -> dict[str, list[float]]:
    """The seconds of each call: by turns, after one that is not counted."""
    for way in ways.values():
        way()
    taken: dict[str, list[float]] = {name: [] for name in ways}
    end, rounds = time.perf_counter() + seconds, 0
    while rounds < least or time.perf_counter() < end:
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            taken[name].append(time.perf_counter() - start)
        rounds += 1
    return taken
