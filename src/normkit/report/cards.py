"""Cards: things that were each judged, with a score of all of them that leads to each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from normkit.report.levels import check_mark

if TYPE_CHECKING:
    from normkit.report.sections import Section

__all__ = ["Card", "Cards", "Code", "Scoreboard", "Tile", "Tiles"]


@dataclass(frozen=True)
class Tile:
    """One line of a score: a mark, what it is about, what the mark stands for."""

    mark: str
    title: str
    words: str
    anchor: str = ""

    def __post_init__(self) -> None:
        check_mark(self.mark, f"the tile {self.title!r}")


@dataclass(frozen=True)
class Tiles:
    """Tiles under a heading."""

    heading: str
    tiles: Sequence[Tile]


@dataclass(frozen=True)
class Scoreboard:
    """How many there are of each mark, and all of them; the reader can have those of one mark.

    Args:
        counts: (mark, how many, of what).
        unit: what a tile is, in the plural.
        anchor: unique on the page; cards can lead back to it.
    """

    heading: str
    counts: Sequence[tuple[str, int, str]]
    groups: Sequence[Tiles]
    paragraphs: Sequence[str] = ()
    unit: str = "cards"
    note: str = ""
    anchor: str = ""

    def __post_init__(self) -> None:
        for mark, *_ in self.counts:
            check_mark(mark, f"the scoreboard {self.heading!r}")


@dataclass(frozen=True)
class Card:
    """One thing and all about it.

    Args:
        mark, status: what it came to: a shape, and words.
        lead: a sentence, set large.
        source: where that comes from.
        anchor: unique on the page, "" for none.
    """

    title: str
    mark: str
    status: str
    sections: Sequence[Section]
    lead: str = ""
    source: str = ""
    anchor: str = ""

    def __post_init__(self) -> None:
        check_mark(self.mark, f"the card {self.title!r}")


@dataclass(frozen=True)
class Cards:
    """Cards below each other; ``back`` is the anchor of the scoreboard that each leads back to."""

    heading: str
    cards: Sequence[Card]
    note: str = ""
    back: str = ""


@dataclass(frozen=True)
class Code:
    """Something to copy, such as a command."""

    heading: str
    text: str
    note: str = ""
