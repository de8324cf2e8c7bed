"""audit(): a model and what is known of it go in, a report comes out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import fields, replace
from typing import Any

from torch import nn

from normkit.errors import ModelError, OptionError
from normkit.models.audit.evidence import Configuration, Evidence
from normkit.models.audit.findings import SEVERITIES, Finding, Report, Skipped
from normkit.models.audit.rule import NotEnoughError, Rule
from normkit.models.audit.rules import RULES
from normkit.models.batches import Forward
from normkit.models.sites import find_sites
from normkit.models.tracing import trace

__all__ = ["audit", "run_rules"]


def audit(
    model: Any,
    data: Any = None,
    *,
    example: Any = None,
    forward: Forward | None = None,
    configuration: Configuration | None = None,
    rules: Iterable[str | Rule] | None = None,
    ignore: Iterable[str] = (),
    progress: bool | None = None,
    name: str | None = None,
    **known: Any,
) -> Report:
    """Look for faults of normalization in a model. Nothing of the model is changed."""
    wanted = _wanted(rules, ignore)
    settings = _configuration(configuration, known)
    evidence = _evidence(model, settings)
    findings, skipped, ran = run_rules(wanted, evidence)
    title = name or type(model).__name__
    return Report(title, findings, skipped, ran)


def _evidence(model: Any, configuration: Configuration) -> Evidence:
    if isinstance(model, nn.Module):
        tensors = dict(model.state_dict(keep_vars=True))
        return Evidence(find_sites(model), tensors, trace(model), model, None, configuration)
    raise ModelError(
        "That is no model",
        received=type(model).__name__,
        expected="a torch.nn.Module, or what open_model() returned",
        remedy="Open files with normkit.models.open_model(path).",
    )


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
            skipped.append(
                Skipped(rule.name, f"a repair of its own: {type(error).__name__} {said}")
            )
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
    channels = not cause.channels or set(effect.channels) <= set(cause.channels)
    return cause.site == effect.site and channels and (not cause.channels or bool(effect.channels))


def _wanted(rules: Iterable[str | Rule] | None, ignore: Iterable[str]) -> list[Rule]:
    known = {rule.name: rule for rule in RULES}
    ignored = [ignore] if isinstance(ignore, str) else list(ignore)
    chosen = list(RULES) if rules is None else list([rules] if isinstance(rules, str) else rules)
    for given in (*chosen, *ignored):
        if not isinstance(given, Rule) and given not in known:
            raise OptionError(
                "There is no such rule",
                received=repr(given),
                expected=", ".join(known),
                remedy="Rules go by the names that findings show.",
            )
    named = [rule if isinstance(rule, Rule) else known[rule] for rule in chosen]
    return [rule for rule in named if rule.name not in ignored]


def _configuration(given: Configuration | None, known: dict[str, Any]) -> Configuration:
    names = [f.name for f in fields(Configuration)]
    unknown = [name for name in known if name not in names]
    if unknown:
        raise OptionError(
            "audit() knows no such argument",
            received=", ".join(unknown),
            expected=", ".join(names),
            remedy="These describe how the model is trained.",
        )
    return replace(given or Configuration(), **known)
