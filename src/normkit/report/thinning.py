"""Long lines made short: what a screen cannot show is left out, but no peak and no gap."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from normkit.report.scales import drawable

__all__ = ["MOST", "thinned"]

MOST = 200  # points of a line: one for two or three pixels of a chart


def thinned(
    x: Sequence[float],
    *values: Sequence[float],
    most: int = MOST,
    log_x: bool = False,
    log_y: bool = False,
) -> list[int]:
    """Which points to keep, in their order.

    The axis is cut into stretches as wide as each other on the screen. Of each stretch, the lowest
    and the highest point of all values are kept, and the first that cannot be drawn, which is a
    gap; and the ends of the line.

    Args:
        values: those at each x: of a line, or of a line and the ends of its band.
        log_x, log_y: logarithmic axes.

    >>> thinned(range(1000), [float(i == 471) for i in range(1000)], most=20).count(471)
    1
    """
    if len(x) <= most:
        return list(range(len(x)))
    # As many stretches as can be had: extremes often fall together, and then there is room.
    counts = sorted({most // share for share in (2, 3, 4, 5, 6, 8, 12, 20)} | {1}, reverse=True)
    for count in counts:
        kept = _kept(_stretches(x, count, log_x), values, log_y)
        if len(kept) <= most:
            return kept
    return kept


def _stretches(x: Sequence[float], count: int, log: bool) -> list[list[int]]:
    """The points of each stretch; by number where the line turns back, or x is not known."""
    size = math.log10 if log else float
    drawn = [size(v) if drawable(v, log) else math.nan for v in x]
    ascending = all(a <= b for a, b in itertools.pairwise(drawn))
    at = drawn if ascending and drawn[0] < drawn[-1] else [float(i) for i in range(len(x))]
    step = (at[-1] - at[0]) / count
    found: list[list[int]] = [[] for _ in range(count)]
    for i, place in enumerate(at):
        found[min(int((place - at[0]) / step), count - 1)].append(i)
    return found


def _kept(
    stretches: Sequence[Sequence[int]], values: Sequence[Sequence[float]], log: bool
) -> list[int]:
    kept = {0, sum(map(len, stretches)) - 1}
    for points, of in itertools.product(stretches, values):
        known = [i for i in points if drawable(of[i], log)]
        if known:
            kept |= {min(known, key=of.__getitem__), max(known, key=of.__getitem__)}
        kept |= set(itertools.islice((i for i in points if not drawable(of[i], log)), 1))
    return sorted(kept)
