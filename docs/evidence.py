"""Write evidence.md, and the figures in choosing.md, from kept results of the lab.

    python docs/evidence.py             # from evidence/results.jsonl
    python docs/evidence.py out/lab     # take the numbers of that run into it first

No figure is typed by hand. In choosing.md a figure stands between two comments, of which the first
names claim and number: <!-- small_batches.batch_2 -->67 %<!-- -->. Not at the beginning of a line,
where a comment ends the paragraph for Markdown.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from normkit.lab.claims import TOPICS, find
from normkit.lab.results import FILE, Record, Results
from normkit.lab.verdicts import Judged, Outcome, judge
from normkit.plain import plain

DOCS = Path(__file__).parent
KEPT = DOCS / "evidence"
PAGE, CHOOSING = DOCS / "evidence.md", DOCS / "choosing.md"
UNIT = "\N{NO-BREAK SPACE}%"  # no line breaks in front of it
FIGURE = re.compile(r"<!-- (?P<claim>\w+)\.(?P<number>\w+) -->.*?<!-- -->")
INTRODUCTION = """\
# Evidence

What papers claim about normalization, tried by normkit's lab: one section a claim. A number is the
median over three seeds, with the smallest and the largest in brackets where they differ.
*Reproduced* means that every criterion holds for every seed; claims without a criterion are
*reported*. The data are scikit-learn's digits, 8 × 8 pixels, so this says whether an effect is
there, and not how large it is on ImageNet; each section says what does not carry over.

`normkit lab run NAME` tries a claim again, with your own images too ([how to](howto/lab.md)).
`docs/evidence.py` writes this page from `docs/evidence/results.jsonl`.
"""


def main(folders: Sequence[str]) -> None:
    """Take new results in, and write both pages."""
    for folder in folders:
        keep(Results(Path(folder)).records)
    records = Results(KEPT).records
    PAGE.write_text(evidence(records), encoding="utf-8")
    CHOOSING.write_text(with_figures(CHOOSING.read_text(encoding="utf-8"), records), "utf-8")


def keep(records: Sequence[Record]) -> None:
    """Replace what is kept; the curves, of which the pages have none, are left out."""
    lines = (json.dumps(plain(replace(one, series=(), fields=()), str)) for one in records)
    (KEPT / FILE).write_text("".join(f"{line}\n" for line in sorted(lines)), encoding="utf-8")


def with_figures(text: str, records: Sequence[Record]) -> str:
    """The text with every figure as it was measured."""

    def shown(found: re.Match[str]) -> str:
        claim, number = found["claim"], found["number"]
        outcomes = judge(*find([claim]), records).outcomes
        outcome = next(one for one in outcomes if one.number.name == number)
        return f"<!-- {claim}.{number} -->{outcome.number.shown(outcome.median)}<!-- -->"

    return FIGURE.sub(shown, text)


def evidence(records: Sequence[Record]) -> str:
    """The whole page."""
    parts = [INTRODUCTION, "".join(_facts(records))]
    for topic, names in TOPICS.items():
        judged = [judge(claim, records) for claim in find(names)]
        tried = [one for one in judged if one.records]
        if tried:
            parts += [f"## {topic}\n", *(_section(one) for one in tried)]
    return "\n".join(parts)


def _facts(records: Sequence[Record]) -> Iterator[str]:
    for machine, when, commit, versions in sorted(
        {
            (
                f"{one.machine['cpu']}, {one.machine['cores']} cores",
                one.time[:10],
                str(one.commit),
                ", ".join(f"{name} {version}" for name, version in one.versions.items()),
            )
            for one in records
        }
    ):
        yield f"- {when}, {machine}, commit {commit}: {versions}\n"


def _section(judged: Judged) -> str:
    claim = judged.claim
    rows = [_row(one) for one in sorted(judged.outcomes, key=lambda one: not one.number.bound)]
    lines = [
        f"### {claim.title} {{ #{claim.name} }}",
        f"*{claim.source}.* {claim.sentence} **{_capital(judged.words)}.**",
        "| measured | here | in the paper | criterion |\n|---|---|---|---|\n" + "\n".join(rows),
        f"Experiment: {claim.experiment}",
        f"Mind: {claim.caveat}" if claim.caveat else "",
        f"`normkit lab run {claim.name}`",
    ]
    return "\n\n".join(filter(None, lines)) + "\n"


def _row(one: Outcome) -> str:
    cells = (one.number.words, one.shown, one.number.paper or "–", one.number.bound or "–")
    return f"| {' | '.join(cell.replace(' %', UNIT) for cell in cells)} |"


def _capital(words: str) -> str:
    return words[0].upper() + words[1:]


if __name__ == "__main__":
    main(sys.argv[1:])
