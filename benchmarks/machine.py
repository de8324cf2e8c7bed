"""What was measured on, with what, and whether the machine was ours alone."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks.peers import THREADS
from normkit import machine
from normkit.machine import commit

__all__ = ["Others", "commit", "facts", "versions"]

PACKAGES = ("normkit", "numpy", "numba", "torch", "jax", "ml_dtypes")


def facts() -> dict[str, Any]:
    return machine.facts() | {"threads": THREADS}


def versions() -> dict[str, str]:
    return machine.versions(PACKAGES)


class Others:
    """How much of the machine other processes took, from the making of this object on.

    A barrier of two threads waits for a core that someone else holds, so figures taken on a busy
    machine are worth little, and worst for the peer with the most barriers.
    """

    def __init__(self, ours: Iterable[int]) -> None:
        self.ours = [os.getpid(), *ours]
        self.before = self._ticks()

    def _ticks(self) -> tuple[int, int, int] | None:
        """Clock ticks of all cores so far: in all, busy, and busy with our processes."""
        try:
            cores = [
                int(field) for field in Path("/proc/stat").read_text().split("\n")[0].split()[1:9]
            ]
        except OSError:
            return None
        own = 0
        for process in self.ours:
            with contextlib.suppress(OSError):  # it may have ended
                fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
                own += int(fields[11]) + int(fields[12])
        return sum(cores), sum(cores) - cores[3] - cores[4], own

    def share(self) -> float | None:
        """The others' share of all cores' time; None where the system does not tell."""
        after = self._ticks()
        if self.before is None or after is None or after[0] == self.before[0]:
            return None
        total, busy, own = (b - a for a, b in zip(self.before, after, strict=True))
        return round(max(0.0, (busy - own) / total), 3)
