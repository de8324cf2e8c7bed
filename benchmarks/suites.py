"""The parts of a run: each measures its rows, prints them and returns them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from bench_cases import CALLS, CHAINS, NETWORKS, Case
from benchmarks import driver, layer_report, report, startup
from benchmarks.driver import Plan
from benchmarks.goals import Row
from benchmarks.layers import LAYER_PEERS
from benchmarks.training import NETWORK_PEERS

# The same channels, four times the samples: what grows with x must show.
MEMORY_CASES = (
    Case("batch", (8, 256, 56, 56)),
    Case("batch", (32, 256, 56, 56)),
)
MEMORY_PEERS = ("normkit", "numpy", "eager")


@dataclass(frozen=True)
class Choice:
    """What to measure, and for how long."""

    cases: Sequence[Case]
    peers: Sequence[str]
    layers: Sequence[Case]
    plan: Plan
    quick: bool = False
    cold: bool = True  # also the first step with nothing compiled yet


def _say(text: str, row: Row) -> Row:
    print(text, flush=True)
    if (row.get("others") or 0) > report.BUSY:
        print(f"    poor figures: others took {row['others']:.0%} of the machine", flush=True)
    for peer, reason in row["skipped"].items():
        print(f"    {peer} skipped: {reason}", flush=True)
    return row


def cases(choice: Choice) -> list[Row]:
    if choice.cases:
        print(report.HEADER, flush=True)
    rows = (driver.measure(case, choice.peers, choice.plan) for case in choice.cases)
    return [_say(report.line(row), row) for row in rows]


def layers(choice: Choice) -> list[Row]:
    # compilation takes longer than everything else in a quick run
    peers = [peer for peer in LAYER_PEERS if not (choice.quick and peer == "nn-compiled")]
    rows = (driver.measure(case, peers, choice.plan) for case in choice.layers)
    return [_say(layer_report.layer_line(row), row) for row in rows]


def price(choice: Choice) -> list[Row]:
    processes, blocks = (1, 50) if choice.quick else (5, 400)
    modes = [(case, "train") for case in CALLS]
    modes[1:1] = [(case, "eval") for case in CALLS if case.norm.startswith("BatchNorm")]
    rows = (driver.price_of_call(case, mode, processes, blocks) for case, mode in modes)
    return [_say(layer_report.price_line(row), row) for row in rows]


def networks(choice: Choice) -> list[Row]:
    chosen = NETWORKS[:1] if choice.quick else NETWORKS
    rows = (driver.measure(case, NETWORK_PEERS, choice.plan) for case in chosen)
    return [_say(layer_report.network_line(row), row) for row in rows]


def saved(choice: Choice) -> list[Row]:
    chosen = CHAINS[:1] if choice.quick else (*NETWORKS, *CHAINS)
    rows = (driver.bytes_saved(case, NETWORK_PEERS) for case in chosen)
    return [_say(layer_report.saved_line(row), row) for row in rows]


def memory(choice: Choice) -> list[Row]:
    chosen = MEMORY_CASES[:1] if choice.quick else MEMORY_CASES
    return [driver.peak_memory(case, MEMORY_PEERS) for case in chosen]


def waiting(choice: Choice) -> dict[str, Any]:
    return startup.measure(runs=2 if choice.quick else 5, cold=choice.cold)


SUITES: dict[str, Callable[[Choice], Any]] = {
    "cases": cases,
    "layers": layers,
    "price": price,
    "networks": networks,
    "saved": saved,
    "memory": memory,
    "startup": waiting,
}


def nothing() -> dict[str, Any]:
    """The results of a run that measures no part."""
    empty: dict[str, Any] = {name: [] for name in SUITES}
    return empty | {"startup": {"seconds": {}, "skipped": {}}}
