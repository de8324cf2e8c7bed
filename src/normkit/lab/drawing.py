"""From what the seeds of a claim measured to the charts of its card."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from statistics import median

from normkit.lab.claim import Axes, Field, Series
from normkit.lab.results import Record
from normkit.lab.verdicts import Judged
from normkit.report import COLOURS, SYMBOLS, Chart, Grid, Heat, Line
from normkit.report.scales import drawable
from normkit.report.thinning import MOST, thinned
from normkit.words import counted

__all__ = ["charts", "unknown_charts"]

#: These look alike in every chart.
FAMILIAR = ("batch norm", "no norm", "group norm", "layer norm")
DECADES = 3  # a map whose positive values span more is coloured by their logarithms


def charts(judged: Judged) -> list[Chart | Heat]:
    """The charts of a claim, in its order, each with what all seeds measured."""
    return [drawn for axes in judged.claim.charts for drawn in _drawn(axes, judged.records)]


def unknown_charts(judged: Judged) -> list[str]:
    """What records of another version of the claim drew, and this version does not know."""
    known = {axes.heading for axes in judged.claim.charts}
    found = {one.chart for record in judged.records for one in record.series}
    found |= {one.chart for record in judged.records for one in record.fields}
    return sorted(found - known)


def _drawn(axes: Axes, records: Sequence[Record]) -> Iterator[Chart | Heat]:
    series = [one for record in records for one in record.series if one.chart == axes.heading]
    if series:
        yield _chart(axes, series)
    with_fields = [
        (record.seed, fields)
        for record in records
        if (fields := [one for one in record.fields if one.chart == axes.heading])
    ]
    if with_fields:
        yield _heat(axes, *with_fields[0])


# --- lines ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Style:
    """What tells a line from the others: colour and shape, and dashes where colours run out."""

    colour: int
    symbol: str
    dashed: bool


def _styles(names: Iterable[str]) -> dict[str, _Style]:
    names = list(dict.fromkeys(names))
    fixed = {name: FAMILIAR.index(name) for name in names if name in FAMILIAR}
    free = (place for place in range(len(names) + len(FAMILIAR)) if place not in fixed.values())
    places = {name: fixed[name] if name in fixed else next(free) for name in names}
    shapes = list(SYMBOLS)
    return {
        name: _Style(at % COLOURS, shapes[at % len(shapes)], at // COLOURS % 2 == 1)
        for name, at in places.items()
    }


def _chart(axes: Axes, series: Sequence[Series]) -> Chart:
    styles = _styles(one.name for one in series)
    lines: list[Line] = []
    notes = [axes.note]
    by_name = {name: [one for one in series if one.name == name] for name in styles}
    together = {
        name: not axes.points and len(found) > 1 and _is_shared(found, axes)
        for name, found in by_name.items()
    }
    for name, found in by_name.items():
        lines += (
            [_banded(found, styles[name], axes)]
            if together[name]
            else [_line(one, styles[name], axes, thin=len(found) > 1) for one in found]
        )
    notes.append(_how_drawn(by_name, together, axes))
    notes.append(_missing(series, axes))
    if any(len(one.x) > MOST for one in series):
        notes.append(
            "Of long lines as many points are drawn as a screen can show, all peaks among them."
        )
    return Chart(
        axes.heading, axes.x_label, axes.y_label, lines, log_y=axes.log_y, y_range=axes.y_range,
        note=" ".join(filter(None, notes)), log_x=axes.log_x, points=axes.points,
    )  # fmt: skip


def _is_shared(found: Sequence[Series], axes: Axes) -> bool:
    """Whether a band can tell all: the seeds have one x, and the same points can be drawn."""
    first = found[0]
    if any(list(one.x) != list(first.x) for one in found):  # true where an x is NaN
        return False
    gaps = {tuple(drawable(v, axes.log_y) for v in one.y) for one in found}
    return len(gaps) == 1


def _banded(found: Sequence[Series], style: _Style, axes: Axes) -> Line:
    """The median over the seeds, in a band from the smallest to the largest."""
    x = found[0].x
    at_x = list(zip(*(one.y for one in found), strict=True))
    middle, low, high = ([take(ys) for ys in at_x] for take in (median, min, max))
    kept = thinned(x, middle, low, high, log_x=axes.log_x, log_y=axes.log_y)

    def some(values: Sequence[float]) -> list[float]:
        return [values[i] for i in kept]

    return Line(
        found[0].name, some(x), some(middle), style.colour, style.dashed, some(low), some(high),
        symbol=style.symbol,
    )  # fmt: skip


def _line(one: Series, style: _Style, axes: Axes, thin: bool) -> Line:
    kept = thinned(one.x, one.y, log_x=axes.log_x, log_y=axes.log_y)
    x, y = [one.x[i] for i in kept], [one.y[i] for i in kept]
    return Line(one.name, x, y, style.colour, style.dashed, symbol=style.symbol, thin=thin)


def _how_drawn(by_name: dict[str, list[Series]], together: dict[str, bool], axes: Axes) -> str:
    seeds = max(map(len, by_name.values()))
    if seeds == 1:
        return ""
    if axes.points:
        return f"All of {seeds} seeds."
    band = f"Lines are medians of {seeds} seeds, in a band from the smallest to the largest."
    if all(together.values()):
        return band
    if not any(together.values()):
        return f"A thin line for each of {seeds} seeds."
    apart = [name for name, is_band in together.items() if not is_band]
    return f"{band} A thin line a seed: {', '.join(apart)}."


def _missing(series: Sequence[Series], axes: Axes) -> str:
    """How many points have no place on the axes."""
    return _count_missing(
        sum(
            not (drawable(x, axes.log_x) and drawable(y, axes.log_y))
            for one in series
            for x, y in zip(one.x, one.y, strict=True)
        ),
        axes.log_x or axes.log_y,
    )


def _count_missing(number: int, log: bool) -> str:
    if not number:
        return ""
    why = "zero, negative or not finite" if log else "not finite"
    return f"Not drawn, being {why}: {counted(number, 'point')}."


# --- maps -----------------------------------------------------------------------------------------


def _heat(axes: Axes, seed: int, fields: Sequence[Field]) -> Heat:
    values = [v for field in fields for row in field.z for v in row]
    known = [v for v in values if drawable(v, log=False)]
    log_z = bool(known) and min(known) > 0 and max(known) > 10**DECADES * min(known)
    notes = [
        axes.note,
        f"Seed {seed} alone.",
        "Colours go by the logarithm." if log_z else "",
        _count_missing(len(values) - len(known), log=False),
    ]
    return Heat(
        axes.heading, axes.x_label, axes.y_label,
        [Grid(one.name, one.x, one.y, one.z) for one in fields],
        log_x=axes.log_x, log_y=axes.log_y, log_z=log_z,
        note=" ".join(filter(None, notes)),
    )  # fmt: skip
