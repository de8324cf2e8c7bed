"""Where results come from: machines, versions, commits, seeds, data; and whether they are alike."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from normkit.lab.results import Record
from normkit.lab.verdicts import Judged
from normkit.report import Section, Table, Text
from normkit.words import counted, duration

__all__ = ["origin", "unlike"]


def origin(judged: Sequence[Judged]) -> list[Section]:
    """The last part of the page."""
    records = _records(judged)
    if not records:
        return []
    rows = [(name, _listed(map(of, records))) for name, of in ASPECTS.items()]
    rows += [
        ("experiments", f"{counted(len(records), 'result')} of {_claims(judged)}"),
        (
            "time",
            f"{duration(sum(record.seconds for record in records))} in all, on one thread each",
        ),
        ("made", _between([record.time for record in records if record.time])),
    ]
    words = (
        "A seed draws the images that are trained on, the initial weights and the batches; the "
        "same seed gives the same figures on the same machine and versions."
    )
    if any((record.commit or "").endswith("+") for record in records):
        words += " A + behind a commit: files of the source differed from it."
    return [
        Table("Where it comes from", ("", ""), [row for row in rows if row[1]]),
        Text("", [words]),
    ]


def unlike(judged: Sequence[Judged]) -> list[str]:
    """In what the results differ that a reader would take to be one thing."""
    records = _records(judged)
    found = []
    for name, of in ASPECTS.items():
        kinds = {of(record) for record in records} - {""}
        if name != "seeds" and len(kinds) > 1:
            found.append(
                f"The results come from {len(kinds)} different {PLURALS[name]}: "
                f"{_listed(map(of, records))}."
            )
    return found


def _records(judged: Sequence[Judged]) -> list[Record]:
    return [record for one in judged for record in one.records]


def _claims(judged: Sequence[Judged]) -> str:
    return counted(sum(bool(one.records) for one in judged), "claim")


def _machine(record: Record) -> str:
    """The processor, the cores, the memory and the system, where they are known."""
    facts = record.machine
    words = [str(facts[name]) for name in ("cpu", "system") if facts.get(name)]
    if facts.get("cores"):
        words.insert(1, counted(facts["cores"], "core"))
    if facts.get("memory_gib"):
        words.append(f"{facts['memory_gib']:.0f} GiB")
    return ", ".join(words)


def _versions(record: Record) -> str:
    return ", ".join(f"{name} {version}" for name, version in record.versions.items())


ASPECTS: dict[str, Callable[[Record], str]] = {
    "data": lambda record: record.data,
    "runs": lambda record: "quick" if record.quick else "full",
    "seeds": lambda record: str(record.seed),
    "commit": lambda record: record.commit or "",
    "machine": _machine,
    "versions": _versions,
}
PLURALS = {
    "data": "sets of images",
    "runs": "kinds of runs",
    "commit": "commits",
    "machine": "machines",
    "versions": "sets of versions",
}


def _listed(values: Iterable[str]) -> str:
    """Each value once, and how often where there are several."""
    counts = Counter(value for value in values if value)
    if len(counts) <= 1 or len(set(counts.values())) == 1:
        return "; ".join(sorted(counts))
    return "; ".join(f"{value} ({number})" for value, number in sorted(counts.items()))


def _between(times: Sequence[str]) -> str:
    if not times:
        return ""
    first, last = min(times), max(times)
    return first if first == last else f"{first} to {last}"
