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
    """``data`` is a folder in which each call leaves a file."""
    folder = Path(task.data)
    first = not (folder / f"tried-{task.seed}").exists()
    (folder / f"tried-{task.seed}").touch()
    time.sleep(0.05)
    if task.seed == FATAL and first:
        os.kill(os.getpid(), signal.SIGKILL)
    return done(task)
