"""What was measured on, with what, and whether the machine was ours alone."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import re
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks import ROOT
from benchmarks.peers import THREADS

PACKAGES = ("normkit", "numpy", "numba", "torch", "jax", "ml_dtypes")


def facts() -> dict[str, Any]:
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
