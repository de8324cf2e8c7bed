"""The few statistics that the results need, and the shape they are kept in."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypedDict


class Summary(TypedDict):
    """Samples of one quantity: what is kept of them."""

    median: float
    min: float
    max: float
    n: int


def summarise(samples: Sequence[float]) -> Summary:
    if not samples:
        raise ValueError("got no samples; expected at least one")
    return Summary(
        median=statistics.median(samples), min=min(samples), max=max(samples), n=len(samples)
    )


def geometric_mean(ratios: Iterable[float]) -> float:
    """The mean of speed-ups: halving one time and doubling another gives 1."""
    values = list(ratios)
    if not values:
        raise ValueError("got no ratios; expected at least one")
    if min(values) <= 0:
        raise ValueError(f"got the ratio {min(values)}; expected positive ratios")
    return math.exp(math.fsum(map(math.log, values)) / len(values))


def spread(summary: Summary) -> float:
    """How far the samples reach, as a share of their median."""
    return (summary["max"] - summary["min"]) / summary["median"]


def repetitions(step_seconds: float, round_seconds: float, least: int, most: int = 5000) -> int:
    """How many steps make up one round of about `round_seconds`."""
    return max(least, min(most, round(round_seconds / max(step_seconds, 1e-9))))


def in_turn(calls: Sequence[Callable[[], Any]], rounds: int, warm: int) -> list[float]:
    """Median seconds of each, taken in turn, so that other work beside meets all alike.

    Args:
        rounds: that count; `warm` before them do not, as the first ones compile.
    """
    taken: list[list[float]] = [[] for _ in calls]
    for turn in range(warm + rounds):
        for call, seconds in zip(calls, taken, strict=True):
            start = time.perf_counter()
            call()
            if turn >= warm:
                seconds.append(time.perf_counter() - start)
    return [statistics.median(seconds) for seconds in taken]
