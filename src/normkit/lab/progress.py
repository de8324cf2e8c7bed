"""How far a run of the lab is: bars where a person watches, else a line for each task."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

from normkit.lab.claims import find
from normkit.lab.running import Done, Task

__all__ = ["Progress"]

ROWS = 4  # claims shown at once


class Progress(AbstractContextManager["Progress"]):
    """Time left of the whole and of each claim that is at work.

    Args:
        tasks: in the order in which they are begun.
        jobs: how many at once.
        before: tasks of these claims that were done in an earlier run.
    """

    def __init__(self, tasks: Sequence[Task], jobs: int, before: Counter[str]) -> None:
        self.tasks, self.jobs = list(tasks), max(jobs, 1)
        self.seconds = {name: find([name])[0].seconds for name in {t.claim for t in tasks}}
        self.total = Counter(task.claim for task in tasks) + before
        self.done = Counter(before)
        self.began, self.spent, self.expected = time.monotonic(), 0.0, 0.0
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
            self.expected += self.seconds[done.task.claim]
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
        """Until these tasks are done, in words; by how long the others took."""
        share = self.spent / self.expected if self.expected else 1.0
        seconds = share * sum(self.seconds[task.claim] for task in tasks)
        return in_words(seconds / min(self.jobs, max(len(tasks), 1)))

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


def in_words(seconds: float) -> str:
    """A time that is known roughly.

    >>> in_words(7.4), in_words(80), in_words(4000)
    ('7 s', '1 min 20 s', '1 h 7 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {round(whole % 3600 / 60)} min"


def _live() -> Any:
    from rich.console import Console
    from rich.live import Live

    return Live(console=Console(stderr=True), auto_refresh=False, transient=True)
