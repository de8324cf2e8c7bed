"""What an audit says: findings, rules that could not run, what was measured; as words and JSON."""

from __future__ import annotations

import importlib
import json
import math
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

from normkit.errors import OptionError
from normkit.writing import check_output, write_whole

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
        """Plain values, as ``normkit audit --json`` prints them; None for NaN and infinity."""
        return {f.name: _plain(getattr(self, f.name)) for f in fields(self)}

    def table(self) -> str:
        """The findings and what could not be looked at, as text."""
        return "\n".join(_lines(self))

    def __str__(self) -> str:
        return self.table()

    def save(self, path: Any, *, overwrite: bool = False) -> None:
        """Write the report, as HTML or JSON by the file's ending.

        Raises:
            FileError: the file exists, or cannot be written.
            OptionError: another ending.
        """
        path = Path(path)
        if path.suffix.lower() not in (".html", ".htm", ".json"):
            raise OptionError(
                "A report is a page or JSON",
                received=path.name,
                expected="a name that ends in .html or .json",
                remedy="print(report) shows it as text.",
            )
        check_output(path, overwrite=overwrite)
        if path.suffix.lower() == ".json":
            content = json.dumps(self.to_dict(), indent=1, ensure_ascii=False, allow_nan=False)
            write_whole(path, content + "\n")
        else:
            # By name: the page imports this module, and its libraries are optional.
            page = importlib.import_module("normkit.models.audit.page")
            write_whole(path, page.render(self))


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return {f.name: _plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _lines(report: Report) -> Iterator[str]:
    count = len(report.findings)
    yield (
        f"{report.model}: {_number(count, 'finding')} in {_number(len(report.layers), 'norm')}, "
        f"{_number(len(report.ran), 'rule')} looked, {len(report.skipped)} could not"
    )
    for finding in report.findings:
        yield ""
        yield f"{finding.severity.upper()} {finding.rule} at {finding.site or 'the model'}"
        for label, words in (
            ("found", finding.measured), ("why", finding.why), ("repair", finding.repair),
        ):  # fmt: skip
            yield textwrap.fill(
                words, 100, initial_indent=f"  {label:7}", subsequent_indent=" " * 9
            )
    if report.notes:
        yield ""
        for note in report.notes:
            yield textwrap.fill(f"Note: {note}.", 100, subsequent_indent="      ")
    if report.skipped:
        yield ""
        yield "Could not look:"
        by_need: dict[str, list[str]] = {}
        for each in report.skipped:
            by_need.setdefault(each.needs, []).append(each.rule)
        for needs, rules in by_need.items():
            words = f"{', '.join(rules)}: needs {needs}"
            yield textwrap.fill(words, 100, initial_indent="  ", subsequent_indent="    ")


def _number(count: int, what: str) -> str:
    return f"{count} {what}" + ("" if count == 1 else "s")
