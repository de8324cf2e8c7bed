"""Small plots for pages with hundreds of them: values, and their geometry as drawn in the page.

A plot is a few paths of whole pixels, some 5 kB; nothing in it needs a script.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from normkit.report.scales import Scale, drawable, scale

__all__ = ["Bars", "Curve", "Dots", "Plot", "Plots", "drawn"]

WIDTH, HEIGHT = 260, 200
RIGHT, TOP, BOTTOM = 12, 8, 40
LETTER = 6.4  # pixels of one in a tick's label


@dataclass(frozen=True)
class Dots:
    """Points that nothing joins."""

    x: Sequence[float]
    y: Sequence[float]


@dataclass(frozen=True)
class Curve:
    """Points joined by a line."""

    x: Sequence[float]
    y: Sequence[float]


@dataclass(frozen=True)
class Bars:
    """A histogram: heights between edges, of which there is one more."""

    edges: Sequence[float]
    heights: Sequence[float]


@dataclass(frozen=True)
class Plot:
    """One thing drawn over two axes.

    Args:
        title: for people who hear the page too.
        marks: what is drawn; a point that is not finite, or not positive on a logarithmic axis, is
            left out and counted below the plot.
        log_x, log_y: logarithmic axes.
        diagonal: both axes have one scale, and the line x = y is drawn.
        note: below the plot.
    """

    title: str
    x_label: str
    y_label: str
    marks: Dots | Curve | Bars
    log_x: bool = False
    log_y: bool = False
    diagonal: bool = False
    note: str = ""

    def __post_init__(self) -> None:
        more = isinstance(self.marks, Bars)
        across, up = _values(self.marks)
        if len(across) != len(up) + more:
            raise ValueError(
                f"the plot {self.title!r} has {len(across)} {'edges' if more else 'values of x'} "
                f"and {len(up)} {'heights' if more else 'of y'}; expected "
                f"{'one edge more than heights' if more else 'as many of each'}"
            )
        if self.diagonal and self.log_x != self.log_y:
            raise ValueError(
                f"the plot {self.title!r} has a diagonal, one logarithmic axis and one linear one; "
                "expected two of a kind"
            )


@dataclass(frozen=True)
class Plots:
    """Plots side by side, as many as there is room for."""

    heading: str
    plots: Sequence[Plot]
    note: str = ""


def drawn(plot: Plot) -> dict[str, Any]:
    """What the template writes down: paths, ticks with their places, and the words below."""
    across, up = _values(plot.marks)
    x, y = _scales(plot, across, up)
    if x is None or y is None:
        return {"empty": True, "note": _note(plot, _missing(plot))}
    left = 30 + round(LETTER * max(map(len, y.labels), default=0))
    frame = _Frame(x, y, left)
    return {
        "empty": False,
        "width": WIDTH,
        "height": HEIGHT,
        "left": left,
        "right": WIDTH - RIGHT,
        "top": TOP,
        "bottom": HEIGHT - BOTTOM,
        "x_ticks": list(_spaced((round(frame.x(v)) for v in x.ticks), x.labels)),
        "y_ticks": [(round(frame.y(v)), label) for v, label in zip(y.ticks, y.labels, strict=True)],
        "diagonal": _diagonal(frame) if plot.diagonal else "",
        "kind": type(plot.marks).__name__.lower(),
        "path": _path(plot.marks, frame),
        "note": _note(plot, _missing(plot)),
    }


@dataclass(frozen=True)
class _Frame:
    """From values to pixels."""

    across: Scale
    up: Scale
    left: int

    def x(self, value: float) -> float:
        return self.left + self.across.share(value) * (WIDTH - RIGHT - self.left)

    def y(self, value: float) -> float:
        return HEIGHT - BOTTOM - self.up.share(value) * (HEIGHT - BOTTOM - TOP)

    def pixels(self, x: Iterable[float], y: Iterable[float]) -> Iterator[tuple[float, float]]:
        for a, b in zip(x, y, strict=True):
            if drawable(a, self.across.log) and drawable(b, self.up.log):
                yield self.x(a), self.y(b)


def _spaced(places: Iterable[int], labels: Iterable[str]) -> Iterator[tuple[int, int, str]]:
    """Ticks below an axis: (place, middle of the label, label, "" where there is no room)."""
    last = 0.0
    for place, label in zip(places, labels, strict=True):
        half = LETTER * len(label) / 2
        middle = min(place, int(WIDTH - half))  # whole, also at the end of the axis
        free = middle - half >= last
        yield place, middle, label if free else ""
        if free:
            last = middle + half + LETTER


def _values(marks: Dots | Curve | Bars) -> tuple[Sequence[float], Sequence[float]]:
    return (marks.edges, marks.heights) if isinstance(marks, Bars) else (marks.x, marks.y)


def _scales(
    plot: Plot, across: Sequence[float], up: Sequence[float]
) -> tuple[Scale | None, Scale | None]:
    if plot.diagonal:
        both = scale([*across, *up], plot.log_x)
        return both, both
    if isinstance(plot.marks, Bars):
        return scale(across, plot.log_x, pad=0), scale([0.0, *up] if up else (), False)
    return scale(across, plot.log_x), scale(up, plot.log_y)


def _path(marks: Dots | Curve | Bars, frame: _Frame) -> str:
    if isinstance(marks, Bars):
        return _bars(marks, frame)
    if isinstance(marks, Dots):
        return _dots(frame.pixels(marks.x, marks.y))
    points = [f"{x:.1f} {y:.1f}" for x, y in frame.pixels(marks.x, marks.y)]
    return "M" + "L".join(points) if points else ""


def _dots(pixels: Iterable[tuple[float, float]]) -> str:
    """Strokes of no length with round ends; one for all the points of a pixel."""
    path, last = [], (0, 0)
    for point in sorted({(round(x), round(y)) for x, y in pixels}):
        path.append(f"m{point[0] - last[0]} {point[1] - last[1]}h0")
        last = point
    return "".join(path)


def _bars(marks: Bars, frame: _Frame) -> str:
    """The outline of the whole histogram, closed along the axis."""
    if not marks.heights:
        return ""
    ground = frame.y(0.0)
    path = [f"M{frame.x(marks.edges[0]):.1f} {ground:.1f}"]
    for right, height in zip(marks.edges[1:], marks.heights, strict=True):
        path.append(f"V{frame.y(height):.1f}H{frame.x(right):.1f}")
    return "".join([*path, f"V{ground:.1f}Z"])


def _diagonal(frame: _Frame) -> str:
    low, high = frame.across.low, frame.across.high
    return f"M{frame.x(low):.0f} {frame.y(low):.0f}L{frame.x(high):.0f} {frame.y(high):.0f}"


def _missing(plot: Plot) -> int:
    if isinstance(plot.marks, Bars):
        return 0
    return sum(
        not (drawable(x, plot.log_x) and drawable(y, plot.log_y))
        for x, y in zip(plot.marks.x, plot.marks.y, strict=True)
    )


def _note(plot: Plot, missing: int) -> str:
    if not missing:
        return plot.note
    why = "zero, negative or not finite" if plot.log_x or plot.log_y else "not finite"
    return f"{plot.note} Not drawn, being {why}: {missing}.".strip()
