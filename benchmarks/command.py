"""Run the benchmark: ``python benchmarks/run.py``, or ``make bench``.

A whole run (no --case, --peer, --suite or --quick) is kept in benchmarks/results and fills
docs/benchmarks.md; any other run is only printed, unless --out says where to keep it.
"""

from __future__ import annotations

import argparse
import datetime
import json
import re
import time
from pathlib import Path
from typing import Any

import bench_cases
from bench_cases import CASES, LAYERS, QUICK, QUICK_LAYERS, Case, case_of
from benchmarks import RESULTS, machine, report, suites
from benchmarks.driver import Plan
from benchmarks.peers import PEERS
from benchmarks.suites import SUITES


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python benchmarks/run.py", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few cases, short rounds")
    parser.add_argument("--case", help="only cases whose id has all these parts: batch,8x64,first")
    parser.add_argument("--peer", help=f"only these, separated by commas: {','.join(PEERS)}")
    parser.add_argument("--suite", help=f"only these, separated by commas: {','.join(SUITES)}")
    parser.add_argument("--rounds", type=int, help="rounds of each peer and case (default 7)")
    parser.add_argument("--out", type=Path, help="where to keep the results (JSON)")
    chosen = parser.parse_args(argv)
    for what, given, known in (("peers", chosen.peer, PEERS), ("suites", chosen.suite, SUITES)):
        unknown = set(given.split(",") if given else ()) - set(known)
        if unknown:
            parser.error(f"got the {what} {sorted(unknown)}; expected some of {sorted(known)}")
    if chosen.rounds is not None and chosen.rounds < 1:
        parser.error(f"got --rounds {chosen.rounds}; expected at least 1")
    if chosen.case and not bench_cases.find(chosen.case, CASES + LAYERS):
        parser.error(f"no case has {chosen.case!r} in its id, such as {CASES[0].id}")
    return chosen


def chosen_cases(chosen: argparse.Namespace) -> list[Case]:
    if chosen.case:
        return bench_cases.find(chosen.case)
    return [case_of(name) for name in QUICK] if chosen.quick else list(CASES)


def chosen_layers(chosen: argparse.Namespace) -> list[Case]:
    if chosen.case:
        return bench_cases.find(chosen.case, LAYERS)
    return list(QUICK_LAYERS if chosen.quick else LAYERS)


def chosen_suites(chosen: argparse.Namespace) -> list[str]:
    if chosen.suite:
        return chosen.suite.split(",")
    if chosen.peer:  # the peers are those of the norms' cases
        return ["cases"]
    return ["cases", "layers"] if chosen.case else list(SUITES)


def chosen_peers(chosen: argparse.Namespace) -> list[str]:
    if chosen.peer:
        return chosen.peer.split(",")
    # compilation takes longer than everything else in a quick run
    return [peer for peer in PEERS if not (chosen.quick and peer == "compile")]


def chosen_plan(chosen: argparse.Namespace) -> Plan:
    plan = Plan(rounds=3, round_seconds=0.02, least=1) if chosen.quick else Plan()
    return Plan(chosen.rounds or plan.rounds, plan.round_seconds, plan.least)


def default_path(results: dict[str, Any]) -> Path:
    facts = results["machine"]
    name = re.sub(r"[^a-z0-9]+", "-", f"{facts['cpu']} {facts['cores']} cores".lower()).strip("-")
    return RESULTS / f"{results['date'][:10]}-{name}.json"


def main(argv: list[str] | None = None) -> None:
    chosen = arguments(argv)
    whole = not (chosen.quick or chosen.case or chosen.peer or chosen.suite)
    plan = chosen_plan(chosen)
    choice = suites.Choice(
        chosen_cases(chosen), chosen_peers(chosen), chosen_layers(chosen), plan, chosen.quick, whole
    )
    began = time.monotonic()
    results: dict[str, Any] = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": machine.facts(),
        "versions": machine.versions(),
        "commit": machine.commit(),
        "plan": {"rounds": plan.rounds, "round_seconds": plan.round_seconds},
        **suites.nothing(),
    }
    for name in chosen_suites(chosen):
        results[name] = SUITES[name](choice)
    results["minutes"] = round((time.monotonic() - began) / 60, 1)
    print()
    print(report.targets_text(results))
    print(f"{results['minutes']} minutes")
    keep(results, chosen.out, whole)


def keep(results: dict[str, Any], out: Path | None, whole: bool) -> None:
    path = out or (default_path(results) if whole else None)
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=1) + "\n")
    print(f"kept in {path}")
    if whole and out is None:
        report.fill(results)
        print(f"filled {report.PAGE}")
