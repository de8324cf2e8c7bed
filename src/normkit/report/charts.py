"""Charts that the reader can zoom: lines, bands, points and maps, and the JSON that draws them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from normkit.report.scales import drawable, scale

__all__ = ["COLOURS", "SYMBOLS", "Chart", "Grid", "Heat", "Line", "chart_data", "heat_data"]

COLOURS = 5  # as many as page.css defines
#: Shapes at the points of a line, as plotly calls them, and their outlines in a legend, around 0.
SYMBOLS: Mapping[str, str] = {
    "circle": "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0-8 0Z",
    "square": "M-3.6-3.6h7.2v7.2h-7.2Z",
    "diamond": "M0-5L5 0L0 5L-5 0Z",
    "triangle-up": "M0-4.6L4.6 3.6H-4.6Z",
    "cross": "M-1.6-4.8h3.2v3.2h3.2v3.2h-3.2v3.2h-3.2v-3.2h-3.2v-3.2h3.2Z",
    "triangle-down": "M0 4.6L4.6-3.6H-4.6Z",
    "hourglass": "M-4.2-4.2H4.2L-4.2 4.2H4.2Z",
}
UNIFIED = 8  # with more lines, what is pointed at shows one of them rather than all


@dataclass(frozen=True)
class Line:
    """A line of a chart. Lines of one name share a button of the legend; NaN and Inf are gaps.

    Args:
        colour: 0 to 4, of the style sheet's.
        low, high: of the band around it; both or neither.
        symbol: a shape at some of its points, so that it is not told by its colour alone; in a
            chart of points at all of them. One of :data:`SYMBOLS`.
        thin: one of several that are to be seen as a whole.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    colour: int = 0
    dashed: bool = False
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    symbol: str = ""
    thin: bool = False

    def __post_init__(self) -> None:
        if len(self.x) != len(self.y):
            raise ValueError(
                f"the line {self.name!r} has {len(self.x)} values of x and {len(self.y)} of y; "
                "expected as many of each"
            )
        if len(self.low) != len(self.high) or len(self.low) not in (0, len(self.x)):
            raise ValueError(
                f"the band of the line {self.name!r} has {len(self.low)} low and {len(self.high)} "
                f"high values; expected {len(self.x)} of each, or none"
            )
        if not 0 <= self.colour < COLOURS:
            raise ValueError(
                f"the line {self.name!r} has colour {self.colour}; expected 0 to {COLOURS - 1}"
            )
        if self.symbol and self.symbol not in SYMBOLS:
            raise ValueError(
                f"the line {self.name!r} has the symbol {self.symbol!r}; expected one of "
                f"{', '.join(SYMBOLS)}"
            )


@dataclass(frozen=True)
class Chart:
    """Lines over two axes, each named with its unit; with ``points``, points that nothing joins."""

    heading: str
    x_label: str
    y_label: str
    lines: Sequence[Line]
    log_y: bool = False
    y_range: tuple[float, float] | None = None
    note: str = ""
    log_x: bool = False
    points: bool = False


@dataclass(frozen=True)
class Grid:
    """Values ``z[row][column]`` at ``y[row]`` and ``x[column]``; NaN and Inf are holes."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    z: Sequence[Sequence[float]]

    def __post_init__(self) -> None:
        widths = {len(row) for row in self.z}
        if len(self.z) != len(self.y) or not widths <= {len(self.x)}:
            raise ValueError(
                f"the map {self.name!r} has {len(self.z)} rows of {sorted(widths)} values; "
                f"expected {len(self.y)} of {len(self.x)}"
            )


@dataclass(frozen=True)
class Heat:
    """Maps side by side in one scale of colours, which grey eyes and colour-blind ones can read."""

    heading: str
    x_label: str
    y_label: str
    grids: Sequence[Grid]
    log_x: bool = False
    log_y: bool = False
    log_z: bool = False
    note: str = ""


def chart_data(chart: Chart) -> dict[str, Any]:
    """What page.js draws, and the legend."""
    lines = [_line(line, chart) for line in chart.lines]
    xs = {tuple(line["x"]) for line in lines}
    names = {line.name: line for line in reversed(chart.lines)}  # the first of each name
    return {
        "drawn": {
            "kind": "lines",
            "log_x": chart.log_x,
            "log": chart.log_y,
            "range": list(chart.y_range) if chart.y_range else None,
            "points": chart.points,
            "unified": len(xs) == 1 and len(lines) <= UNIFIED and not chart.points,
            "lines": lines,
        },
        "legend": [
            {"name": line.name, "line": line, "shape": SYMBOLS.get(line.symbol, "")}
            for line in reversed(names.values())
            if line.name
        ],
    }


def _line(line: Line, chart: Chart) -> dict[str, Any]:
    found: dict[str, Any] = {
        "name": line.name,
        "x": _shown(line.x, chart.log_x, 7),
        "y": _shown(line.y, chart.log_y),
        "colour": line.colour,
        "dashed": line.dashed,
    }
    if line.low:
        found |= {"low": _shown(line.low, chart.log_y), "high": _shown(line.high, chart.log_y)}
    return found | {k: v for k, v in (("symbol", line.symbol), ("thin", line.thin)) if v}


def _shown(values: Iterable[float], log: bool, digits: int = 5) -> list[float | None]:
    """JSON has no NaN, and a logarithm no zero."""
    return [float(f"{v:.{digits}g}") if drawable(v, log) else None for v in values]


def heat_data(heat: Heat) -> dict[str, Any]:
    """What page.js draws, map by map, and the scale of colours with its ticks."""
    values = [v for grid in heat.grids for row in grid.z for v in row]
    axis = scale(values, heat.log_z, pad=0)
    tone = math.log10 if heat.log_z else float
    ends = [tone(axis.low), tone(axis.high)] if axis else [0.0, 1.0]
    return {
        "drawn": [
            {
                "kind": "heat",
                "log_x": heat.log_x,
                "log": heat.log_y,
                "x": _shown(grid.x, heat.log_x, 7),
                "y": _shown(grid.y, heat.log_y, 7),
                "z": [_shown(row, heat.log_z) for row in grid.z],
                "log_z": heat.log_z,
                "ends": ends,
            }
            for grid in heat.grids
        ],
        "ticks": [
            (f"{100 * axis.share(tick):.1f}", label)
            for tick, label in zip(axis.ticks, axis.labels, strict=True)
        ]
        if axis
        else [],
    }
