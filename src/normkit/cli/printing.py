"""What commands print: tables for people on a terminal, plain text in a pipe, JSON when asked."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

from normkit.cli.shell import in_shell
from normkit.plain import plain

__all__ = ["note", "print_json", "print_line", "print_table"]


def print_json(value: Any) -> None:
    """One JSON document on standard output; NaN and infinity become null, which JSON has."""
    sys.stdout.write(json.dumps(plain(value), indent=2, ensure_ascii=False) + "\n")


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table on standard output: as wide as the terminal, or as the longest line in a pipe."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    # A pipe has no width: nothing is folded there, so that grep and awk see whole rows.
    console = Console(width=None if sys.stdout.isatty() else 10_000, highlight=False)
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))  # cells are data, not markup
    with console.capture() as shown:
        console.print(table)
    lines = (line.rstrip() for line in shown.get().splitlines())
    sys.stdout.write("\n".join(line for line in lines if line) + "\n")


def note(words: str) -> None:
    """A line beside the result: on standard error, so that a pipe gets the result only."""
    sys.stderr.write(words + "\n")


def print_line(words: str) -> None:
    """A tool's own line, on standard output."""
    sys.stdout.write(in_shell(words) + "\n")
