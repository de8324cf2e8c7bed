"""The last stop: five claims of papers, each tried for a second or two."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from normkit.lab.claims import find
from normkit.lab.page import sections
from normkit.lab.running import Task, carry_out
from normkit.lab.verdicts import Judged, judge
from normkit.machine import commit
from normkit.report import Section
from normkit.words import counted

__all__ = ["CLAIMS", "Visit", "visit"]

#: In the order of the lab's table of contents.
CLAIMS = ("faster", "learning_rates", "smoothness", "small_batches", "precise_statistics")


@dataclass(frozen=True)
class Visit:
    """What the five came to.

    Args:
        judged: by claim; a quick look gives no verdict.
        problems: experiments that could not be carried out.
    """

    judged: tuple[Judged, ...]
    problems: tuple[str, ...]

    def sections(self) -> list[Section]:
        """As parts of a page."""
        return sections(self.judged, heading="Five claims of papers", notes=self.problems)

    def to_dict(self) -> dict[str, Any]:
        """Medians by claim and number, and the seeds for which every criterion holds."""
        return {
            "claims": {
                one.claim.name: {
                    "seeds": [record.seed for record in one.records],
                    "held": one.held,
                    "numbers": {found.number.name: found.median for found in one.outcomes},
                }
                for one in self.judged
            },
            "problems": list(self.problems),
        }


def visit(seeds: Sequence[int], say: Callable[[str], None]) -> Visit:
    """Carry out quick looks, and say what came of each."""
    judged, problems, source = [], [], commit()
    for claim in find(CLAIMS):
        records = []
        for seed in seeds:
            done = carry_out(Task(claim.name, seed, quick=True), source)
            if done.record is None:
                problems.append(f"The experiment {claim.name} failed, seed {seed}: {done.problem}")
            else:
                records.append(done.record)
        one = judge(claim, records)
        judged.append(one)
        say(f"{claim.title} ({claim.name}): {_held(one)}")
        for line in _figures(one):
            say(f"    {line}")
    return Visit(tuple(judged), tuple(problems))


def _held(one: Judged) -> str:
    return f"criteria met by {one.held} of {counted(len(one.records), 'seed')}"


def _figures(one: Judged) -> list[str]:
    """What the verdict would rest on."""
    return [
        f"{found.number.words}: {found.shown}, expected {found.number.bound}"
        for found in one.outcomes
        if found.number.is_criterion
    ]
