"""A process that runs one peer on one case, and answers requests line by line.

Run as ``python -m benchmarks.worker PEER CASE``, the case as JSON. Each request on standard input
is a JSON object with a "do"; each answer is one JSON line on what was standard output at the start.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench_cases import Case
from benchmarks import figures, price, saved
from benchmarks.layers import LAYER_PEERS
from benchmarks.peers import PEERS, THREADS, Session
from benchmarks.training import NETWORK_PEERS

SESSIONS = {**PEERS, **LAYER_PEERS, **price.PRICE_PEERS, **NETWORK_PEERS}
STATUS = Path("/proc/self/status")


def timed(session: Session, count: int) -> dict[str, float]:
    """Seconds a repetition: forward, backward, and the whole step including its release.

    The same repetitions give all three, so that forward finds the memory as a step leaves it.
    """
    clock = time.perf_counter
    if session.joint:
        return timed_jointly(session, count)
    forward = backward = step = 0.0
    for _ in range(count):
        start = clock()
        session.forward()
        middle = clock()
        session.backward()
        end = clock()
        session.release()
        forward += middle - start
        backward += end - middle
        step += clock() - start
    return {"forward": forward / count, "backward": backward / count, "step": step / count}


def timed_jointly(session: Session, count: int) -> dict[str, float]:
    """For a peer that has one compiled call for the whole step: backward is the difference."""
    clock = time.perf_counter
    seconds = {}
    for name, call in (("forward", session.forward), ("step", session.backward)):
        start = clock()
        for _ in range(count):
            call()
            session.release()
        seconds[name] = (clock() - start) / count
    return seconds | {"backward": seconds["step"] - seconds["forward"]}


def prepare(session: Session, round_seconds: float, least: int) -> dict[str, Any]:
    """Warm up and choose how many repetitions make a round."""
    timed(session, 2)
    step = timed(session, 1)["step"]
    if step < round_seconds / 20:
        step = timed(session, 10)["step"]
    gc.freeze()  # the modules' objects: a round's collection would spend its time on them
    return {"count": figures.repetitions(step, round_seconds, least)}


def one_round(session: Session, count: int) -> dict[str, float]:
    gc.collect()
    timed(session, 1)  # the caches hold another process's data
    return timed(session, count)


def _status(field: str) -> int:
    for line in STATUS.read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise OSError(f"{STATUS} has no {field}")


def _start_of_peak() -> tuple[int, Callable[[], int], str]:
    """Resident bytes now, a reader of the peak from now on, and how that is known."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
        return _status("VmRSS"), lambda: _status("VmHWM"), "VmHWM reset through clear_refs"
    except OSError:
        scale = 1 if sys.platform == "darwin" else 1024

        def peak() -> int:
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale

        return peak(), peak, "ru_maxrss difference"


def memory(session: Session) -> dict[str, Any]:
    """Peak bytes of one step beyond its inputs, its output and its gradients.

    The step before has compiled, started threads and grown the heap; what it kept for later calls
    is given back first, so that every output counts as newly allocated.
    """
    timed(session, 1)
    session.empty_cache()
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:  # glibc keeps freed pieces of its heap, which would count as free outputs
        trim(0)
    before, peak, method = _start_of_peak()
    session.forward()
    session.backward()
    after = peak()
    results = [session.y, *session.gradients().values()]
    outputs = sum(result.nbytes for result in results if result is not None)
    return {"beyond": after - before - outputs, "outputs": outputs, "method": method}


def answer(session: Session, request: dict[str, Any]) -> dict[str, Any]:
    match request["do"]:
        case "prepare":
            return prepare(session, request["round_seconds"], request["least"])
        case "round":
            return one_round(session, request["count"])
        case "memory":
            return memory(session)
        case "price":
            assert isinstance(session, price.Pair)
            return price.measure(session, request["blocks"])
        case "saved":
            return saved.bytes_kept(session)
    expected = "prepare, round, memory, price or saved"
    raise ValueError(f"got the request {request!r}; expected {expected}")


def case_from(text: str) -> Case:
    fields = json.loads(text)
    return Case(**fields | {"shape": tuple(fields["shape"])})


def session_of(peer: str, case: Case) -> Session:
    """The peer's session, and as many threads for it as are compared."""
    session = SESSIONS[peer](case)
    for name in ("torch", "normkit"):
        if name in sys.modules:
            sys.modules[name].set_num_threads(THREADS)
    return session


def main(peer: str, text: str) -> None:
    # What libraries print must not end up between the answers.
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:THREADS])
    session: Session | None = None
    for line in sys.stdin:
        try:
            session = session or session_of(peer, case_from(text))
            reply = answer(session, json.loads(line))
        except Exception as error:  # told to the driver, which skips this peer with the reason
            reason = " ".join(str(error).split())
            reply = {"error": f"{type(error).__name__}: {reason[:300]}"}
        print(json.dumps(reply), file=replies)


if __name__ == "__main__":
    main(*sys.argv[1:])
