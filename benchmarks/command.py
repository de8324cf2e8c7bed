"""Run the benchmark: ``python benchmarks/run.py``, or ``make bench``.

A whole run (no --case, --peer or --quick) is kept in benchmarks/results and fills
docs/benchmarks.md; any other run is only printed, unless --out says where to keep it.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import importlib.metadata
import json
import os
import platform
import re
import subprocess
import time
from pathlib import Path
from typing import Any

import bench_cases
from bench_cases import CASES, QUICK, Case, case_of
from benchmarks import RESULTS, ROOT, driver, report, startup
from benchmarks.driver import Plan
from benchmarks.peers import PEERS, THREADS

# The same channels, four times the samples: what grows with x must show.
MEMORY_CASES = (
    Case("batch", (8, 256, 56, 56)),
    Case("batch", (32, 256, 56, 56)),
)
MEMORY_PEERS = ("normkit", "numpy", "eager")
PACKAGES = ("normkit", "numpy", "numba", "torch", "jax", "ml_dtypes")


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python benchmarks/run.py", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few cases, short rounds")
    parser.add_argument("--case", help="only cases whose id has all these parts: batch,8x64,first")
    parser.add_argument("--peer", help=f"only these, separated by commas: {','.join(PEERS)}")
    parser.add_argument("--rounds", type=int, help="rounds of each peer and case (default 7)")
    parser.add_argument("--out", type=Path, help="where to keep the results (JSON)")
    chosen = parser.parse_args(argv)
    unknown = set(chosen.peer.split(",") if chosen.peer else ()) - set(PEERS)
    if unknown:
        parser.error(f"got the peers {sorted(unknown)}; expected some of {sorted(PEERS)}")
    if chosen.rounds is not None and chosen.rounds < 1:
        parser.error(f"got --rounds {chosen.rounds}; expected at least 1")
    if chosen.case and not bench_cases.find(chosen.case):
        parser.error(f"no case has {chosen.case!r} in its id, such as {CASES[0].id}")
    return chosen


def chosen_cases(chosen: argparse.Namespace) -> list[Case]:
    if chosen.case:
        return bench_cases.find(chosen.case)
    return [case_of(name) for name in QUICK] if chosen.quick else list(CASES)


def chosen_peers(chosen: argparse.Namespace) -> list[str]:
    if chosen.peer:
        return chosen.peer.split(",")
    # compilation takes longer than everything else in a quick run
    return [peer for peer in PEERS if not (chosen.quick and peer == "compile")]


def chosen_plan(chosen: argparse.Namespace) -> Plan:
    plan = Plan(rounds=3, round_seconds=0.02, least=1) if chosen.quick else Plan()
    return Plan(chosen.rounds or plan.rounds, plan.round_seconds, plan.least)


def machine() -> dict[str, Any]:
    model = platform.processor() or platform.machine()
    memory = None
    with contextlib.suppress(OSError):
        found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
        model = found.group(1).strip() if found else model
        total = re.search(r"MemTotal:\s*(\d+)", Path("/proc/meminfo").read_text())
        memory = round(int(total.group(1)) / 2**20, 1) if total else None
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "threads": THREADS,
        "memory_gib": memory,
        "caches": _caches(),
        "system": f"{platform.system()} {platform.release()}",
    }


def _caches() -> dict[str, str]:
    """Sizes of the first core's caches, such as {"L2": "1024K"}; empty where unknown."""
    sizes = {}
    for folder in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        with contextlib.suppress(OSError):
            if (folder / "type").read_text().strip() != "Instruction":
                name = f"L{(folder / 'level').read_text().strip()}"
                sizes[name] = (folder / "size").read_text().strip()
    return sizes


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def commit() -> str | None:
    """The commit that was measured, with a + where files differ from it."""
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        git = ["git", "-C", str(ROOT), "describe", "--always", "--dirty=+", "--abbrev=12"]
        return subprocess.run(git, check=True, capture_output=True, text=True).stdout.strip()
    return None


def default_path(results: dict[str, Any]) -> Path:
    facts = results["machine"]
    name = re.sub(r"[^a-z0-9]+", "-", f"{facts['cpu']} {facts['cores']} cores".lower()).strip("-")
    return RESULTS / f"{results['date'][:10]}-{name}.json"


def main(argv: list[str] | None = None) -> None:
    chosen = arguments(argv)
    cases, peers, plan = chosen_cases(chosen), chosen_peers(chosen), chosen_plan(chosen)
    whole = not (chosen.quick or chosen.case or chosen.peer)
    began = time.monotonic()
    results: dict[str, Any] = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "versions": versions(),
        "commit": commit(),
        "plan": {"rounds": plan.rounds, "round_seconds": plan.round_seconds},
        "load": round(os.getloadavg()[0], 2),
        "cases": [],
        "memory": [],
        "startup": {"seconds": {}, "skipped": {}},
    }
    if results["load"] > 0.5:
        print(f"the machine is busy already (load {results['load']}): figures will be poor")
    print(report.HEADER, flush=True)
    for case in cases:
        row = driver.measure(case, peers, plan)
        results["cases"].append(row)
        print(report.line(row), flush=True)
        for peer, reason in row["skipped"].items():
            print(f"    {peer} skipped: {reason}", flush=True)
    if not (chosen.case or chosen.peer):
        measured = MEMORY_CASES[:1] if chosen.quick else MEMORY_CASES
        results["memory"] = [driver.peak_memory(case, MEMORY_PEERS) for case in measured]
        results["startup"] = startup.measure(runs=2 if chosen.quick else 5, cold=whole)
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
