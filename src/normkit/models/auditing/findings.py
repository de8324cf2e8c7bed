"""What an audit is made of: findings, rules that could not run, what was measured of each norm."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

__all__ = ["SEVERITIES", "Finding", "LayerRecord", "Skipped", "all_needs", "needs_in_words"]

#: From the least to the worst: worth knowing, costs something, is wrong.
SEVERITIES = ("info", "warning", "error")


@dataclass(frozen=True)
class Finding:
    """One fault at one place.

    Args:
        rule: the rule's name, such as ``"stale-statistics"``.
        severity: one of :data:`SEVERITIES`.
        site: the layer's path; "" for the model as a whole.
        measured: what was measured against which threshold, in words with numbers.
        value, threshold: the two numbers, where the rule has such.
        why: why it matters, one sentence.
        repair: the call, or the change, that repairs it.
        channels: those concerned, where not all are.
        effects: names of rules that found no more than what follows from this.
    """

    rule: str
    severity: str
    site: str
    measured: str
    why: str
    repair: str
    value: float | None = None
    threshold: float | None = None
    channels: tuple[int, ...] = ()
    effects: tuple[str, ...] = ()


@dataclass(frozen=True)
class Skipped:
    """A rule that could not run, and what it needs: ``needs="data: pass data="``."""

    rule: str
    needs: str


def needs_in_words(needs: Iterable[str]) -> str:
    """What a rule needs, as ``Skipped.needs`` holds it.

    >>> needs_in_words(["data: pass data=", "a setting: pass one=", "a setting: pass two="])
    'data: pass data=; a setting: pass one=, two='
    """
    return "; ".join(
        f"{need}: {ways[0]}" + "".join(f", {way.removeprefix(_PASS)}" for way in ways[1:])
        for need, ways in _ways_by_need(needs).items()
    )


def all_needs(skipped: Iterable[Skipped]) -> str:
    """What there is to give for all of them, the settings of training behind the rest.

    >>> all_needs([Skipped("one", "a setting: pass a=, b="), Skipped("two", "data: pass data=")])
    'a setting (a=, b=); data (data=)'
    """
    found = _ways_by_need(need for each in skipped for need in each.needs.split("; "))
    said = sorted(found.items(), key=lambda item: "configuration" in item[0])
    return "; ".join(
        f"{need} ({', '.join(way.removeprefix(_PASS) for way in ways)})" for need, ways in said
    )


_PASS = "pass "


def _ways_by_need(needs: Iterable[str]) -> dict[str, list[str]]:
    """Of ``"need: pass this, that"`` all that can be passed for the need."""
    found: dict[str, list[str]] = {}
    for each in needs:
        need, _, way = each.partition(": ")
        several = way.startswith(_PASS) and way.removeprefix(_PASS).split(", ")
        ways = [_PASS + each for each in several] if several else [way]
        known = found.setdefault(need, [])
        known += [way for way in ways if way not in known]
    return found


@dataclass(frozen=True, eq=False)
class LayerRecord:
    """What is known of one norm, for tables and pictures. All lists are by channel.

    Args:
        name, kind, type_name: as of its NormSite.
        channels: how many.
        gamma, beta, running_mean, running_var: as stored.
        fresh_mean, fresh_var: of the data; var is the population's estimate.
        samples, elements: behind them: samples, and elements a channel.
        edges, counts: a histogram of the norm's output over the data: len(edges) = len(counts) + 1.
        eps: added to the variance.
    """

    name: str
    kind: str
    type_name: str
    channels: int | None
    gamma: list[float] = field(default_factory=list)
    beta: list[float] = field(default_factory=list)
    running_mean: list[float] = field(default_factory=list)
    running_var: list[float] = field(default_factory=list)
    fresh_mean: list[float] = field(default_factory=list)
    fresh_var: list[float] = field(default_factory=list)
    samples: int = 0
    elements: int = 0
    edges: list[float] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    eps: float | None = None
