"""Worker processes, and the alternation of their rounds."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from bench_cases import Case
from benchmarks import ROOT, figures
from benchmarks.machine import Others
from benchmarks.peers import THREADS, applies

QUANTITIES = ("forward", "backward", "step")
# Idle threads of OpenMP spin for milliseconds after their last work: the next peer waits them out.
SETTLE = 0.02
FIRST_REPLY = 420.0  # seconds: the first call may compile
REPLY = 120.0


@dataclass(frozen=True)
class Plan:
    """How long to measure."""

    rounds: int = 7
    round_seconds: float = 0.1
    least: int = 2


class PeerError(Exception):
    """A peer that cannot run a case; the message is the reason."""


def environment() -> dict[str, str]:
    """The environment of every measured process: two threads for all who ask it."""
    threads = dict.fromkeys(
        ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"),
        str(THREADS),
    )
    path = [str(ROOT), str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]
    return {
        **os.environ,
        **threads,
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.pathsep.join(filter(None, path)),
    }


class Worker:
    """A process of one peer and one case, asked line by line."""

    def __init__(self, peer: str, case: Case) -> None:
        self.peer = peer
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.worker", peer, json.dumps(asdict(case))],
            cwd=ROOT,
            env=environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def ask(self, timeout: float = REPLY, **request: Any) -> dict[str, Any]:
        pipes = self.process.stdin, self.process.stdout
        assert pipes[0] is not None
        assert pipes[1] is not None
        try:
            print(json.dumps(request), file=pipes[0], flush=True)
        except BrokenPipeError:
            raise PeerError(f"the process ended with {self.process.wait()}") from None
        if not select.select([pipes[1]], [], [], timeout)[0]:
            raise PeerError(f"no answer to {request['do']!r} in {timeout:.0f} s")
        line = pipes[1].readline()
        if not line:
            raise PeerError(f"the process ended with {self.process.wait()}")
        reply = json.loads(line)
        if "error" in reply:
            raise PeerError(reply["error"])
        return reply

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


def _ask_all(
    workers: dict[str, Worker], skipped: dict[str, str], ask: Callable[[Worker], dict[str, Any]]
) -> dict[str, dict[str, Any]]:
    """Ask the workers one after the other; those that fail are closed and noted."""
    replies = {}
    for peer in list(workers):
        try:
            replies[peer] = ask(workers[peer])
        except PeerError as reason:
            skipped[peer] = str(reason)
            workers.pop(peer).close()
    return replies


def measure(case: Case, peers: Iterable[str], plan: Plan) -> dict[str, Any]:
    """Time one case: its peers alternate round by round, each in its own process."""
    skipped: dict[str, str] = {}
    samples: dict[str, dict[str, list[float]]] = {}
    workers = {peer: Worker(peer, case) for peer in peers if applies(peer, case)}
    try:
        counts = _ask_all(
            workers,
            skipped,
            lambda worker: worker.ask(
                FIRST_REPLY, do="prepare", round_seconds=plan.round_seconds, least=plan.least
            ),
        )

        def one_round(worker: Worker) -> dict[str, Any]:
            time.sleep(SETTLE)
            return worker.ask(do="round", count=counts[worker.peer]["count"])

        others = Others(worker.process.pid for worker in workers.values())
        for turn in range(plan.rounds):
            order = _rotated(list(workers), turn)
            workers = {peer: workers[peer] for peer in order}
            for peer, seconds in _ask_all(workers, skipped, one_round).items():
                kept = samples.setdefault(peer, {name: [] for name in QUANTITIES})
                for name in QUANTITIES:
                    kept[name].append(seconds[name])
        share = others.share()
    finally:
        for worker in workers.values():
            worker.close()
    times = {
        peer: {name: figures.summarise(values) for name, values in kept.items()}
        | {"repetitions": counts[peer]["count"]}
        for peer, kept in sorted(samples.items())
        if peer not in skipped
    }
    return describe(case) | {"times": times, "others": share, "skipped": skipped}


def _rotated(names: Sequence[str], turn: int) -> list[str]:
    """Another peer begins each round; which one follows whom changes with the direction."""
    ordered = sorted(names, reverse=turn % 2 == 1)
    start = turn % max(len(ordered), 1)
    return ordered[start:] + ordered[:start]


def describe(case: Case) -> dict[str, Any]:
    return {
        "id": case.id,
        "norm": case.norm,
        "shape": list(case.shape),
        "layout": case.layout,
        "dtype": case.dtype,
        "options": case.options,
        "bytes": case.bytes,
    }


def ask_apart(
    case: Case, peers: Iterable[str], **request: Any
) -> tuple[dict[str, Any], dict[str, str]]:
    """One request to each peer in a fresh process; the answers, and who was skipped and why."""
    answers: dict[str, Any] = {}
    skipped: dict[str, str] = {}
    for peer in peers:
        workers = {peer: Worker(peer, case)}
        try:
            answers |= _ask_all(workers, skipped, lambda worker: worker.ask(FIRST_REPLY, **request))
        finally:
            for worker in workers.values():
                worker.close()
    return answers, skipped


def peak_memory(case: Case, peers: Iterable[str]) -> dict[str, Any]:
    """Peak memory of one step beyond its inputs and results."""
    beyond, skipped = ask_apart(case, peers, do="memory")
    return describe(case) | {"memory": beyond, "skipped": skipped}


def bytes_saved(case: Case, peers: Iterable[str]) -> dict[str, Any]:
    """Bytes that one forward pass keeps for backward."""
    saved, skipped = ask_apart(case, peers, do="saved")
    return describe(case) | {"saved": saved, "skipped": skipped}


def price_of_call(case: Case, mode: str, processes: int, blocks: int) -> dict[str, Any]:
    """Seconds of a call of torch.nn's layer and ours; each process's median is one sample."""
    answers = []
    skipped: dict[str, str] = {}
    for _ in range(processes):
        answer, skipped = ask_apart(case, [mode], do="price", blocks=blocks)
        if skipped:
            break
        answers.append(answer[mode])
    shape = ", ".join(map(str, case.shape))
    found = {
        quantity: {
            name: figures.summarise([answer[quantity][name] for answer in answers])
            for name in names
        }
        for quantity, names in (answers[0] if answers else {}).items()
    }
    row = describe(case) | {"id": f"{case.norm} ({shape}), {mode}"}
    return row | {"mode": mode, "price": found, "skipped": skipped}
