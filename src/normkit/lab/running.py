"""Tasks of the lab: what a worker does, and who the workers are."""

from __future__ import annotations

import asyncio
import time
import traceback
import uuid
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import torch

from normkit import machine
from normkit.errors import OptionError, is_explained
from normkit.extras import needed
from normkit.lab.claim import Measured
from normkit.lab.claims import find
from normkit.lab.data import load
from normkit.lab.results import Record
from normkit.lab.setup import Setup
from normkit.words import first_line

__all__ = ["Done", "Task", "carry_out", "left", "measure", "on_cluster", "on_this_machine"]

Work = Callable[["Task", str | None], "Done"]
PATIENCE = 30  # seconds until a cluster without workers is one that nobody can use
ANSWER = 10  # seconds until a scheduler that does not answer is not there
PACKAGES = ("normkit", "numpy", "numba", "torch", "scikit-learn")


@dataclass(frozen=True, order=True)
class Task:
    """What a worker is told: it finds the rest itself.

    Args:
        claim: its name.
        seed: of data, weights and batches.
        data: a name, or a folder; see :func:`normkit.lab.data.load`.
        quick: a first look.
    """

    claim: str
    seed: int
    data: str = "digits"
    quick: bool = False

    @property
    def key(self) -> tuple[str, int, str, bool]:
        """As of the record that it becomes."""
        return self.claim, self.seed, self.data, self.quick


@dataclass(frozen=True)
class Done:
    """A task that a worker is through with: a record, or what went wrong."""

    task: Task
    record: Record | None
    problem: str = ""


def measure(task: Task) -> tuple[Measured, float]:
    """Run the experiment; what it gave, and the seconds that it took.

    The same task gives the same figures on the same machine, whatever runs beside it: one thread,
    and random numbers of its own.
    """
    (claim,) = find([task.claim])
    threads = torch.get_num_threads()
    began = time.perf_counter()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(task.seed)
        torch.set_num_threads(1)
        try:
            measured = claim.measure(Setup(load(task.data, task.seed), task.seed, task.quick))
        finally:
            torch.set_num_threads(threads)
    claim.check(measured)
    return measured, time.perf_counter() - began


def carry_out(task: Task, commit: str | None = None) -> Done:
    """Measure; an experiment that fails says so and stops nothing else.

    Args:
        commit: of the source, as the one who hands out the tasks knows it.
    """
    try:
        measured, seconds = measure(task)
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        place = "" if is_explained(error) else f" ({where.filename}:{where.lineno})"
        return Done(task, None, f"{type(error).__name__}: {first_line(error)}{place}")
    record = Record(
        claim=task.claim,
        seed=task.seed,
        data=task.data,
        quick=task.quick,
        numbers=dict(measured.numbers),
        series=tuple(measured.series),
        fields=tuple(measured.fields),
        seconds=round(seconds, 3),
        machine=machine.facts(),
        versions=machine.versions(PACKAGES),
        commit=commit,
        time=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    return Done(task, record)


def on_this_machine(
    tasks: Sequence[Task], jobs: int, work: Work | None = None
) -> Generator[Done, None, None]:
    """Carry out the tasks in so many processes; each as it is done.

    Where a process is killed, such as for want of memory, what was at work is tried again, one task
    at a time; a task that is killed again is done with a problem.

    Args:
        work: what is done with a task and the commit; :func:`carry_out` by default.
    """
    commit, work = machine.commit(), work or carry_out
    if jobs == 1 or len(tasks) <= 1:
        for task in tasks:
            yield work(task, commit)
        return
    open_tasks = dict.fromkeys(tasks)
    try:
        for done in _in_processes(tasks, jobs, work, commit):
            del open_tasks[done.task]
            yield done
    except _killed():
        for task in open_tasks:
            yield _once_more(task, work, commit)


def _in_processes(
    tasks: Sequence[Task], jobs: int, work: Work, commit: str | None
) -> Iterator[Done]:
    joblib = needed("joblib")
    pool = joblib.Parallel(n_jobs=min(jobs, max(len(tasks), 2)), return_as="generator_unordered")
    with warnings.catch_warnings():
        # A process that has grown is replaced, and its task done by another: no news for a reader.
        warnings.filterwarnings("ignore", "A worker stopped while some jobs", UserWarning)
        yield from pool(joblib.delayed(work)(task, commit) for task in tasks)


def _once_more(task: Task, work: Work, commit: str | None) -> Done:
    try:
        (done,) = _in_processes([task], 2, work, commit)  # two, or it would be this process
    except _killed():
        problem = "its process was killed twice, perhaps for want of memory; --jobs 1 needs least"
        return Done(task, None, problem)
    return done


def _killed() -> type[Exception]:
    kind: type[Exception] = needed("joblib.externals.loky.process_executor").TerminatedWorkerError
    return kind


def on_cluster(
    tasks: Sequence[Task], where: str, work: Work | None = None
) -> Generator[Done, None, None]:
    """Carry out the tasks on the workers of a Dask cluster; each as it is done.

    A task whose worker dies goes to another one; what has been handed over is not done again.

    Args:
        where: the scheduler's address, or ``local:2`` for two workers on this machine.
        work: see :func:`on_this_machine`.

    Raises:
        OptionError: there is no such cluster, or it has no workers, or it went away.
    """
    commit, work = machine.commit(), work or carry_out
    distributed = needed("distributed")
    with _client(distributed, where) as client:
        run = uuid.uuid4().hex  # another run's tasks of the same name are others
        futures = [
            client.submit(work, task, commit, key=f"normkit-{run}-{task.key}", pure=False)
            for task in tasks
        ]
        tasks_of = {future.key: task for future, task in zip(futures, tasks, strict=True)}
        completed = distributed.as_completed(futures)
        del futures  # a result that nobody holds is not computed again when its worker dies
        for future in completed:
            task = tasks_of[future.key]
            if future.status == "cancelled":
                raise _no_cluster(where, "the scheduler went away; what is done is kept")
            if future.status == "error":
                yield Done(task, None, _cluster_problem(distributed, future.exception()))
            else:
                done: Done = future.result()
                future.release()
                yield done


def _cluster_problem(distributed: Any, error: BaseException) -> str:
    if isinstance(error, distributed.KilledWorker):
        return f"the workers died of it: {first_line(error)}"
    return f"it could not be carried out there: {type(error).__name__}: {first_line(error)}"


@contextmanager
def _client(distributed: Any, where: str) -> Iterator[Any]:
    """A client of the cluster that is there, or of one on this machine for as long as it lasts."""
    name, _, number = where.partition(":")
    if name == "local":
        workers = int(number) if number.isdecimal() else 0
        if number and not workers:
            raise _no_cluster(where, "the number of workers is no number from 1")
        options = {"threads_per_worker": 1, "dashboard_address": None, "silence_logs": "ERROR"}
        with (
            distributed.LocalCluster(n_workers=workers or None, **options) as cluster,
            distributed.Client(cluster) as client,
        ):
            yield client
        return
    _check_answers(distributed, where)
    with distributed.Client(where, timeout=ANSWER) as client:
        try:
            client.wait_for_workers(1, timeout=PATIENCE)
        except TimeoutError as error:
            raise _no_cluster(where, f"no worker came within {PATIENCE} seconds") from error
        yield client


def _check_answers(distributed: Any, where: str) -> None:
    """Ask before there is a client, in a thread of its own, as notebooks have a loop in theirs.

    A client that fails to start stays the one that all of Dask uses, and when it is collected it
    waits for a lock, which the next client that starts may just be holding.
    """

    async def identity() -> dict[str, Any]:
        arguments = distributed.Security().get_connection_args("client")
        async with distributed.rpc(where, timeout=ANSWER, connection_args=arguments) as there:
            found: dict[str, Any] = await asyncio.wait_for(there.identity(), ANSWER)
            return found

    with ThreadPoolExecutor(1) as thread:
        try:
            kind = thread.submit(lambda: asyncio.run(identity())).result().get("type")
        except (OSError, ValueError, TypeError) as error:
            raise _no_cluster(where, first_line(error)) from error
    if kind != "Scheduler":
        raise _no_cluster(where, f"a {kind} answers there, not a scheduler")


def _no_cluster(where: str, why: str) -> OptionError:
    return OptionError(
        "There is no such cluster",
        received=where,
        expected="the address of a Dask scheduler such as tcp://10.0.0.1:8786, or local:2",
        remedy=f"{why[:1].upper()}{why[1:]}. `dask scheduler` starts one and says its address.",
    )


def left(tasks: Sequence[Task], done: set[tuple[str, int, str, bool]]) -> list[Task]:
    """The tasks that are still to be done, the longest first, so that none ends alone."""
    wanted = [task for task in tasks if task.key not in done]
    return sorted(wanted, key=lambda task: (-find([task.claim])[0].seconds, task.seed))
