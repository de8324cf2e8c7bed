"""Sections to one HTML page, and the page to a file."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from normkit.report.sections import Chart, Line, Section, Table
from normkit.writing import write_whole


def page(title: str, sections: Sequence[Section], summary: str = "") -> str:
    """The whole page as text. Every word given is escaped."""
    has_chart = any(isinstance(section, Chart) for section in sections)
    return _template().render(
        title=title,
        summary=summary,
        blocks=[_block(section) for section in sections],
        style=Markup(_asset("page.css")),
        script=Markup(_asset("page.js")) if has_chart else "",
        # 4.6 MB, wanted only where something is drawn
        library=Markup(get_plotlyjs()) if has_chart else "",
    )


def save(path: Path, text: str) -> None:
    """Write `text` to `path` whole or not at all, also when interrupted."""
    write_whole(path, text)


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(_asset("page.html"))


@cache
def _asset(name: str) -> str:
    return files("normkit.report").joinpath(name).read_text(encoding="utf-8")


def _block(section: Section) -> dict[str, Any]:
    """A section as the template takes it."""
    if isinstance(section, Table):
        numeric = [column in section.numeric for column in section.columns]
        return {"kind": "table", "section": section, "numeric": numeric}
    if isinstance(section, Chart):
        return {"kind": "chart", "section": section, "data": _chart(section)}
    return {"kind": "text", "section": section}


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
