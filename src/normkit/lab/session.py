"""A run of the lab: what is still to be done is done, kept, and told in a page."""

from __future__ import annotations

import contextlib
import shlex
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from normkit.errors import FileError, OptionError
from normkit.extras import needed
from normkit.lab.claims import TOPICS, all_claims, find
from normkit.lab.data import NAMES, load
from normkit.lab.events import FOLDER as EVENTS
from normkit.lab.events import has_events, write_events
from normkit.lab.progress import Progress
from normkit.lab.results import Record, Results, unusable
from normkit.lab.running import Task, left, on_cluster, on_this_machine
from normkit.lab.verdicts import Judged, judge
from normkit.words import counted
from normkit.writing import check_output, write_whole

__all__ = ["PAGE", "Session", "report", "run"]

PAGE = "report.html"
MOST_SEEDS, MOST_JOBS = 1000, 1000


@dataclass(frozen=True)
class Session:
    """What a folder of results comes to.

    Args:
        judged: the claims in order.
        folder: of the results.
        page: the report.
        damaged: lines of the results that are none.
        left_out: whole results that are not told, and why.
        problems: by task, why it could not be carried out.
        data, quick: what the report is about; a folder may hold more.
    """

    judged: tuple[Judged, ...]
    folder: Path
    page: Path
    damaged: tuple[str, ...]
    left_out: tuple[str, ...]
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
        out: a folder; results are added to those that it holds, and the report tells them all.
        seeds: 0, 1, ... of each claim; fewer than three give no verdict.
        data: digits, mnist, cifar10, or a folder with a folder of images for each class.
        quick: a first look, with fewer steps.
        jobs: processes on this machine.
        cluster: a Dask scheduler's address, or ``local:2``; instead of ``jobs``.

    Raises:
        OptionError: an unknown claim, no seeds, no jobs, no such cluster.
        FileError: the folder cannot be used, another run is using it, or the data cannot be read.
        DataError: the data are no images with classes.
        KeyboardInterrupt: it was interrupted; the text says how much is done.
    """
    claims = find(names)
    _check_number("seeds", seeds, MOST_SEEDS, "--seeds 3 gives verdicts.")
    _check_number("jobs", jobs, MOST_JOBS, "As many as the machine has cores are enough.")
    data, folder = _resolved(data), Path(out)
    if data != "digits":
        load(data, 0)  # what is wrong with it is said before anything is made
    wanted = [Task(claim.name, seed, data, quick) for claim in claims for seed in range(seeds)]
    with _alone(folder):
        results = Results(folder)
        _check_folder(folder)
        left_out = _set_aside(results)
        tasks = left(wanted, results.keys)
        try:
            problems = _carry_out(wanted, tasks, results, jobs, cluster)
        except KeyboardInterrupt:
            done = len(results.keys & {task.key for task in wanted})
            raise KeyboardInterrupt(
                f"{done} of {counted(len(wanted), 'result')} are kept in {folder}; the same "
                "command goes on from there"
            ) from None
        return _told(results, data, quick, [claim.name for claim in claims], problems, left_out)


def report(out: str | Path, *, data: str | None = None, quick: bool | None = None) -> Session:
    """Write the report of a folder again; nothing is measured.

    Args:
        data, quick: which of its results; those that were measured last by default.

    Raises:
        FileError: there are no results.
    """
    folder, data = Path(out), data if data is None else _resolved(data)
    if not folder.is_dir():
        raise _empty(folder, "a file" if folder.exists() else "no such folder")
    results = Results(folder)
    left_out = _set_aside(results)
    chosen = [r for r in results.records if data in (None, r.data) and quick in (None, r.quick)]
    if not chosen:
        raise _empty(folder, _held(results.records, results.damaged))
    last = sorted(chosen, key=lambda record: record.time)[-1]  # of one second, the later line
    return _told(results, last.data, last.quick, [], {}, left_out)


def _check_number(what: str, number: int, most: int, remedy: str) -> None:
    if not 1 <= number <= most:
        raise OptionError(
            f"No number of {what}",
            received=str(number),
            expected=f"a whole number from 1 to {most:,}",
            remedy=remedy,
        )


def _resolved(data: str) -> str:
    return data if data in NAMES else str(Path(data).resolve())


def _check_folder(folder: Path) -> None:
    """Whether page and events can be written, and what writes them is installed: before the work.

    Raises:
        FileError: something is in the way.
        ModuleNotFoundError: with what to install.
    """
    for module in ("tensorboard", "jinja2", "plotly"):
        needed(module)
    try:
        (folder / EVENTS).mkdir(exist_ok=True)
        check_output(folder / PAGE, overwrite=True)
    except OSError as error:
        raise unusable(folder, error) from error


def _set_aside(results: Results) -> list[str]:
    """Leave out what this version cannot tell; what it was, in words."""
    found: Counter[str] = Counter()
    known = {name for names in TOPICS.values() for name in names}
    for record in results.records:
        if record.claim not in known:
            found[f"{record.claim}: no claim of this version"] += 1
        elif set(record.numbers) != {n.name for n in find([record.claim])[0].numbers}:
            found[f"{record.claim}: measured by another version of its experiment"] += 1
        else:
            continue
        results.leave_out(record)
    return [f"{words} ({counted(number, 'result')})" for words, number in found.items()]


def _carry_out(
    wanted: Sequence[Task], tasks: Sequence[Task], results: Results, jobs: int, cluster: str | None
) -> dict[Task, str]:
    """Do what is left, and keep each result as it comes."""
    before = Counter(task.claim for task in wanted) - Counter(task.claim for task in tasks)
    work = on_this_machine(tasks, jobs) if cluster is None else on_cluster(tasks, cluster)
    problems = {}
    keys = {task.key for task in wanted}
    for record in results.records:
        if record.key in keys and not has_events(results.folder, record):
            write_events(results.folder, record)
    with Progress(tasks, jobs, before) as progress, contextlib.closing(work):
        for done in work:
            if done.record is None:
                problems[done.task] = done.problem
            elif results.add(done.record):
                write_events(results.folder, done.record)
            progress.finished(done)
    return problems


def _told(
    results: Results,
    data: str,
    quick: bool,
    named: Sequence[str],
    problems: dict[Task, str],
    left_out: Sequence[str],
) -> Session:
    """All that the folder holds of these data and this pace, and what was asked for by name."""
    from normkit.lab.page import render  # its libraries are optional

    records = [r for r in results.records if r.data == data and r.quick == quick]
    wanted = {*named, *(record.claim for record in records)}
    claims = [claim for claim in all_claims() if claim.name in wanted]
    others = [r for r in results.records if (r.data, r.quick) != (data, quick)]
    elsewhere = [f"not shown here: {_held(others, ())}"] if others else []
    session = Session(
        judged=tuple(judge(claim, records) for claim in claims),
        folder=results.folder,
        page=results.folder / PAGE,
        damaged=tuple(results.damaged),
        left_out=(*left_out, *elsewhere),
        data=data,
        quick=quick,
        problems=problems,
    )
    write_whole(session.page, render(session.judged, notes=_notes(session)))
    return session


def _notes(session: Session) -> list[str]:
    """What the reader of the page should know of the run."""
    notes = [f"A line of the results is damaged and left out: {line}" for line in session.damaged]
    notes += [f"Also in the results: {words}" for words in session.left_out]
    return notes + [
        f"The experiment {task.claim} failed with seed {task.seed}: {problem}"
        for task, problem in session.problems.items()
    ]


def _held(records: Sequence[Record], damaged: Sequence[str]) -> str:
    """What a folder holds, with the options that show it."""
    counts = Counter((record.data, record.quick) for record in records)
    found = [
        f"{counted(number, 'result')} (--data {shlex.quote(data)} "
        f"{'--quick' if quick else '--full'})"
        for (data, quick), number in counts.items()
    ]
    found += [f"{counted(len(damaged), 'damaged line')}"] if damaged else []
    return ", ".join(found) or "no results"


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
        except OSError:  # a file system without locks
            pass
        yield


def _empty(folder: Path, why: str) -> FileError:
    return FileError(
        "There are no results",
        received=f"{folder}: {why}",
        expected="a folder that `normkit lab run --out` has written",
        remedy="normkit lab run makes one.",
    )
