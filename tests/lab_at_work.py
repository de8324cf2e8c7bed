"""Work for processes that tests kill; they import it by name."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from normkit.lab.results import Record
from normkit.lab.running import Done, Task

#: A seed whose worker is killed when it is at it for the first time.
FATAL = 2


def done(task: Task) -> Done:
    record = Record(task.claim, task.seed, task.data, task.quick, {"share": 0.1 * task.seed})
    return Done(task, record)


def quick(task: Task, _: str | None) -> Done:
    return done(task)


def killed_once(task: Task, _: str | None) -> Done:
    """``data`` is a folder in which each call leaves a line."""
    tries = _tried(task)
    if task.seed == FATAL and tries == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return done(task)


def killed_always(task: Task, _: str | None) -> Done:
    """The same, but there is no way to do that one."""
    _tried(task)
    if task.seed == FATAL:
        os.kill(os.getpid(), signal.SIGKILL)
    return done(task)


def killed_late(task: Task, _: str | None) -> Done:
    """The last of twelve kills its worker once eight of them have been delivered."""
    folder = Path(task.data)
    tries = _tried(task)
    if task.seed == 11 and tries == 1:
        while len(list(folder.glob("delivered-*"))) < 8:
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGKILL)
    return done(task)


def _tried(task: Task) -> int:
    """How often, this time included."""
    path = Path(task.data) / f"tried-{task.seed}"
    with path.open("a") as file:
        file.write("once\n")
    time.sleep(0.05)
    return len(path.read_text().splitlines())
