"""An audit's report as an HTML page."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from normkit.models.auditing.findings import SEVERITIES, Finding, LayerRecord
from normkit.models.auditing.pictures import number, pictures
from normkit.report import (
    Diagram,
    DiagramNode,
    Fold,
    Folds,
    Notice,
    Notices,
    Place,
    Section,
    Table,
    Text,
    Verdict,
    page,
)

if TYPE_CHECKING:
    from normkit.models.auditing.report import Report

__all__ = ["render", "sections_of"]

OPENED = 3  # layers with findings that stand open from the start
MOST_CHANNELS = 8  # named in a finding

LEGEND = {
    "good": "norm, nothing found",
    "info": "norm, worth knowing",
    "warning": "norm, costs something",
    "error": "norm, something is wrong",
}
MEANING = {
    "error": "Something is wrong",
    "warning": "Nothing is wrong outright, but something costs",
    "info": "Nothing is wrong; something is worth knowing",
}
#: What a node of the map shows of its operation.
LABELS = {
    "input": "in", "output": "out", "constant": "w", "conv": "conv", "conv_transpose": "convᵀ",
    "linear": "lin", "activation": "act", "softmax": "soft", "dropout": "drop", "identity": "id",
    "reshape": "view", "pool_average": "pool", "pool_max": "pool", "pad": "pad", "add": "+",
    "multiply": "×", "concatenate": "cat", "norm": "norm", "other": "·",
}  # fmt: skip


def render(report: Report) -> str:
    """The report as one HTML page that loads nothing else.

    Raises:
        ModuleNotFoundError: jinja2 is not installed; the message says what to install.

    >>> from normkit.models.auditing.report import Report
    >>> "<h1>Audit of a network</h1>" in render(Report("a network"))
    True
    """
    return page(f"Audit of {report.model}", sections_of(report))


def sections_of(report: Report, prefix: str = "layer") -> list[Section]:
    """The parts of the page, for a longer page to hold.

    Args:
        prefix: of the anchors; another one for each report in a page.

    >>> from normkit.models.auditing.report import Report
    >>> [type(section).__name__ for section in sections_of(Report("a network"))]
    ['Verdict']
    """
    anchors = {layer.name: f"{prefix}-{i}" for i, layer in enumerate(report.layers, 1)}
    sections: list[Section] = [_verdict(report)]
    if report.findings:
        sections.append(Notices("Findings", _notices(report.findings, anchors)))
    if report.skipped:
        sections.append(_skipped(report))
    if report.layers:
        sections += [_map(report, anchors, f"{prefix}-map"), _layers(report, prefix)]
    if report.ran:
        sections.append(Text("Rules that looked", [", ".join(report.ran) + "."]))
    return sections


# --- at the top -----------------------------------------------------------------------------------


def _verdict(report: Report) -> Verdict:
    counts = Counter(finding.severity for finding in report.findings)
    words = {"error": "error", "warning": "warning", "info": "note"}
    shown = [
        (level, counts[level], words[level] + ("" if counts[level] == 1 else "s"))
        for level in reversed(SEVERITIES)
    ]
    return Verdict(
        level=_worst(report.findings) or ("good" if report.layers else "info"),
        words=_sentence(report),
        counts=shown if report.layers or report.findings else (),
        paragraphs=[
            *_scope(report),
            *(f"{note[:1].upper()}{note[1:].rstrip('.')}." for note in report.notes),
        ],
    )


def _sentence(report: Report) -> str:
    worst = _worst(report.findings)
    if worst:
        places = len({finding.site for finding in report.findings})
        return (
            f"{MEANING[worst]}: {number(len(report.findings), 'finding')} "
            f"in {number(places, 'place')}"
        )
    if not report.layers:
        return "No normalization found: there is nothing to audit"
    looked = f"Nothing found by the {number(len(report.ran), 'rule')} that looked"
    return looked + (f"; {len(report.skipped)} could not look" if report.skipped else "")


def _scope(report: Report) -> list[str]:
    """What was audited, and with what."""
    if not report.layers:
        return []
    kinds = Counter(layer.kind for layer in report.layers)
    channels = sum(layer.channels or 0 for layer in report.layers)
    listed = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
    what = (
        f"Audited: {number(len(report.layers), 'norm')} ({listed}) "
        f"with {number(channels, 'channel')} in all."
    )
    samples = max(layer.samples for layer in report.layers)
    if samples:
        with_what = f"{number(samples, 'sample')} of data went through the model."
    else:
        with_what = (
            "No data went through the model: what is said here rests on what is stored in it, and "
            "fresh statistics and distributions are missing. Pass data= to have them."
        )
    return [f"{what} {with_what}"]


def _skipped(report: Report) -> Table:
    by_need: dict[str, list[str]] = {}
    for each in report.skipped:
        by_need.setdefault(each.needs, []).append(each.rule)
    rows = [(", ".join(rules), needs) for needs, rules in by_need.items()]
    return Table(
        f"Rules that could not look: {len(report.skipped)}", ("rules", "what they need"), rows
    )


def _worst(findings: Iterable[Finding]) -> str:
    """The worst severity among them; "" where there are none."""
    return max((f.severity for f in findings), key=SEVERITIES.index, default="")


# --- findings -------------------------------------------------------------------------------------


def _notices(findings: Sequence[Finding], anchors: dict[str, str]) -> list[Notice]:
    """One for each rule and severity, with all the places."""
    alike: dict[tuple[str, str, str], list[Finding]] = {}
    for finding in findings:
        alike.setdefault((finding.rule, finding.severity, finding.why), []).append(finding)
    return [_notice(group, anchors) for group in alike.values()]


def _notice(findings: Sequence[Finding], anchors: dict[str, str]) -> Notice:
    first = findings[0]
    shared = len({finding.repair for finding in findings}) == 1
    places = [
        Place(
            name=finding.site or "the model as a whole",
            words=". ".join([_measured(finding), *([] if shared else _repair(finding.repair))]),
            anchor=anchors.get(finding.site, ""),
            code="" if shared else _calls(finding.repair),
        )
        for finding in findings
    ]
    at = f" in {len(findings)} places" if len(findings) > 1 else ""
    paragraphs = [first.why, *_repair(first.repair)] if shared else [first.why]
    return Notice(
        first.severity, first.rule + at, places, paragraphs, _calls(first.repair) if shared else ""
    )


def _repair(repair: str) -> list[str]:
    """What to do in words, where it is more than the call that is shown below."""
    return [] if _calls(repair) == repair.rstrip(".") else [f"Repair: {repair}"]


def _measured(finding: Finding) -> str:
    """What was measured, at which channels, and what follows from it."""
    effects = f"; the cause of {', '.join(finding.effects)}" if finding.effects else ""
    return _where(finding) + effects


def _where(finding: Finding) -> str:
    if not finding.channels or "channel" in finding.measured:
        return finding.measured
    named = ", ".join(map(str, finding.channels[:MOST_CHANNELS]))
    more = len(finding.channels) - MOST_CHANNELS
    return f"{finding.measured} (channels {named}{f' and {more} more' if more > 0 else ''})"


def _calls(repair: str) -> str:
    """The calls of normkit in a sentence, one a line: what a reader would copy."""
    calls = []
    for match in re.finditer(r"\bnormkit(\.\w+)+\(", repair):
        depth, at = 1, match.end()
        while depth and at < len(repair):
            depth += {"(": 1, ")": -1}.get(repair[at], 0)
            at += 1
        if not depth:
            calls.append(repair[match.start() : at])
    return "\n".join(dict.fromkeys(calls))


# --- the map --------------------------------------------------------------------------------------


def _map(report: Report, anchors: dict[str, str], anchor: str) -> Diagram:
    levels = _levels(report)
    places = {layer.name: i for i, layer in enumerate(report.layers, 1)}
    titles = {layer.name: _title(report, layer) for layer in report.layers}

    def norm(name: str, site: str) -> DiagramNode:
        return DiagramNode(
            name, str(places[site]), titles[site], levels[site], anchors.get(site, "")
        )

    edges = _forward(report)
    if report.nodes:
        beside = _beside(report, edges)
        nodes = [
            norm(name, site) if site in places else DiagramNode(name, LABELS.get(op, "·"), name)
            for name, op, site in report.nodes
            if name not in beside
        ]
        note = "Left to right, line by line, as the network runs. Numbers are those of the norms."
        if beside:
            note += (
                f" Left out, as no way from an input to an output: {number(len(beside), 'step')}."
            )
    else:
        nodes = [norm(layer.name, layer.name) for layer in report.layers]
        note = (
            "How the layers follow each other is not known: the norms stand in the order of the "
            "model. Pass the model itself to have its graph."
        )
    used = {node.level for node in nodes}
    legend = {level: words for level, words in LEGEND.items() if level in used}
    drawn = {node.name for node in nodes}
    edges = [(a, b) for a, b in edges if a in drawn and b in drawn]
    return Diagram("Map of the network", nodes, edges, legend, note, anchor=anchor)


def _forward(report: Report) -> list[tuple[str, str]]:
    """The edges that lead from a node to a later one: a map can show no others."""
    order = {name: i for i, (name, *_) in enumerate(report.nodes)}
    return [(a, b) for a, b in report.edges if order.get(a, len(order)) < order.get(b, -1)]


def _beside(report: Report, edges: Sequence[tuple[str, str]]) -> set[str]:
    """Nodes that say nothing of how data flows: weights, masks beside an input, unused results."""
    users: dict[str, set[str]] = {name: set() for name, *_ in report.nodes}
    sources: dict[str, set[str]] = {name: set() for name, *_ in report.nodes}
    for source, target in edges:
        users[source].add(target)
        sources[target].add(source)
    fixed: set[str] = set()  # constants, and what follows from them alone
    for name, op, site in report.nodes:
        follows = op not in ("input", "output") and not site and sources[name] <= fixed
        if op == "constant" or (follows and sources[name]):
            fixed.add(name)
    given = fixed | {name for name, op, _ in report.nodes if op == "input"}
    beside = fixed | {
        name for name, op, _ in report.nodes
        if op == "input" and users[name] and all(sources[user] - given for user in users[name])
    }  # fmt: skip
    if any(op == "output" for _, op, _ in report.nodes):
        for name, op, site in reversed(report.nodes):
            if not site and op not in ("output", "input") and users[name] <= beside:
                beside.add(name)
    return beside


def _levels(report: Report) -> dict[str, str]:
    """How bad each norm is."""
    levels = {layer.name: "good" for layer in report.layers}
    for layer in report.layers:
        levels[layer.name] = _worst(f for f in report.findings if f.site == layer.name) or "good"
    return levels


def _title(report: Report, layer: LayerRecord) -> str:
    found = [f"{f.severity}: {f.rule}" for f in report.findings if f.site == layer.name]
    words = [layer.name or "the model itself", layer.type_name, number(layer.channels, "channel")]
    return "\n".join([", ".join(words), *(found or ["nothing found"])])


# --- layer by layer -------------------------------------------------------------------------------


def _layers(report: Report, prefix: str) -> Folds:
    levels = _levels(report)
    wrong = [name for name, level in levels.items() if level != "good"]
    opened = sorted(wrong, key=lambda name: -SEVERITIES.index(levels[name]))[:OPENED]
    folds = [
        Fold(
            title=f"Norm {i}: {layer.name or 'the model itself'}",
            words=_words(report, layer),
            sections=_inside(report, layer),
            level=levels[layer.name],
            anchor=f"{prefix}-{i}",
            opened=layer.name in opened,
        )
        for i, layer in enumerate(report.layers, 1)
    ]
    return Folds("The norms", folds)


def _words(report: Report, layer: LayerRecord) -> str:
    rules = dict.fromkeys(f.rule for f in report.findings if f.site == layer.name)
    words = f"{layer.type_name}, {number(layer.channels, 'channel')}"
    return f"{words}: {', '.join(rules)}" if rules else words


def _inside(report: Report, layer: LayerRecord) -> list[Section]:
    found = [finding for finding in report.findings if finding.site == layer.name]
    words = [f"{f.severity}: {f.rule}: {_measured(f)}." for f in found]
    return [*([Text("", words)] if words else []), *pictures(layer)]
