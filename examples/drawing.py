"""Pictures of the examples: a chart as SVG, which needs no library and suits light and dark pages.

A picture is written only where the command line names a file: python examples/NAME.py picture.svg
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from normkit.writing import check_output, write_whole

__all__ = ["Line", "chart", "keep"]

WIDTH, HEIGHT = 640, 320
LEFT, RIGHT, TOP, BOTTOM = 64, 16, 46, 48
#: Told apart with every common kind of colour blindness (after Okabe and Ito), and by dashes.
DASHES = ("none", "7 4", "2 3", "9 3 2 3")
LIGHT = ("#0072b2", "#d55e00", "#00805e", "#aa4499")
DARK = ("#56b4e9", "#f0883e", "#3fc79a", "#dd88cc")


@dataclass(frozen=True)
class Line:
    """Values over x under a name; with ``points``, dots that nothing joins."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    points: bool = False


def chart(title: str, x_label: str, y_label: str, lines: Sequence[Line]) -> str:
    """An SVG with one line or cloud of dots for each of at most four names."""
    if not 1 <= len(lines) <= len(DASHES):
        raise ValueError(f"a chart of {len(lines)} lines; expected 1 to {len(DASHES)}")
    xs, x_ticks = _scale([v for line in lines for v in line.x], LEFT, WIDTH - RIGHT)
    ys, y_ticks = _scale([v for line in lines for v in line.y], HEIGHT - BOTTOM, TOP)
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">',
        f"<title>{escape(title)}</title><style>{_style()}</style>",
        f'<rect class="page" width="{WIDTH}" height="{HEIGHT}" rx="6"/>',
    ]
    for value in x_ticks:
        parts.append(_text(f"{value:g}", xs(value), HEIGHT - BOTTOM + 18, "middle"))
    for value in y_ticks:
        y = ys(value)
        parts.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>')
        parts.append(_text(f"{value:g}", LEFT - 8, y + 4, "end"))
    parts.append(_text(x_label, middle, HEIGHT - 10, "middle"))
    parts.append(
        f'<text transform="translate(16 {(TOP + HEIGHT - BOTTOM) / 2}) rotate(-90)" '
        f'text-anchor="middle">{escape(y_label)}</text>'
    )
    for number, line in enumerate(lines):
        places = [(xs(x), ys(y)) for x, y in zip(line.x, line.y, strict=True)]
        parts.append(_drawn(number, line, places))
        parts.append(_key(number, line, LEFT + number * (WIDTH - LEFT - RIGHT) / len(lines)))
    return "\n".join([*parts, "</svg>\n"])


def keep(picture: str | bytes) -> None:
    """Write a picture where the command line names a file for it.

    Raises:
        FileError: there is such a file already.
    """
    for name in sys.argv[1:2]:
        check_output(Path(name), example="picture.svg")
        write_whole(Path(name), picture)


def _scale(values: Sequence[float], start: float, end: float) -> tuple[Callable, list[float]]:
    """Where a value lies between start and end, and three to seven round values to write there."""
    low, high = min(values), max(values)
    if low == high:
        low, high = low - (abs(low) or 1), high + (abs(high) or 1)
    spread = high - low
    power = 10.0 ** math.floor(math.log10(spread))
    step = next(power * part for part in (0.2, 0.5, 1, 2) if spread / (power * part) <= 6)
    step = max(step, 1) if all(isinstance(value, int) for value in values) else step
    low, high = step * math.floor(low / step), step * math.ceil(high / step)
    ticks = [round(low + i * step, 12) for i in range(round((high - low) / step) + 1)]
    return lambda value: start + (value - low) / (high - low) * (end - start), ticks


def _style() -> str:
    rules = [
        ".page{fill:#fff} text{fill:#222;font:13px sans-serif} .grid{stroke:#ddd}",
        *(f".line{i}{{stroke:{c}}} .dots{i}{{fill:{c}}}" for i, c in enumerate(LIGHT)),
        *(f".line{i}{{stroke-dasharray:{dash}}}" for i, dash in enumerate(DASHES)),
        "@media(prefers-color-scheme:dark){",
        ".page{fill:#1b1b1f} text{fill:#e4e4e7} .grid{stroke:#3a3a40}",
        *(f".line{i}{{stroke:{c}}} .dots{i}{{fill:{c}}}" for i, c in enumerate(DARK)),
        "}",
    ]
    return "\n".join(rules)


def _drawn(number: int, line: Line, places: Sequence[tuple[float, float]]) -> str:
    if not line.points:
        path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
        return f'<path class="line{number}" d="{path}" fill="none" stroke-width="2"/>'
    dots = "".join(_dot(number, x, y) for x, y in places)
    return f'<g class="dots{number}" fill-opacity="0.6">{dots}</g>'


def _dot(number: int, x: float, y: float) -> str:
    """A disc or, for every other name, a square: not told apart by colour alone."""
    if number % 2:
        return f'<rect x="{x - 2.5:.1f}" y="{y - 2.5:.1f}" width="5" height="5"/>'
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3"/>'


def _key(number: int, line: Line, x: float) -> str:
    sample = [(x + 12, 24)] if line.points else [(x, 24), (x + 26, 24)]
    return _drawn(number, line, sample) + _text(line.name, x + 32, 28, "start")


def _text(words: str, x: float, y: float, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'
