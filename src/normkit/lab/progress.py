"""How far a run of the lab is: bars where a person watches, else a line for each task."""

from __future__ import annotations

import sys
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from contextlib import AbstractContextManager
from statistics import fmean
from typing import Any

from normkit.lab.claims import find
from normkit.lab.running import Done, Task
from normkit.words import duration

__all__ = ["Progress"]

ROWS = 4  # claims shown at once
QUICK = 1.5  # seconds that a quick look takes at most, roughly


class Progress(AbstractContextManager["Progress"]):
    """Time left of the whole and of each claim that is at work.

    Args:
        tasks: in the order in which they are begun.
        jobs: how many at once, as far as that is known before the first is done.
        before: tasks of these claims that were done in an earlier run.
    """

    def __init__(self, tasks: Sequence[Task], jobs: int, before: Counter[str]) -> None:
        self.tasks, self.jobs = list(tasks), max(jobs, 1)
        self.times: dict[str, list[float]] = defaultdict(list)
        self.total = Counter(task.claim for task in tasks) + before
        self.done = Counter(before)
        self.began, self.spent, self.foreseen = time.monotonic(), 0.0, 0.0
        self.all = len(tasks)
        self._live = _live() if sys.stderr.isatty() else None

    def __enter__(self) -> Progress:
        if self._live is not None:
            self._live.start()
            self._draw()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def finished(self, done: Done) -> None:
        """One more."""
        self.tasks.remove(done.task)
        self.done[done.task.claim] += 1
        if done.record is not None:
            self.spent += done.record.seconds
            self.foreseen += _foreseen(done.task)
            self.times[done.task.claim].append(done.record.seconds)
        if self._live is not None:
            self._draw()
        else:
            words = done.problem or f"{done.record.seconds if done.record else 0:.1f} s"
            sys.stderr.write(
                f"[{self.all - len(self.tasks)}/{self.all}] {done.task.claim}, seed "
                f"{done.task.seed}: {words}; {self._left(self.tasks)} left\n"
            )
            sys.stderr.flush()

    def _left(self, tasks: Sequence[Task]) -> str:
        """Until these tasks are done, in words: by how long seeds of the same claim took, or else
        by how others compare with what was foreseen."""
        share = self.spent / self.foreseen if self.foreseen else 1.0
        seconds = sum(
            fmean(self.times[task.claim]) if self.times[task.claim] else share * _foreseen(task)
            for task in tasks
        )
        # Workers that share a processor, or that are still starting, do less than their number.
        at_once = self.spent / (time.monotonic() - self.began) if self.spent else self.jobs
        return duration(seconds / max(1.0, min(at_once, len(tasks))))

    def _draw(self) -> None:
        from rich.progress_bar import ProgressBar
        from rich.table import Table

        table = Table.grid(padding=(0, 2))
        rows: list[tuple[str, int, int, str]] = [
            ("the lab", self.all - len(self.tasks), self.all, self._left(self.tasks))
        ]
        for name in list(dict.fromkeys(task.claim for task in self.tasks))[:ROWS]:
            own = [task for task in self.tasks if task.claim == name]
            rows.append((f"  {name}", self.done[name], self.total[name], self._left(own)))
        for words, done, total, left in rows:
            bar = ProgressBar(total=total, completed=done, width=24)
            table.add_row(words, bar, f"{done}/{total}", f"{left} left")
        if self._live is not None:
            self._live.update(table, refresh=True)


def _foreseen(task: Task) -> float:
    seconds = find([task.claim])[0].seconds
    return min(seconds, QUICK) if task.quick else seconds


def _live() -> Any:
    from rich.console import Console
    from rich.live import Live

    return Live(console=Console(stderr=True), auto_refresh=False, transient=True)
