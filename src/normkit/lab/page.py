"""The lab's report: what was claimed, what came out here, and how to try it again."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Sequence

from normkit.lab.claims import topic_of
from normkit.lab.drawing import charts, unknown_charts
from normkit.lab.origin import origin, unlike
from normkit.lab.verdicts import SEEDS, Judged, Outcome, Status
from normkit.report import (
    Card,
    Cards,
    Code,
    Notice,
    Notices,
    Place,
    Scoreboard,
    Section,
    Table,
    Text,
    Tile,
    Tiles,
    page,
)
from normkit.words import counted

__all__ = ["render", "sections"]

TITLE = "Published claims about normalization, tried again"
SCORE = "score"  # the anchor that every card leads back to

#: Marks and words of what can come of a claim, in the order in which they are counted.
MARKS: dict[Status, str] = {
    "reproduced": "yes",
    "not reproduced": "no",
    "reported": "fact",
    "first look": "glance",
    "not run": "absent",
}
MEANING = (
    f"A claim is reproduced where its criterion holds for every seed, of which there are at least "
    f"{SEEDS}; where it fails for one of them, the claim is not reproduced. Reported are claims "
    "without a criterion: their numbers are shown, and no verdict is given. These are experiments "
    "of seconds on small networks: that something does not show here does not refute the paper, "
    "and that it shows does not prove it at the paper's size. Numbers of sections and figures in "
    "papers are as remembered; the papers' results are too where a card says so."
)
QUICK = (
    "These are quick runs: fewer steps and fewer settings than the claims ask for. Numbers that "
    "meet a criterion here may fail it in a full run, and the other way round. Without --quick "
    "there are verdicts."
)
CHARTS = (
    "Charts show values where they are pointed at. A drag zooms in, a double click shows all "
    "again; so do the buttons and, in a chart that has the focus, the keys + and −, the arrows and "
    "0. The names above a chart hide and show its lines."
)


def render(judged: Sequence[Judged], *, title: str = TITLE, notes: Sequence[str] = ()) -> str:
    """The page, as one HTML file that loads nothing else.

    Args:
        judged: claims in the order in which they are told, with what came of them.
        notes: what else the reader should know first: damaged lines, experiments that failed.

    Raises:
        ModuleNotFoundError: jinja2 or plotly is not installed; the message says what to install.
    """
    return page(title, [*sections(judged, notes=notes), *origin(judged)])


def sections(
    judged: Sequence[Judged], *, heading: str = "", notes: Sequence[str] = ()
) -> list[Section]:
    """The scoreboard, a card a claim, and how to read them: for a page that has more to tell.

    Args:
        heading: of the scoreboard; the other arguments are those of :func:`render`.
    """
    by_topic: dict[str, list[Judged]] = {}
    for one in judged:
        by_topic.setdefault(topic_of(one.claim.name), []).append(one)
    return [
        _score(judged, by_topic, heading),
        *_first(judged, notes),
        *(Cards(topic, [_card(one) for one in found], back=SCORE)
          for topic, found in by_topic.items()),
        Text("How to read this", [MEANING, CHARTS]),
    ]  # fmt: skip


# --- at the top -----------------------------------------------------------------------------------


def _score(judged: Sequence[Judged], by_topic: dict[str, list[Judged]], heading: str) -> Scoreboard:
    counts = Counter(one.status for one in judged)
    return Scoreboard(
        heading=heading,
        counts=[(mark, counts[status], status) for status, mark in MARKS.items()],
        groups=[
            Tiles(topic, [_tile(one) for one in found]) for topic, found in by_topic.items()
        ],
        paragraphs=[_sentence(counts)],
        unit="claims",
        anchor=SCORE,
    )  # fmt: skip


def _sentence(counts: Counter[Status]) -> str:
    """What it all comes to."""
    tried = counts["reproduced"] + counts["not reproduced"]
    reported, glanced = counts["reported"], counts["first look"]
    parts = [
        f"Of {counted(tried, 'claim')} with a criterion, {counts['reproduced']} reproduced on "
        f"this machine and {counts['not reproduced']} did not."
        if tried
        else "No claim has a verdict yet."
    ]
    if reported:
        verb = "is" if reported == 1 else "are"
        parts.append(f"{counted(reported, 'claim')} {verb} reported without a verdict.")
    if glanced:
        parts.append(
            f"{counted(glanced, 'claim')} had a first look only: a quick run, or fewer than "
            f"{SEEDS} seeds, gives no verdict."
        )
    return " ".join(parts)


def _tile(one: Judged) -> Tile:
    return Tile(MARKS[one.status], one.claim.title, one.status, _anchor(one))


def _anchor(one: Judged) -> str:
    return f"claim-{one.claim.name}"


def _first(judged: Sequence[Judged], notes: Sequence[str]) -> list[Section]:
    """What the reader should know before believing any of it."""
    notices = []
    if any(record.quick for one in judged for record in one.records):
        notices.append(Notice("info", "a first look, and no verdict", [], [QUICK]))
    mixed = unlike(judged)
    if mixed:
        notices.append(
            Notice("warning", "results that were not made alike", [Place("", m) for m in mixed])
        )
    if notes:
        notices.append(Notice("warning", "what is missing", [Place("", words) for words in notes]))
    return [Notices("Before you read on", notices)] if notices else []


# --- a claim --------------------------------------------------------------------------------------


def _card(one: Judged) -> Card:
    claim = one.claim
    words = one.words
    sections: list[Section] = [Text("In the paper", [claim.paper])] if claim.paper else []
    sections.append(Text("Here", [claim.experiment]))
    if one.records:
        sections.append(_numbers(one))
    sections += charts(one)
    if claim.caveat:
        sections.append(Text("What to keep in mind", [claim.caveat]))
    unknown = unknown_charts(one)
    if unknown:
        sections.append(
            Text("", [f"Not drawn, being of another version of this claim: {', '.join(unknown)}."])
        )
    sections.append(Code("Try it again", _command(one)))
    return Card(
        title=claim.title,
        mark=MARKS[one.status],
        status=words[:1].upper() + words[1:],
        sections=sections,
        lead=claim.sentence,
        source=claim.source,
        anchor=_anchor(one),
    )


def _numbers(one: Judged) -> Table:
    """The paper's figures and ours; columns that would be empty are left out."""
    columns = {
        "number": [outcome.number.words for outcome in one.outcomes],
        "in the paper": [outcome.number.paper for outcome in one.outcomes],
        "here": [outcome.shown for outcome in one.outcomes],
        "criterion": [outcome.number.bound for outcome in one.outcomes],
        "holds in": [_held(outcome) for outcome in one.outcomes],
    }
    shown = {name: cells for name, cells in columns.items() if any(cells)}
    seeds = len(one.records)
    return Table(
        "The figures",
        tuple(shown),
        list(zip(*shown.values(), strict=True)),
        note=f"Medians of {seeds} seeds, with the smallest and the largest." if seeds > 1 else "",
        stacked=True,
    )


def _held(outcome: Outcome) -> str:
    if not outcome.number.is_criterion:
        return ""
    return f"{outcome.held} of {counted(len(outcome.values), 'seed')}"


def _command(one: Judged) -> str:
    """In a folder of its own: where results are, nothing is measured again."""
    data = {record.data for record in one.records} - {"digits"}
    more = f" --data {shlex.quote(data.pop())}" if len(data) == 1 else ""
    return f"normkit lab run {one.claim.name}{more} --out out/again"
