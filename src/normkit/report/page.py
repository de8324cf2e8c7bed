"""Sections to one HTML page, and the page to a file."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from normkit.extras import needed
from normkit.report.diagram import Diagram, pieces
from normkit.report.plots import Plots, drawn
from normkit.report.sections import (
    Chart,
    Folds,
    Line,
    Notices,
    Section,
    Table,
    Verdict,
    Widget,
)

if TYPE_CHECKING:
    import jinja2


def page(title: str, sections: Sequence[Section], summary: str = "") -> str:
    """The whole page as text. Every word given is escaped, but for widgets, which are HTML.

    Raises:
        ValueError: two parts have one anchor.
        ModuleNotFoundError: jinja2 is not installed, or plotly where there is a chart.
    """
    inside = list(_all(sections))
    markup = needed("markupsafe").Markup
    has_chart = any(isinstance(section, Chart) for section in inside)
    # 4.6 MB, wanted only where something is drawn with it
    library = needed("plotly.offline").get_plotlyjs() if has_chart else ""
    has_parts = any(isinstance(section, (Folds, Notices)) for section in inside)
    widgets = [section for section in inside if isinstance(section, Widget)]
    scripts = [
        _asset(name) for name, has in (("page.js", has_chart), ("parts.js", has_parts)) if has
    ]
    scripts += dict.fromkeys(widget.script for widget in widgets if widget.script)
    styles = dict.fromkeys(widget.style for widget in widgets if widget.style)
    return _template().render(
        title=title,
        summary=summary,
        blocks=[_block(section) for section in sections],
        anchors=_anchors(inside),
        marks=any(isinstance(s, (Verdict, Notices, Folds, Diagram)) for s in inside),
        style=markup("\n".join([_asset("page.css"), *styles])),
        library=markup(library),
        scripts=[markup(script) for script in scripts],
    )


@cache
def _template() -> jinja2.Template:
    library = needed("jinja2")
    environment = library.Environment(
        autoescape=True,
        undefined=library.StrictUndefined,
        loader=library.FunctionLoader(_asset),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html")


@cache
def _asset(name: str) -> str:
    return files("normkit.report").joinpath(name).read_text(encoding="utf-8")


def _all(sections: Sequence[Section]) -> Iterator[Section]:
    """The sections and those in their folds."""
    for section in sections:
        yield section
        for fold in section.folds if isinstance(section, Folds) else ():
            yield from _all(fold.sections)


def _anchors(sections: Sequence[Section]) -> frozenset[str]:
    """What can be linked to; a link to anything else is shown as its words alone."""
    seen = [section.anchor for section in sections if isinstance(section, Diagram)]
    seen += [fold.anchor for part in sections if isinstance(part, Folds) for fold in part.folds]
    seen = [anchor for anchor in seen if anchor]
    for anchor in seen:
        if seen.count(anchor) > 1:
            raise ValueError(f"two parts of the page have the anchor {anchor!r}; expected one each")
    return frozenset(seen)


def _block(section: Section) -> dict[str, Any]:
    """A section as the template takes it."""
    return {
        "kind": type(section).__name__.lower(),
        "section": section,
        "data": _DATA.get(type(section), lambda _: None)(section),
    }


def _folds(section: Folds) -> list[dict[str, Any]]:
    return [
        {"fold": fold, "blocks": [_block(one) for one in fold.sections]} for fold in section.folds
    ]


def _chart(chart: Chart) -> dict[str, Any]:
    return {
        "x": chart.x_label,
        "y": chart.y_label,
        "log": chart.log_y,
        "range": list(chart.y_range) if chart.y_range else None,
        "lines": [_line(line, chart.log_y) for line in chart.lines],
    }


def _line(line: Line, log: bool) -> dict[str, Any]:
    def shown(value: float) -> float | None:  # JSON has no NaN, and a logarithm no zero
        kept = math.isfinite(value) and not (log and value <= 0)
        return float(f"{value:.5g}") if kept else None

    return {
        "name": line.name,
        "x": [float(value) for value in line.x],
        "y": [shown(value) for value in line.y],
        "colour": line.colour,
        "dashed": line.dashed,
    }


#: What a section's template needs besides the section itself.
_DATA: dict[type[Section], Callable[[Any], Any]] = {
    Table: lambda table: [column in table.numeric for column in table.columns],
    Chart: _chart,
    Folds: _folds,
    Plots: lambda plots: [drawn(plot) for plot in plots.plots],
    Diagram: pieces,
    Widget: lambda widget: needed("markupsafe").Markup(widget.markup),
}
