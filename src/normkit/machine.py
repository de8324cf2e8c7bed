"""What something was measured on, and with what."""

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

__all__ = ["commit", "facts", "versions"]


def facts() -> dict[str, Any]:
    """The processor, its cores and caches, the memory in GiB, the system."""
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


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Of Python and of those packages that are installed."""
    found = {"python": platform.python_version()}
    for package in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def commit() -> str | None:
    """The commit of this source, with a + where files differ from it; None outside its repository.

    A package that is installed into somebody else's repository is not part of it.
    """
    here = Path(__file__).resolve()
    git = ["git", "-C", str(here.parent)]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        for words in (
            ["ls-files", "--error-unmatch", here.name],
            ["describe", "--always", "--dirty=+", "--abbrev=12"],
        ):
            said = subprocess.run(
                [*git, *words], check=True, capture_output=True, text=True, timeout=20
            )
        return said.stdout.strip()
    return None
