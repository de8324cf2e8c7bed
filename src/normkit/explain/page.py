"""The page: its parts from templates, and the page to a file."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from normkit.errors import OptionError
from normkit.explain import cube
from normkit.explain.formula import mathml
from normkit.explain.graph import EDGES, NODES
from normkit.explain.values import EXAMPLE, Values
from normkit.extras import needed
from normkit.report import Widget, page
from normkit.report.templates import asset, environment
from normkit.words import counted
from normkit.writing import check_output, write_whole

if TYPE_CHECKING:
    import jinja2

__all__ = ["MOST_CHANNELS", "MOST_SAMPLES", "render", "save"]

PACKAGE = "normkit.explain"
TITLE = "Normalization, taken apart"
SUMMARY = (
    "Every norm subtracts a mean, divides by a deviation, then scales and shifts. The methods "
    "differ in one thing only: over which elements the mean and the deviation are taken."
)
MOST_SAMPLES, MOST_CHANNELS = 8, 3  # what a telephone has room for


def save(given: Values, out: Path, *, overwrite: bool = False) -> None:
    """Write the page.

    Raises:
        OptionError: x is too large for it, or the file is no page by its name.
        FileError: the file cannot be written, or exists.
    """
    if out.suffix.lower() not in (".html", ".htm") and not out.is_dir():
        raise OptionError(
            "The page needs a name that a browser knows",
            received=f"--out {out}",
            expected="a name that ends in .html",
            remedy=f"For instance {out.with_suffix('.html')}.",
        )
    check_output(out, overwrite=overwrite, example="explain.html")
    write_whole(out, render(given))


def render(given: Values = EXAMPLE) -> str:
    """The whole page as text.

    Raises:
        OptionError: more samples or channels than it has room for.
        ModuleNotFoundError: jinja2 or torch is not installed.
    """
    samples, channels = given.x.shape
    if samples > MOST_SAMPLES or channels > MOST_CHANNELS:
        raise OptionError(
            "The page has no room for this",
            received=f"--x with {counted(samples, 'sample')} of {counted(channels, 'channel')}",
            expected=f"at most {MOST_SAMPLES} samples of {MOST_CHANNELS} channels",
            remedy="Print it with --text, which takes any number.",
        )
    from normkit.lab.kit.invariances import invariance_table  # late: it brings PyTorch

    parts = [
        Widget(_part("opening"), style=asset(PACKAGE, "explain.css")),
        Widget(_part("sets", cube=cube)),
        Widget(
            _part("graph", nodes=NODES, symbols={node.name: node.symbol for node in NODES},
                  start=_start(given), rows=range(MOST_SAMPLES), channels=channels),
            script=asset(PACKAGE, "numbers.js"),
        ),
        Widget(
            _part("inference", rows=range(MOST_SAMPLES), channels=channels),
            script=asset(PACKAGE, "live.js"),
        ),
        Widget(_part("invariances", **_table(invariance_table()))),
        Widget(_part("derivation", nodes=NODES)),
    ]  # fmt: skip
    return page(TITLE, parts, SUMMARY)


def _start(given: Values) -> str:
    """What the script begins with, as JSON that stands in HTML."""
    start = {
        "x": given.x.tolist(),
        "dout": given.dout.tolist(),
        "gamma": given.gamma.tolist(),
        "beta": given.beta.tolist(),
        "eps": given.eps,
        "edges": EDGES,
    }
    return json.dumps(start).replace("<", "\\u003c")


def _table(rows: list[Any]) -> dict[str, Any]:
    """The table of invariances as the template takes it: a row a change, a column a norm."""
    norms = list(dict.fromkeys(row.norm for row in rows))
    changes = list(dict.fromkeys(row.transformation for row in rows))
    return {
        "norms": norms,
        "changes": changes,
        "field": {(row.transformation, row.norm): row for row in rows},
        "wrong": [row for row in rows if not row.holds],
    }


def _part(name: str, **values: Any) -> str:
    return _environment().get_template(f"{name}.html").render(values)


@cache
def _environment() -> jinja2.Environment:
    markup = needed("markupsafe").Markup
    made = environment(PACKAGE).overlay()  # its globals are its own
    made.globals.update(
        math=lambda tex: markup(mathml(tex)),
        display=lambda tex: markup(f'<div class="formula">{mathml(tex, display=True)}</div>'),
        safe=markup,
    )
    return made
