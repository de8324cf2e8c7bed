"""Threads that share one kernel call.

Every thread runs the same compiled function; they draw task numbers from a shared counter. What a
task computes does not depend on who draws it, so results are bitwise the same for any number of
threads. The caller works too and never waits for a helper that has not started, so calls from
several Python threads at once, or from inside a busy pool, always get done.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np

from normkit.errors import OptionError

__all__ = ["get_num_threads", "run_tasks", "set_num_threads"]

_Job = tuple[Callable[..., Any], tuple[Any, ...], Any]


def _usable_cores() -> int:
    """Cores that this process may use: its affinity, and a container's quota."""
    cores = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return max(1, min(cores, int(quota) // int(period)))
    except (OSError, ValueError):  # no such file, or no limit in it
        return cores


class _Helpers:
    """Threads that wait for jobs; started when first needed, started anew after a fork."""

    def __init__(self) -> None:
        self.queue: SimpleQueue[_Job] = SimpleQueue()
        self.lock = threading.Lock()
        self.started = 0

    def ensure(self, count: int) -> None:
        if self.started >= count:
            return
        with self.lock:
            while self.started < count:
                name = f"normkit-{self.started + 1}"
                threading.Thread(target=self._work, name=name, daemon=True).start()
                self.started += 1

    def _work(self) -> None:
        while True:
            function, arguments, buffers = self.queue.get()
            function(*arguments)
            del function, arguments, buffers  # a waiting thread keeps no array alive


_helpers = _Helpers()
_threads = _usable_cores()


def _after_fork() -> None:
    """A forked child has none of its parent's threads, and perhaps a lock that they held."""
    global _helpers
    _helpers = _Helpers()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def get_num_threads() -> int:
    """Threads that a call may use, the caller's own included."""
    return _threads


def set_num_threads(count: int) -> None:
    """Set how many threads a call may use. Results do not depend on it, bit for bit.

    Raises:
        OptionError: not a whole number from 1 to 1024.
    """
    global _threads
    if not isinstance(count, int) or isinstance(count, bool) or not 1 <= count <= 1024:
        raise OptionError(
            "Cannot use this many threads",
            received=repr(count),
            expected="a whole number from 1 to 1024",
            remedy=f"This process may use {_usable_cores()} cores.",
        )
    _threads = count


def run_tasks(
    kernel: Callable[..., Any], arguments: tuple[Any, ...], tasks: int, buffers: Any, worth: bool
) -> None:
    """Run a kernel whose last argument is the address of the task counters.

    Args:
        kernel: a compiled function that releases the interpreter lock.
        arguments: all its arguments but the last.
        tasks: how many the kernel will find.
        buffers: whatever owns the memory that the arguments point to.
        worth: whether the work is large enough to wake other threads.
    """
    helpers = min(_threads, tasks) - 1
    if helpers < 1 or not worth:
        kernel(*arguments, 0)
        return
    counters = np.zeros(2, dtype=np.int64)
    shared = (*arguments, counters.ctypes.data)
    pool = _helpers
    pool.ensure(helpers)
    for _ in range(helpers):
        pool.queue.put((kernel, shared, (buffers, counters)))
    kernel(*shared)
    while counters[1] < tasks:  # a helper is still in its last task
        time.sleep(0)
