"""What synchronized statistics cost: ``python -m benchmarks.ranks``.

1, 2 and 4 processes on this machine with one thread each, connected by gloo on loopback. Every rank
has a batch of its own, of the same shape whatever their number; a step is forward and backward of
one layer. Beside normkit's SyncBatchNorm stands its BatchNorm2d, which exchanges nothing: what is
between them is the price of the exchange. With more ranks than cores both take longer.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import RESULTS, ROOT, figures, machine
from benchmarks.driver import environment

RANKS = (1, 2, 4)
SHAPES = ((8, 64, 28, 28), (8, 256, 56, 56))
LAYERS = ("BatchNorm2d", "SyncBatchNorm")
SECONDS = 120  # for one job, at most


def rank_of_a_job(rank: int, size: int, port: int, shape: tuple[int, ...], rounds: int) -> None:
    """Measure both layers in turns; the first rank prints the seconds of each round's steps."""
    import torch
    import torch.distributed as dist

    import normkit.torch as nt

    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"tcp://127.0.0.1:{port}",
        rank=rank,
        world_size=size,
        timeout=datetime.timedelta(seconds=SECONDS),
    )
    torch.manual_seed(rank)
    x, dy = torch.randn(shape).requires_grad_(), torch.randn(shape)
    layers = {name: getattr(nt, name)(shape[1]) for name in LAYERS}

    def seconds(layer: Any, steps: int) -> float:
        dist.barrier()
        start = time.perf_counter()
        for _ in range(steps):
            layer(x).backward(dy)
            x.grad = None
        dist.barrier()
        return (time.perf_counter() - start) / steps

    steps = {}
    for name, layer in layers.items():
        seconds(layer, 2)  # compiles, connects
        longest = torch.tensor([seconds(layer, 3)])
        dist.all_reduce(longest, dist.ReduceOp.MAX)  # all ranks must take as many steps
        steps[name] = figures.repetitions(float(longest), 0.2, 3)
    found: dict[str, list[float]] = {name: [] for name in LAYERS}
    for _ in range(rounds):
        for name, layer in layers.items():
            found[name].append(seconds(layer, steps[name]))
    if rank == 0:
        print(json.dumps(found))
    dist.destroy_process_group()


def measure(size: int, shape: tuple[int, ...], rounds: int) -> dict[str, Any]:
    """One job of so many ranks."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    before = machine.Others([])
    time.sleep(0.5)
    others = before.share()  # while nothing of ours runs
    env = environment() | {"NUMBA_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "benchmarks.ranks", "--port", str(port), "--size", str(size)]
    command += ["--rounds", str(rounds), "--shape", *map(str, shape), "--rank"]
    with tempfile.TemporaryFile("w+") as out:
        job = [
            subprocess.Popen([*command, str(rank)], cwd=os.fspath(ROOT), env=env, stdout=out)
            for rank in range(size)
        ]
        try:
            for process in job:
                if process.wait(timeout=SECONDS):
                    raise RuntimeError(f"a rank of {size} ended with {process.returncode}")
        finally:
            for process in job:
                process.kill()
                process.wait()
        out.seek(0)
        found = json.loads(out.read().splitlines()[-1])
    times = {name: figures.summarise(samples) for name, samples in found.items()}
    return {"ranks": size, "shape": list(shape), "times": times, "others": others}


def line(row: dict[str, Any]) -> str:
    """A row of the table, in milliseconds."""
    local, synced = (row["times"][name]["median"] * 1e3 for name in LAYERS)
    shape = "x".join(map(str, row["shape"]))
    return (
        f"{shape:>15} {row['ranks']:>6} {local:>10.2f} {synced:>10.2f} {synced - local:>10.2f}"
        f" {synced / local:>7.2f}"
    )


HEADER = f"{'a rank: x':>15} {'ranks':>6} {'local ms':>10} {'sync ms':>10} {'more ms':>10}   ratio"


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ranks", description=__doc__)
    parser.add_argument("--rounds", type=int, default=7, help="rounds of each layer (default 7)")
    parser.add_argument("--out", type=Path, help="where to keep the results (JSON)")
    for name in ("--rank", "--size", "--port"):  # of a process that this program starts
        parser.add_argument(name, type=int, help=argparse.SUPPRESS)
    parser.add_argument("--shape", type=int, nargs=4, help=argparse.SUPPRESS)
    chosen = parser.parse_args(argv)
    if chosen.rounds < 1:
        parser.error(f"got --rounds {chosen.rounds}; expected at least 1")
    return chosen


def main(argv: list[str] | None = None) -> None:
    chosen = arguments(argv)
    if chosen.rank is not None:
        shape = tuple(chosen.shape)
        rank_of_a_job(chosen.rank, chosen.size, chosen.port, shape, chosen.rounds)
        return
    results: dict[str, Any] = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": machine.facts() | {"threads": 1},
        "versions": machine.versions(),
        "commit": machine.commit(),
        "plan": {"rounds": chosen.rounds},
        "rows": [],
    }
    print(HEADER, flush=True)
    for shape in SHAPES:
        for size in RANKS:
            row = measure(size, shape, chosen.rounds)
            results["rows"].append(row)
            busy = f"   others took {row['others']:.0%}" if (row["others"] or 0) > 0.1 else ""
            print(line(row) + busy, flush=True)
    path = chosen.out or default_path(results)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=1) + "\n")
    print(f"kept in {path}")


def default_path(results: dict[str, Any]) -> Path:
    """In a folder of its own: the newest file of the one above fills the benchmarks page."""
    facts = results["machine"]
    name = re.sub(r"[^a-z0-9]+", "-", f"{facts['cpu']} {facts['cores']} cores".lower()).strip("-")
    return RESULTS / "ranks" / f"{results['date'][:10]}-{name}.json"


if __name__ == "__main__":
    main()
