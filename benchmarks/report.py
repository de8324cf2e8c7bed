"""Render kept results: the lines of a run, and the tables of docs/benchmarks.md.

``python -m benchmarks.report [RESULTS.json]`` fills the page from the newest results, or from those
that are named. Between two marks in the page everything is written here; all else is by hand.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from bench_cases import MB
from benchmarks import RESULTS, ROOT
from benchmarks.goals import Results, Row, ratio
from benchmarks.layer_report import LAYER_PARTS
from benchmarks.tables import MISSING, number, table, times, times_and_spread
from benchmarks.targets import judge

PAGE = ROOT / "docs" / "benchmarks.md"
TIMED = ("cases", "layers", "networks")  # parts of the results whose processes take turns
BUSY = 0.1  # the share of the machine taken by others from which a case's figures are called poor
HEADER = (
    f"{'case':46} {'MB':>6} {'eager ms':>9} {'ours ms':>9}"
    f" {'eager':>6} {'numpy':>6} {'compile':>7} {'jax':>6} {'copy':>6} {'stream':>6}"
)


def ratios(row: Row) -> dict[str, float | None]:
    """The columns of a case: speed-ups over peers, and our time against memory's."""
    return {
        "eager": ratio(row, "eager", "normkit", "step"),
        "numpy": ratio(row, "eager", "numpy", "step"),
        "compile": ratio(row, "compile", "normkit", "step"),
        "jax": ratio(row, "jax", "normkit", "step"),
        "copy": ratio(row, "normkit", "memory", "forward"),
        "stream": ratio(row, "normkit", "memory", "backward"),
    }


def line(row: Row) -> str:
    """One case as a line of a run's output, under HEADER."""
    widths = (6, 6, 7, 6, 6, 6)
    cells = [f"{number(value):>{w}}" for value, w in zip(ratios(row).values(), widths, strict=True)]
    return (
        f"{row['id']:46} {row['bytes'] / MB:6.1f} {times(row, 'eager'):>9}"
        f" {times(row, 'normkit'):>9} {' '.join(cells)}"
    )


def targets_text(results: Results) -> str:
    """The targets that these results can judge, for the terminal."""
    lines = [
        f"{verdict.replace('*', ''):18} {target.group}: {target.text}: "
        f"{target.show(measured.value)} ({target.goal_text}; {measured.note})"
        for target, measured, verdict in judge(results)
        if measured is not None
    ]
    return "\n".join(lines) or "no target can be judged by this run"


def targets_table(results: Results) -> str:
    rows = [
        [
            target.group,
            target.text,
            target.goal_text,
            target.show(measured.value) if measured else MISSING,
            verdict,
            measured.note if measured else "",
        ]
        for target, measured, verdict in judge(results)
    ]
    head = ["", "target", "goal", "measured", "verdict", "detail"]
    # a group is named once, on its first row
    for before, row in zip(reversed(rows[:-1]), reversed(rows[1:]), strict=True):
        if before[0] == row[0]:
            row[0] = ""
    return table(head, rows, left=6)


def cases_table(results: Results) -> str:
    rows = []
    for row in results["cases"]:
        rows.append(
            [
                f"`{row['id']}`",
                f"{row['bytes'] / MB:.3g}",
                times_and_spread(row, "eager"),
                times_and_spread(row, "normkit"),
                *map(number, ratios(row).values()),
            ]
        )
    head = [
        "case",
        "x, MB",
        "eager, ms (spread)",
        "normkit, ms (spread)",
        "eager / normkit",
        "eager / NumPy API",
        "compile / normkit",
        "JAX / normkit",
        "forward / copy",
        "backward / stream",
    ]
    return table(head, rows)


def memory_table(results: Results) -> str:
    rows = []
    for row in results["memory"]:
        for peer, found in row["memory"].items():
            beyond, outputs = found["beyond"] / MB, found["outputs"] / MB
            size = "×".join(map(str, row["shape"]))
            cells = [
                size,
                peer,
                f"{row['bytes'] / MB:.1f}",
                f"{outputs:.1f}",
                f"{beyond:.1f}",
            ]
            rows.append([*cells, found["method"]])
    return table(["x", "peer", "x, MB", "results, MB", "beyond, MB", "measured by"], rows, left=2)


def startup_table(results: Results) -> str:
    rows = [
        [
            name,
            f"{found['median']:.3f}",
            f"{found['min']:.3f}",
            f"{found['max']:.3f}",
            str(found["n"]),
        ]
        for name, found in results["startup"]["seconds"].items()
    ]
    return table(["", "median, s", "min", "max", "runs"], rows)


def _busy(results: Results) -> list[str]:
    """A line on the cases that had to share the machine; none where there is none."""
    timed = [row for part in TIMED for row in results.get(part, ())]
    shares = {row["id"]: row["others"] or 0.0 for row in timed}
    poor = [f"`{name}` ({share:.0%})" for name, share in shares.items() if share > BUSY]
    text = "- poor figures, as other processes took part of the machine's time: "
    return [text + ", ".join(poor)] if poor else []


def facts(results: Results) -> str:
    machine, versions = results["machine"], results["versions"]
    caches = ", ".join(f"{name} {size}" for name, size in machine["caches"].items())
    packages = ", ".join(f"{name} {version}" for name, version in versions.items())
    skipped = sorted(
        {
            f"{peer} on `{row['id']}`: {reason}"
            for part in (*TIMED, "price", "saved", "memory")
            for row in results.get(part, ())
            for peer, reason in row["skipped"].items()
        }
        | {f"{name}: {reason}" for name, reason in results["startup"]["skipped"].items()}
    )
    lines = [
        f"- {results['date'][:10]}, commit {results['commit'] or 'unknown'}",
        f"- {machine['cpu']}, {machine['cores']} cores, {machine['threads']} threads a process, "
        f"{machine['memory_gib']} GiB" + (f", {caches}" if caches else ""),
        f"- {packages}",
        f"- {results['plan']['rounds']} rounds of each peer and case; {results['minutes']} minutes",
        *_busy(results),
        *(f"- skipped: {text}" for text in skipped),
    ]
    return "\n".join(lines)


PARTS = {
    "facts": facts,
    "targets": targets_table,
    "cases": cases_table,
    **LAYER_PARTS,
    "memory": memory_table,
    "startup": startup_table,
}


def fill(results: Results, page: Path = PAGE) -> None:
    """Replace what stands between the page's marks by what the results say."""
    text = page.read_text()
    for name, render in PARTS.items():
        before, opened, rest = text.partition(f"<!-- {name} -->\n")
        _, closed, after = rest.partition(f"<!-- /{name} -->")
        if not closed:
            raise ValueError(f"{page} has no marks <!-- {name} --> and <!-- /{name} -->")
        text = f"{before}{opened}{render(results)}\n{closed}{after}"
    page.write_text(text)


def newest(folder: Path = RESULTS) -> Path:
    kept = sorted(folder.glob("*.json"), key=lambda path: json.loads(path.read_text())["date"])
    if not kept:
        raise SystemExit(f"no results in {folder}: run `make bench` first")
    return kept[-1]


def main(argv: list[str]) -> None:
    path = Path(argv[0]) if argv else newest()
    fill(json.loads(path.read_text()))
    print(f"filled {PAGE} from {path}")


if __name__ == "__main__":
    main(sys.argv[1:])
