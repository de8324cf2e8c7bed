"""Rules run over evidence; of their findings, causes are kept and effects of them left out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from normkit.models.auditing.evidence import Evidence
from normkit.models.auditing.findings import SEVERITIES, Finding, Skipped, needs_in_words
from normkit.models.auditing.rule import NotEnoughError, Rule
from normkit.words import first_line

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
            skipped.append(Skipped(rule.name, needs_in_words(missing)))
            continue
        try:
            found[rule.name] = list(rule.check(rule, evidence))
        except NotEnoughError as error:
            skipped.append(Skipped(rule.name, str(error)))
        except Exception as error:  # one rule's mistake is not to hide what the others find
            said = first_line(error).replace("; ", ", ")
            words = (
                f"a correction of normkit: {rule.name} failed with {type(error).__name__}: {said}"
            )
            skipped.append(Skipped(rule.name, words))
    kept = _causes(rules, found)
    places = {site.name: i for i, site in enumerate(evidence.sites)}
    kept.sort(key=lambda f: (-SEVERITIES.index(f.severity), places.get(f.site, -1)))
    return kept, skipped, list(found)


def _causes(rules: Sequence[Rule], found: dict[str, list[Finding]]) -> list[Finding]:
    """What nothing else explains; as severe as the worst that it explains."""
    effects: dict[int, list[Finding]] = {}
    kept = []
    for rule in rules:
        for finding in found.get(rule.name, ()):
            rivals = [f for name in rule.yields_to for f in found.get(name, ())]
            causes = [f for f in rivals if _covers(f, finding)]
            for cause in _likeliest(causes, finding):
                effects.setdefault(id(cause), []).append(finding)
            if not causes:
                kept.append(finding)
    return [_with_effects(finding, effects.get(id(finding), [])) for finding in kept]


def _likeliest(causes: Sequence[Finding], effect: Finding) -> Sequence[Finding]:
    """Of what may explain an effect on the model as a whole, the worst; no trifle is to blame."""
    if effect.site or not causes:
        return causes
    worst = max(SEVERITIES.index(cause.severity) for cause in causes)
    return [cause for cause in causes if SEVERITIES.index(cause.severity) == worst]


def _with_effects(finding: Finding, effects: Sequence[Finding]) -> Finding:
    worst = max((f.severity for f in (finding, *effects)), key=SEVERITIES.index)
    names = tuple(dict.fromkeys(f.rule for f in effects))
    return replace(finding, severity=worst, effects=names)


def _covers(cause: Finding, effect: Finding) -> bool:
    if not effect.site or not cause.site:
        return True
    if effect.site != cause.site:
        return False
    return not cause.channels or (
        bool(effect.channels) and set(effect.channels) <= set(cause.channels)
    )
