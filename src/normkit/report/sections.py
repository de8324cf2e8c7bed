"""What a page is made of: plain values that know nothing of HTML."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

COLOURS = 5  # as many as page.css defines


@dataclass(frozen=True)
class Text:
    """Paragraphs under a heading (none where it is empty)."""

    heading: str
    paragraphs: Sequence[str]


@dataclass(frozen=True)
class Table:
    """Rows of cells, all already words; `numeric` names the columns to be set to the right."""

    heading: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    numeric: frozenset[str] = frozenset()
    note: str = ""

    def __post_init__(self) -> None:
        for number, row in enumerate(self.rows):
            if len(row) != len(self.columns):
                raise ValueError(
                    f"row {number} of the table {self.heading!r} has {len(row)} cells; expected "
                    f"{len(self.columns)}, one for each of {list(self.columns)}"
                )
        unknown = self.numeric - set(self.columns)
        if unknown:
            raise ValueError(
                f"numeric names {sorted(unknown)}, which the table {self.heading!r} does not have; "
                f"its columns are {list(self.columns)}"
            )


@dataclass(frozen=True)
class Line:
    """A line of a chart. Lines of one name share an entry of the legend; NaN and Inf are gaps."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    colour: int = 0
    dashed: bool = False

    def __post_init__(self) -> None:
        if len(self.x) != len(self.y):
            raise ValueError(
                f"the line {self.name!r} has {len(self.x)} values of x and {len(self.y)} of y; "
                "expected as many of each"
            )
        if not 0 <= self.colour < COLOURS:
            raise ValueError(
                f"the line {self.name!r} has colour {self.colour}; expected 0 to {COLOURS - 1}"
            )


@dataclass(frozen=True)
class Chart:
    """Lines over two axes, each named with its unit."""

    heading: str
    x_label: str
    y_label: str
    lines: Sequence[Line]
    log_y: bool = False
    y_range: tuple[float, float] | None = None
    note: str = ""


Section = Text | Table | Chart
