"""The result of an audit, as words and as JSON."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from normkit.errors import OptionError
from normkit.models.auditing.findings import (
    SEVERITIES,
    Finding,
    LayerRecord,
    Skipped,
    all_needs,
)
from normkit.plain import plain
from normkit.words import counted, listed
from normkit.writing import check_output, write_whole

__all__ = ["Report"]


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
        return dict(plain(self))

    def table(self, *, verbose: bool = False) -> str:
        """The findings and what could not be looked at, as text.

        Args:
            verbose: with all the rules that could not look, each with what it needs.
        """
        return "\n".join(_lines(self, verbose))

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
            from normkit.models.auditing.page import render  # its libraries are optional

            write_whole(path, render(self))


def _lines(report: Report, verbose: bool) -> Iterator[str]:
    looked, all_rules = len(report.ran), len(report.ran) + len(report.skipped)
    rules = (
        f"{looked} of {counted(all_rules, 'rule')}" if report.skipped else counted(looked, "rule")
    )
    yield (
        f"{report.model}: {counted(len(report.findings), 'finding')} in "
        f"{counted(len(report.layers), 'norm')}, {rules} looked"
    )
    for group in _alike(report.findings):
        yield ""
        yield from _group(group)
    if report.notes:
        yield ""
        for note in report.notes:
            yield _fill(f"Note: {note}.", 100, subsequent_indent="      ")
    if report.skipped:
        yield ""
        yield from (_every_skipped if verbose else _needs)(report.skipped)


def _needs(skipped: Sequence[Skipped]) -> Iterator[str]:
    """What there is to give, in a sentence."""
    start = f"{counted(len(skipped), 'rule')} could not look: "
    start += "it needs " if len(skipped) == 1 else "they need "
    yield _fill(f"{start}{all_needs(skipped)}.", 100, subsequent_indent="  ")


def _every_skipped(skipped: Sequence[Skipped]) -> Iterator[str]:
    """What each of them needs."""
    yield "Could not look:"
    by_need: dict[str, list[str]] = {}
    for each in skipped:
        by_need.setdefault(each.needs, []).append(each.rule)
    for needs, rules in by_need.items():
        words = f"{', '.join(rules)}: {'needs' if len(rules) == 1 else 'need'} {needs}"
        yield _fill(words, 100, initial_indent="  ", subsequent_indent="    ")


def _alike(findings: Sequence[Finding]) -> list[list[Finding]]:
    """Findings that say the same of several layers, together."""
    groups: dict[tuple[Any, ...], list[Finding]] = {}
    for f in findings:
        groups.setdefault((f.severity, f.rule, f.measured, f.effects), []).append(f)
    return list(groups.values())


def _group(findings: Sequence[Finding]) -> Iterator[str]:
    first = findings[0]
    names = [f.site for f in findings]
    repair = first.repair.rstrip(".")
    if any(f.repair != first.repair for f in findings):
        repair += "; and alike at the others"
    yield f"{first.severity.upper()} {first.rule} at {listed(names)}"
    for label, words in (
        ("found", first.measured), ("why", first.why), ("effect", ", ".join(first.effects)),
        ("repair", repair + "."),
    ):  # fmt: skip
        if words:
            yield _fill(
                words,
                100,
                initial_indent=f"  {label:7}",
                subsequent_indent=" " * 9,
            )


def _fill(words: str, width: int, *, initial_indent: str = "", subsequent_indent: str = "") -> str:
    """Lines of this width; options and names of rules, which have hyphens, stay whole."""
    return textwrap.fill(
        words,
        width,
        initial_indent=initial_indent,
        subsequent_indent=subsequent_indent,
        break_on_hyphens=False,
    )
