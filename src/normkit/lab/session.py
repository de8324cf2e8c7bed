"""A run of the lab: what is still to be done is done, kept, and told in a page."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from normkit.errors import FileError, OptionError
from normkit.lab.claim import Claim
from normkit.lab.claims import TOPICS, find
from normkit.lab.data import NAMES, load
from normkit.lab.events import write_events
from normkit.lab.progress import Progress
from normkit.lab.results import Results, unusable
from normkit.lab.running import Task, left, on_cluster, on_this_machine
from normkit.lab.verdicts import Judged, judge
from normkit.writing import write_whole

__all__ = ["PAGE", "Session", "report", "run"]

PAGE = "report.html"


@dataclass(frozen=True)
class Session:
    """What a folder of results comes to.

    Args:
        judged: the claims in order.
        folder: of the results.
        page: the report.
        damaged: lines of the results that are none.
        problems: by task, why it could not be carried out.
        data, quick: what the report is about; a folder may hold more.
    """

    judged: tuple[Judged, ...]
    folder: Path
    page: Path
    damaged: tuple[str, ...]
    data: str
    quick: bool
    problems: dict[Task, str] = field(default_factory=dict)


def run(
    names: Sequence[str] = (),
    out: str | Path = "out/lab",
    *,
    seeds: int = 3,
    data: str = "digits",
    quick: bool = False,
    jobs: int = 1,
    cluster: str | None = None,
) -> Session:
    """Carry out experiments and write the report; what the folder holds already is not done again.

    Args:
        names: of claims; all of them by default.
        out: a folder; results are added to those that it holds.
        seeds: 0, 1, ... of each claim; fewer than three give no verdict.
        data: digits, mnist, cifar10, or a folder with a folder of images for each class.
        quick: a first look, with fewer steps.
        jobs: processes on this machine.
        cluster: a Dask scheduler's address, or ``local:2``; instead of ``jobs``.

    Raises:
        OptionError: an unknown claim, no seeds, no jobs, no such cluster.
        FileError: the folder cannot be used, another run is using it, or the data cannot be read.
        DataError: the data are no images with classes.
    """
    claims = find(names)
    for what, number in (("seeds", seeds), ("jobs", jobs)):
        if number < 1:
            raise OptionError(
                f"A run needs {what}",
                received=str(number),
                expected="a number from 1",
                remedy=f"Three seeds give a verdict: --{what} {3 if what == 'seeds' else 1}.",
            )
    data = data if data in NAMES else str(Path(data).resolve())
    folder = Path(out)
    if data != "digits":
        load(data, 0)  # what is wrong with it is said before the work
    wanted = [Task(claim.name, seed, data, quick) for claim in claims for seed in range(seeds)]
    with _alone(folder):
        results = Results(folder)
        problems = _carry_out(wanted, results, jobs, cluster)
        return _told(results, claims, data, quick, problems)


def report(out: str | Path, *, data: str | None = None, quick: bool | None = None) -> Session:
    """Write the report of a folder again; nothing is measured.

    Args:
        data, quick: which of its results; those of the last line by default.

    Raises:
        FileError: there are no results.
    """
    folder = Path(out)
    if not folder.is_dir():
        raise _empty(folder, "no such folder")
    results = Results(folder)
    chosen = [r for r in results.records if data in (None, r.data) and quick in (None, r.quick)]
    if not chosen:
        why = (
            f"{len(results.damaged)} damaged lines and no whole one" if results.damaged else "none"
        )
        raise _empty(folder, why)
    last = chosen[-1]
    done = {record.claim for record in chosen}
    known = [name for names in TOPICS.values() for name in names if name in done]
    results.damaged += [f"{name}: no claim of this version" for name in sorted(done - {*known})]
    claims = find(known) if known else []
    return _told(results, claims, last.data, last.quick, {})


def _carry_out(
    wanted: Sequence[Task], results: Results, jobs: int, cluster: str | None
) -> dict[Task, str]:
    """Do what is left, and keep each result as it comes."""
    tasks = left(wanted, results.keys)
    before = Counter(task.claim for task in wanted) - Counter(task.claim for task in tasks)
    work = on_this_machine(tasks, jobs) if cluster is None else on_cluster(tasks, cluster)
    problems = {}
    with Progress(tasks, jobs, before) as progress, contextlib.closing(work):
        for done in work:
            if done.record is None:
                problems[done.task] = done.problem
            elif results.add(done.record):
                write_events(results.folder, done.record)
            progress.finished(done)
    return problems


def _told(
    results: Results, claims: Sequence[Claim], data: str, quick: bool, problems: dict[Task, str]
) -> Session:
    from normkit.lab.page import render  # its libraries are optional

    records = [r for r in results.records if r.data == data and r.quick == quick]
    judged = tuple(judge(claim, records) for claim in claims)
    page = results.folder / PAGE
    session = Session(
        judged, results.folder, page, tuple(results.damaged), data, quick, problems
    )  # fmt: skip
    write_whole(page, render(judged, notes=_notes(session)))
    return session


def _notes(session: Session) -> list[str]:
    """What the reader of the page should know of the run."""
    notes = [f"A line of the results is damaged and left out: {line}" for line in session.damaged]
    return notes + [
        f"The experiment {task.claim} failed with seed {task.seed}: {problem}"
        for task, problem in session.problems.items()
    ]


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Nobody else adds results to the folder meanwhile; the lock goes with the process.

    Raises:
        FileError: another run does, or the folder cannot be used.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".lock").open("wb")
    except OSError as error:
        raise unusable(folder, error) from error
    with lock:
        try:
            import fcntl

            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except ImportError:  # Windows has none
            pass
        except BlockingIOError as error:
            raise FileError(
                "Another run is adding results there",
                received=str(folder),
                expected="a folder that no run is using",
                remedy="Wait for it, or use --out with another folder.",
            ) from error
        yield


def _empty(folder: Path, why: str) -> FileError:
    return FileError(
        "There are no results",
        received=f"{folder}: {why}",
        expected="a folder that `normkit lab run --out` has written",
        remedy="normkit lab run makes one.",
    )
