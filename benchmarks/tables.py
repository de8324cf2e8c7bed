"""Cells and tables of the page."""

from __future__ import annotations

from benchmarks import figures
from benchmarks.goals import Row

MISSING = "–"
NOTHING = "Not measured by the newest results."


def milliseconds(summary: figures.Summary) -> str:
    value = summary["median"] * 1e3
    return f"{value:.3f}" if value < 1 else f"{value:.2f}" if value < 10 else f"{value:.1f}"


def times(row: Row, peer: str, quantity: str = "step") -> str:
    found = row["times"].get(peer)
    return milliseconds(found[quantity]) if found else MISSING


def times_and_spread(row: Row, peer: str, quantity: str = "step") -> str:
    found = row["times"].get(peer)
    if not found:
        return f"{MISSING} ({MISSING})"
    return f"{milliseconds(found[quantity])} ({figures.spread(found[quantity]):.0%})"


def number(value: float | None, digits: int = 2) -> str:
    return MISSING if value is None else f"{value:.{digits}f}"


def table(head: list[str], rows: list[list[str]], left: int = 1) -> str:
    rule = [":---" if i < left else "---:" for i in range(len(head))]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [head, rule, *rows])
