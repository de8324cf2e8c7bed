"""What a page is made of: plain values that know nothing of HTML."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from normkit.report.cards import Cards, Code, Scoreboard
from normkit.report.charts import Chart, Heat
from normkit.report.diagram import Diagram
from normkit.report.levels import check_level
from normkit.report.plots import Plots


@dataclass(frozen=True)
class Text:
    """Paragraphs under a heading (none where it is empty)."""

    heading: str
    paragraphs: Sequence[str]


@dataclass(frozen=True)
class Table:
    """Rows of cells, all already words.

    Args:
        numeric: columns to be set to the right.
        stacked: on a telephone a row is a block, with the name of its column beside each cell;
            empty cells are left out there, and dashes elsewhere.
    """

    heading: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    numeric: frozenset[str] = frozenset()
    note: str = ""
    stacked: bool = False

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
class Verdict:
    """What it comes to: a sentence with its level, and how many there are of each level.

    Args:
        level: one of :data:`~normkit.report.levels.LEVELS`.
        words: the sentence.
        counts: (level, how many, of what).
        paragraphs: what else belongs to it.
    """

    level: str
    words: str
    counts: Sequence[tuple[str, int, str]] = ()
    paragraphs: Sequence[str] = ()

    def __post_init__(self) -> None:
        for level in (self.level, *(level for level, *_ in self.counts)):
            check_level(level, f"the verdict {self.words!r}")


@dataclass(frozen=True)
class Place:
    """Where something was noticed: the name, the fold of the page about it, what, and code."""

    name: str
    words: str
    anchor: str = ""
    code: str = ""


@dataclass(frozen=True)
class Notice:
    """Something noticed, at one place or at several; ``code`` can be copied."""

    level: str
    title: str
    places: Sequence[Place]
    paragraphs: Sequence[str] = ()
    code: str = ""

    def __post_init__(self) -> None:
        check_level(self.level, f"the notice {self.title!r}")


@dataclass(frozen=True)
class Notices:
    """What was noticed, in the order given. Of many places the first ``most`` are shown at once."""

    heading: str
    notices: Sequence[Notice]
    note: str = ""
    most: int = 6


@dataclass(frozen=True)
class Fold:
    """Sections behind a line of words, shown when the reader asks, or at once if ``opened``.

    Args:
        title, words: the line: what it is about, and what is in it.
        sections: folds may hold folds.
        level: a mark before the title; "" for none.
        anchor: what links elsewhere on the page call it; unique on the page, "" for none.
        opened: whether it stands open when the page is read.
    """

    title: str
    words: str
    sections: Sequence[Section]
    level: str = ""
    anchor: str = ""
    opened: bool = False

    def __post_init__(self) -> None:
        if self.level:
            check_level(self.level, f"the fold {self.title!r}")


@dataclass(frozen=True)
class Folds:
    """Folds below each other."""

    heading: str
    folds: Sequence[Fold]
    note: str = ""


@dataclass(frozen=True)
class Widget:
    """A part of the page that brings its own HTML, style and script.

    Args:
        markup: put into the page as it is, heading included: what comes from outside the package
            must have been escaped in it.
        style, script: likewise; alike ones are put in once.
    """

    markup: str
    style: str = ""
    script: str = ""


Section = (
    Text | Table | Chart | Heat | Verdict | Notices | Folds | Plots | Diagram | Widget
    | Scoreboard | Cards | Code
)  # fmt: skip
