"""What a rule of the auditor is: a name, what it needs, why it matters, and a check."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from normkit.models.auditing.evidence import Evidence
from normkit.models.auditing.findings import SEVERITIES, Finding

__all__ = ["NotEnoughError", "Rule", "rule"]

Check = Callable[["Rule", Evidence], Iterable[Finding]]


class NotEnoughError(Exception):
    """What a check raises where it cannot tell: its text says what it needs, as in Skipped."""


@dataclass(frozen=True)
class Rule:
    """One fault of normalization, and how it is found.

    Args:
        name: in words joined by hyphens; what ``--ignore`` takes.
        needs: of ``"weights"``, ``"graph"``, ``"layers"`` (a model that runs), ``"data"``,
            ``"labels"``, and ``"configuration.<field>"``; the rule runs where all are there.
        severity: of its findings, unless the check says otherwise.
        why: one sentence.
        check: yields findings; takes the rule itself and the evidence.
        yields_to: names of rules that find the cause of which this one sees an effect. A finding
            is left out where one of them has a finding at the same site, or at the model as a
            whole, about the same channels or all of them; a finding about the model as a whole,
            where one of them has any.
    """

    name: str
    needs: tuple[str, ...]
    severity: str
    why: str
    check: Check
    yields_to: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        assert self.severity in SEVERITIES, self.severity

    def missing(self, evidence: Evidence) -> list[str]:
        """What it needs and there is not, in words that say how to give it."""
        return [words for need in self.needs if (words := evidence.lacks(need))]

    def finding(self, site: str, measured: str, repair: str, **more: Any) -> Finding:
        """A finding of this rule's; ``more`` are Finding's other fields."""
        more.setdefault("severity", self.severity)
        return Finding(self.name, site=site, measured=measured, why=self.why, repair=repair, **more)


def rule(
    *, needs: tuple[str, ...], severity: str, why: str, yields_to: tuple[str, ...] = ()
) -> Callable[[Check], Rule]:
    """Makes a function the check of a rule that is named like it, with hyphens."""

    def wrap(check: Check) -> Rule:
        name = check.__name__.replace("_", "-")
        return Rule(name, needs, severity, why, check, yields_to)

    return wrap
