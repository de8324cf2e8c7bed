"""Live progress on standard error: a bar where a person watches, else one line per finished run."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import TYPE_CHECKING, Protocol

from normkit.demo.training import Point, Result, Run

if TYPE_CHECKING:
    from rich.progress import Progress as Bars


class Progress(Protocol):
    def __enter__(self) -> Progress: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...

    def started(self, run: Run) -> None: ...

    def measured(self, point: Point) -> None: ...

    def finished(self, result: Result) -> None: ...


def progress(runs: int) -> Progress:
    """The kind that suits standard error."""
    if sys.stderr.isatty():
        try:
            return LiveProgress(runs)
        except ModuleNotFoundError:
            pass  # rich is a comfort, not a need
    return PlainProgress(runs)


class PlainProgress:
    def __init__(self, runs: int) -> None:
        self._runs = runs
        self._done = 0

    def __enter__(self) -> PlainProgress:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def started(self, run: Run) -> None:
        pass

    def measured(self, point: Point) -> None:
        pass

    def finished(self, result: Result) -> None:
        self._done += 1
        last = result.points[-1]
        print(
            f"[{self._done}/{self._runs}] {label(result.run)}: train {last.train_accuracy:.1%}, "
            f"test {last.test_accuracy:.1%}, {result.seconds:.1f} s",
            file=sys.stderr,
            flush=True,
        )


class LiveProgress:
    def __init__(self, runs: int) -> None:
        self._bars = _bars()
        self._all = self._bars.add_task("all runs", total=runs, words="")
        self._one = self._bars.add_task("", total=None, words="")

    def __enter__(self) -> LiveProgress:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def started(self, run: Run) -> None:
        self._bars.reset(self._one, description=label(run), total=run.steps, words="")

    def measured(self, point: Point) -> None:
        words = f"loss {point.loss:.3g}, train {point.train_accuracy:.1%}"
        self._bars.update(self._one, completed=point.step, words=words)

    def finished(self, result: Result) -> None:
        self._bars.update(self._one, completed=result.run.steps)
        self._bars.advance(self._all)


def _bars() -> Bars:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[words]}"),
        console=Console(stderr=True),
        transient=True,
    )


def label(run: Run) -> str:
    norm = "with batch norm" if run.batch_norm else "without"
    return f"{run.network} {norm}, rate {run.rate:g}, seed {run.seed}"
