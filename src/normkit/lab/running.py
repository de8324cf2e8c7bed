"""One seed of one claim."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from normkit.lab.claim import Measured
from normkit.lab.claims import find
from normkit.lab.data import load
from normkit.lab.setup import Setup

__all__ = ["Task", "measure"]


@dataclass(frozen=True, order=True)
class Task:
    """What a worker is told: it finds the rest itself.

    Args:
        claim: its name.
        seed: of data, weights and batches.
        data: a name, or a folder; see :func:`normkit.lab.data.load`.
        quick: a first look.
    """

    claim: str
    seed: int
    data: str = "digits"
    quick: bool = False


def measure(task: Task) -> tuple[Measured, float]:
    """Run the experiment; what it gave, and the seconds that it took.

    The same task gives the same figures on the same machine, whatever runs beside it: one thread,
    and random numbers of its own.
    """
    (claim,) = find([task.claim])
    threads = torch.get_num_threads()
    began = time.perf_counter()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(task.seed)
        torch.set_num_threads(1)
        try:
            measured = claim.measure(Setup(load(task.data, task.seed), task.seed, task.quick))
        finally:
            torch.set_num_threads(threads)
    claim.check(measured)
    return measured, time.perf_counter() - began
