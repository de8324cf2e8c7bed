"""An axis: the range that values take, and round numbers in it with their labels."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

__all__ = ["Scale", "drawable", "scale"]

MOST_TICKS = 5
LEAST, LARGEST = 1e-300, 1e300  # beyond these, a range has no length or no logarithm
SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True)
class Scale:
    """From ``low`` to ``high``, with ticks between them."""

    low: float
    high: float
    log: bool
    ticks: Sequence[float]
    labels: Sequence[str]

    def share(self, value: float) -> float:
        """0 at the low end, 1 at the high one."""
        low, high, at = (self.low, self.high, value)
        if self.log:
            low, high, at = math.log10(low), math.log10(high), math.log10(value)
        return (at - low) / (high - low)


def drawable(value: float, log: bool) -> bool:
    """Whether a value has a place on an axis."""
    return abs(value) <= LARGEST and not (log and value < LEAST)  # false for NaN


def scale(values: Iterable[float], log: bool, pad: float = 0.04) -> Scale | None:
    """The axis for these values; None where none of them can be drawn.

    >>> axis = scale([0.0, 9.0], log=False)
    >>> axis.ticks, round(axis.share(4.5), 9)
    ([0.0, 2.0, 4.0, 6.0, 8.0], 0.5)
    >>> scale([0.02, 300.0], log=True).labels
    ['10⁻¹', '1', '10', '10²']
    """
    kept = [float(v) for v in values if drawable(v, log)]
    if not kept:
        return None
    low, high = _log_range(kept, pad) if log else _range(kept, pad)
    ticks, labels = _log_ticks(low, high) if log else _ticks(low, high)
    return Scale(low, high, log, ticks, labels)


def _range(values: Sequence[float], pad: float) -> tuple[float, float]:
    low, high = min(values), max(values)
    room = (high - low) * pad
    if high - low <= 1e-12 * max(abs(low), abs(high)):  # one value, as far as a plot can show
        room = abs(high) * 0.1 or 1.0
    return low - room, high + room


def _log_range(values: Sequence[float], pad: float) -> tuple[float, float]:
    low, high = math.log10(min(values)), math.log10(max(values))
    room = max((high - low) * pad, 0.05)
    return 10 ** (low - room), 10 ** (high + room)


def _ticks(low: float, high: float) -> tuple[list[float], list[str]]:
    step = _step((high - low) / MOST_TICKS)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    ticks = [number * step for number in range(first, last + 1)]
    return ticks, [_label(tick, step) for tick in ticks]


def _step(least: float) -> float:
    """1, 2 or 5 times a power of ten, and no smaller than ``least``."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(n * power for n in (1, 2, 5, 10) if n * power >= least * (1 - 1e-9))


def _label(value: float, step: float) -> str:
    """As many digits as tell two ticks apart."""
    if value == 0:
        return "0"
    fine = math.floor(math.log10(step) + 1e-9)
    if 1e-4 <= abs(value) < 1e6 and fine >= -6:
        text = f"{value:.{max(-fine, 0)}f}"
    else:
        digits = max(math.floor(math.log10(abs(value))) - fine, 0)
        mantissa, _, exponent = f"{value:.{digits}e}".partition("e")
        text = f"{mantissa}e{int(exponent)}"
    return text.replace("-", "−")


def _log_ticks(low: float, high: float) -> tuple[list[float], list[str]]:
    """Powers of ten; 1, 2 and 5 times them where there are few; else plain steps."""
    first, last = math.ceil(math.log10(low)), math.floor(math.log10(high))
    if last - first >= 2:
        every = -(-(last - first + 1) // MOST_TICKS)
        powers = range(first, last + 1, every)
        return [10.0**p for p in powers], [_power(p) for p in powers]
    fine = [n * 10.0**p for p in range(first - 1, last + 1) for n in (1, 2, 5)]
    fine = [tick for tick in fine if low <= tick <= high]
    if len(fine) >= 2:
        return fine, [_label(tick, tick) for tick in fine]
    return _ticks(low, high)


def _power(exponent: int) -> str:
    if exponent in (0, 1):
        return str(10**exponent)
    return "10" + str(exponent).translate(SUPERSCRIPT)
