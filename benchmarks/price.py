"""What a call costs beyond torch.nn's own, on inputs so small that the call is all there is.

Both layers live in one process and take turns in short blocks of calls, so that both meet the same
moments of the machine and the same memory. What counts is the median of the differences between
blocks that follow each other.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from typing import ClassVar

from bench_cases import Case
from benchmarks.layers import NormkitLayer, TorchLayer
from benchmarks.peers import Session

QUANTITIES = ("forward", "step")
CALLS = 20  # of one layer before it is the other one's turn


class Pair(Session):
    """torch.nn's layer and normkit's, on inputs of the same numbers."""

    training: ClassVar[bool] = True

    def __init__(self, case: Case) -> None:
        super().__init__(case)
        self.layers = {"nn": TorchLayer(case), "normkit": NormkitLayer(case)}
        for session in self.layers.values():
            session.layer.train(self.training)

    def calls(self, quantity: str) -> dict[str, Callable[[], None]]:
        if quantity == "forward":
            return {name: session.forward for name, session in self.layers.items()}
        return {name: _step(session) for name, session in self.layers.items()}


class PairInEval(Pair):
    """The same in eval mode, where batch norm uses its running statistics."""

    training = False


def _step(session: Session) -> Callable[[], None]:
    def step() -> None:
        session.forward()
        session.backward()
        session.release()

    return step


def _seconds(call: Callable[[], None]) -> float:
    start = time.perf_counter()
    for _ in range(CALLS):
        call()
    return (time.perf_counter() - start) / CALLS


def alternated(calls: dict[str, Callable[[], None]], blocks: int) -> dict[str, float]:
    """Median seconds of a call of each, and of how much longer normkit's takes."""
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        _seconds(call)
    gc.collect()
    gc.freeze()  # a collection in the middle of a block would go through all modules
    for turn in range(blocks):
        for name in sorted(calls, reverse=turn % 2 == 1):
            samples[name].append(_seconds(calls[name]))
    over = [b - a for a, b in zip(samples["nn"], samples["normkit"], strict=True)]
    return {
        **{name: statistics.median(values) for name, values in samples.items()},
        "over": statistics.median(over),
    }


def measure(pair: Pair, blocks: int) -> dict[str, dict[str, float]]:
    return {quantity: alternated(pair.calls(quantity), blocks) for quantity in QUANTITIES}


PRICE_PEERS: dict[str, type[Session]] = {"train": Pair, "eval": PairInEval}
