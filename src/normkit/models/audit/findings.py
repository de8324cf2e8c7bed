"""What an audit says: findings, rules that could not run, what was measured; as words and JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

__all__ = ["SEVERITIES", "Finding", "LayerRecord", "Report", "Skipped"]

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


@dataclass(frozen=True)
class Skipped:
    """A rule that could not run, and what it needs: ``needs="data: pass data="``."""

    rule: str
    needs: str


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


@dataclass(frozen=True, eq=False)
class Report:
    """The result of an audit.

    Args:
        model: what was audited, for people.
        findings: the worst first, then in the order of the layers.
        skipped: rules that could not run.
        ran: names of the rules that did.
        layers: the norms in the order of the model.
        nodes: the map of the network, where its graph is known: (name, op, site or "") of each.
        edges: (from, to) between the names of ``nodes``.
        notes: what else the reader should know: parts that could not be traced, no norms at all.
    """

    model: str
    findings: Sequence[Finding] = ()
    skipped: Sequence[Skipped] = ()
    ran: Sequence[str] = ()
    layers: Sequence[LayerRecord] = ()
    nodes: Sequence[tuple[str, str, str]] = ()
    edges: Sequence[tuple[str, str]] = ()
    notes: Sequence[str] = ()

    def at_least(self, severity: str) -> list[Finding]:
        """The findings of this severity or worse."""
        wanted = SEVERITIES[SEVERITIES.index(severity) :]
        return [finding for finding in self.findings if finding.severity in wanted]

    def exit_status(self, fail_on: str = "warning") -> int:
        """0 where nothing of this severity or worse was found, else 1: for CI."""
        return int(bool(self.at_least(fail_on)))

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as ``normkit audit --json`` prints them; no NaN or infinity among them."""
        raise NotImplementedError

    def save(self, path: Any, *, overwrite: bool = False) -> None:
        """Write the report, as HTML or JSON by the file's ending."""
        raise NotImplementedError
