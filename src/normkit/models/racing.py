"""Which of several ways is faster, taken in turns."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["race"]


def race(ways: Mapping[str, Callable[[], Any]], seconds: float = 1.0) -> dict[str, float]:
    """The median milliseconds of each way, taken in turns, so that a busy machine slows them alike.

    Args:
        ways: what is called, by name.
        seconds: for all of them together; each runs three times at least, after one that is not
            counted.

    >>> sorted(race({"a": lambda: None, "b": lambda: None}, seconds=0.01))
    ['a', 'b']
    """
    for way in ways.values():
        way()
    taken: dict[str, list[float]] = {name: [] for name in ways}
    end, rounds = time.perf_counter() + seconds, 0
    while rounds < 3 or time.perf_counter() < end:
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            taken[name].append(time.perf_counter() - start)
        rounds += 1
    return {name: statistics.median(times) * 1e3 for name, times in taken.items()}
