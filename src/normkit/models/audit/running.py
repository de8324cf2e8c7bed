"""Rules run over evidence; of their findings, causes are kept and effects of them left out."""

from __future__ import annotations

from collections.abc import Sequence

from normkit.models.audit.evidence import Evidence
from normkit.models.audit.findings import SEVERITIES, Finding, Skipped
from normkit.models.audit.rule import NotEnoughError, Rule

__all__ = ["run_rules"]


def run_rules(
    rules: Sequence[Rule], evidence: Evidence
) -> tuple[list[Finding], list[Skipped], list[str]]:
    """Findings (the worst first), rules that could not run, and names of those that did."""
    found: dict[str, list[Finding]] = {}
    skipped = []
    for rule in rules:
        missing = rule.missing(evidence)
        if missing:
            skipped.append(Skipped(rule.name, "; ".join(missing)))
            continue
        try:
            found[rule.name] = list(rule.check(rule, evidence))
        except NotEnoughError as error:
            skipped.append(Skipped(rule.name, str(error)))
        except Exception as error:  # one rule's mistake is not to hide what the others find
            said = (str(error).splitlines() or [""])[0]
            words = f"a correction of normkit: the rule failed with {type(error).__name__}: {said}"
            skipped.append(Skipped(rule.name, words))
    kept = [f for rule in rules for f in found.get(rule.name, ()) if not _explained(f, rule, found)]
    places = {site.name: i for i, site in enumerate(evidence.sites)}
    kept.sort(key=lambda f: (-SEVERITIES.index(f.severity), places.get(f.site, -1)))
    return kept, skipped, list(found)


def _explained(finding: Finding, rule: Rule, found: dict[str, list[Finding]]) -> bool:
    """Whether a rule that this one yields to has found the cause."""
    causes = [cause for name in rule.yields_to for cause in found.get(name, ())]
    return any(_covers(cause, finding) for cause in causes)


def _covers(cause: Finding, effect: Finding) -> bool:
    if not effect.site or not cause.site:
        return True
    if effect.site != cause.site:
        return False
    return not cause.channels or (
        bool(effect.channels) and set(effect.channels) <= set(cause.channels)
    )
