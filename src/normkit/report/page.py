"""Sections to one HTML page, and the page to a file."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from normkit.extras import needed
from normkit.report.cards import Card, Cards, Code, Scoreboard
from normkit.report.charts import Chart, Heat, chart_data, heat_data
from normkit.report.diagram import Diagram, pieces
from normkit.report.plots import Plots, drawn
from normkit.report.sections import (
    Fold,
    Folds,
    Notices,
    Section,
    Table,
    Verdict,
    Widget,
)
from normkit.report.templates import asset, environment

PACKAGE = "normkit.report"
CHARTS: tuple[type[Section], ...] = (Chart, Heat)
MARKED: tuple[type[Section], ...] = (Verdict, Notices, Folds, Diagram, Scoreboard, Cards)
#: What goes into a page that has a section of such a kind.
STYLES: dict[str, tuple[type[Section], ...]] = {
    "charts.css": CHARTS,
    "cards.css": (Scoreboard, Cards),
}
SCRIPTS: dict[str, tuple[type[Section], ...]] = {
    "page.js": CHARTS,
    "parts.js": (Folds, Notices, Scoreboard, Code),
}


def page(title: str, sections: Sequence[Section], summary: str = "") -> str:
    """The whole page as text. Every word given is escaped, but for widgets, which are HTML.

    Raises:
        ValueError: two parts have one anchor.
        ModuleNotFoundError: jinja2 is not installed, or plotly where there is a chart.
    """
    inside = list(_all(sections))
    markup = needed("markupsafe").Markup
    # 4.6 MB, wanted only where something is drawn with it
    library = needed("plotly.offline").get_plotlyjs() if _has(inside, CHARTS) else ""
    styles = [asset(PACKAGE, name) for name, kinds in STYLES.items() if _has(inside, kinds)]
    scripts = [asset(PACKAGE, name) for name, kinds in SCRIPTS.items() if _has(inside, kinds)]
    widgets = [section for section in inside if isinstance(section, Widget)]
    styles += dict.fromkeys(widget.style for widget in widgets if widget.style)
    scripts += dict.fromkeys(widget.script for widget in widgets if widget.script)
    return (
        environment(PACKAGE)
        .get_template("page.html")
        .render(
            title=title,
            summary=summary,
            blocks=[_block(section) for section in sections],
            anchors=_anchors(inside),
            marks=_has(inside, MARKED),
            style=markup("\n".join([asset(PACKAGE, "page.css"), *styles])),
            library=markup(library),
            scripts=[markup(script) for script in scripts],
        )
    )


def _has(sections: Sequence[Section], kinds: tuple[type[Section], ...]) -> bool:
    return any(isinstance(section, kinds) for section in sections)


def _all(sections: Sequence[Section]) -> Iterator[Section]:
    """The sections and those in their folds and cards."""
    for section in sections:
        yield section
        for one in _within(section):
            yield from _all(one.sections)


def _within(section: Section) -> Sequence[Fold | Card]:
    if isinstance(section, Folds):
        return section.folds
    return section.cards if isinstance(section, Cards) else ()


def _anchors(sections: Sequence[Section]) -> frozenset[str]:
    """What can be linked to; a link to anything else is shown as its words alone."""
    seen = [section.anchor for section in sections if isinstance(section, (Diagram, Scoreboard))]
    seen += [one.anchor for section in sections for one in _within(section)]
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


def _inside(section: Folds | Cards) -> list[dict[str, Any]]:
    """Folds or cards, each with its own sections."""
    return [
        {"one": one, "blocks": [_block(part) for part in one.sections]} for one in _within(section)
    ]


#: What a section's template needs besides the section itself.
_DATA: dict[type[Section], Callable[[Any], Any]] = {
    Table: lambda table: [column in table.numeric for column in table.columns],
    Chart: chart_data,
    Heat: heat_data,
    Folds: _inside,
    Cards: _inside,
    Plots: lambda plots: [drawn(plot) for plot in plots.plots],
    Diagram: pieces,
    Widget: lambda widget: needed("markupsafe").Markup(widget.markup),
}
