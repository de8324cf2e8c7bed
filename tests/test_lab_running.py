"""Runs of the lab: resumed, interrupted, damaged, with processes that are killed."""

from __future__ import annotations

import json
import math
import shutil
from collections import Counter
from pathlib import Path

import pytest
import torch

import lab_at_work
from normkit.errors import FileError, OptionError
from normkit.lab import running, session
from normkit.lab.claim import Axes, Claim, Field, Measured, Number, Series
from normkit.lab.claims import find
from normkit.lab.progress import Progress
from normkit.lab.results import FILE, Record, Results
from normkit.lab.running import Done, Task, carry_out, left, measure, on_cluster, on_this_machine
from normkit.lab.verdicts import judge

SHARE = Number("share", "steps", "%", at_most=0.5)
CLAIM = Claim(
    "faster", "title", "sentence", "source", "experiment",
    (SHARE, Number("steps", "steps")), lambda _: Measured({}),
)  # fmt: skip


def record(seed=0, *, quick=False, claim="faster", **numbers):
    return Record(claim, seed, "digits", quick, numbers or {"share": 0.1, "steps": 3.0})


# --- values ---------------------------------------------------------------------------------------


def test_numbers_are_within_their_bounds_or_not():
    both = Number("n", "words", at_least=0.8, at_most=1.25)
    assert [both.holds(v) for v in (0.79, 0.8, 1.25, 1.26, math.nan, math.inf)] == [
        False, True, True, False, False, False,
    ]  # fmt: skip
    assert both.bound == "at least 0.8 and at most 1.25"
    assert not Number("n", "words").is_criterion
    assert Number("n", "words", "steps").shown(math.inf) == "never"
    assert Number("n", "words").shown(1234567.0) == "1.23e+06"


def test_a_claim_gives_what_it_announces():
    axes = Axes("Chart", "x", "y")
    claim = Claim("c", "t", "s", "s", "e", (SHARE,), lambda _: Measured({}), charts=(axes,))
    claim.check(Measured({"share": 1.0}, [Series("Chart", "a", [1], [2])]))
    with pytest.raises(ValueError, match="gave the numbers"):
        claim.check(Measured({"other": 1.0}, [Series("Chart", "a", [1], [2])]))
    with pytest.raises(ValueError, match="drew"):
        claim.check(Measured({"share": 1.0}))
    with pytest.raises(ValueError, match="2 values of x and 1 of y"):
        Series("Chart", "a", [1, 2], [1])


def test_three_seeds_and_every_one_of_them_make_a_verdict():
    def status(*shares, **options):
        records = [record(i, share=s, steps=1.0, **options) for i, s in enumerate(shares)]
        return judge(CLAIM, records).status

    assert status() == "not run"
    assert status(0.1, 0.2) == "first look"
    assert status(0.1, 0.2, 0.5) == "reproduced"
    assert status(0.1, 0.2, 0.51) == "not reproduced"
    assert status(0.1, 0.2, math.nan) == "not reproduced"
    assert status(0.1, 0.2, 0.3, quick=True) == "first look"
    one = judge(CLAIM, [record(i, share=s, steps=i) for i, s in enumerate((0.1, 0.9, 0.2))])
    assert one.held == 2
    assert one.words == "not reproduced: the criterion holds in 2 of 3 seeds"
    assert one.outcomes[0].shown == "20 % (10 % to 90 %)"
    reported = Claim("faster", "t", "s", "s", "e", (Number("steps", "w"),), lambda _: Measured({}))
    assert judge(reported, [record(steps=1.0)]).status == "reported"


# --- results --------------------------------------------------------------------------------------


def test_records_come_back_as_they_were(tmp_path):
    full = Record(
        "faster", 3, "digits", True, {"share": math.inf, "nothing": math.nan},
        (Series("Chart", "a", [1.0, 2.0], [0.5, -math.inf]),),
        (Field("Map", "b", [0.0], [1.0, 2.0], [[1.0], [2.0]]),),
        1.5, {"cpu": "x"}, {"torch": "2"}, "abc", "2026-01-01T00:00:00+00:00",
    )  # fmt: skip
    Results(tmp_path).add(full)
    (found,) = Results(tmp_path).records
    assert repr(found) == repr(full)  # NaN is not equal to itself


def test_damaged_lines_are_named_and_the_rest_is_kept(tmp_path):
    results = Results(tmp_path)
    results.add(record(0))
    path = tmp_path / FILE
    with path.open("ab") as file:
        file.write(b'{"claim": "faster"}\n\xff\xfe\n[1, 2]\n\n{"claim": 3}\n')
    results = Results(tmp_path)
    results.add(record(1))
    with path.open("ab") as file:
        file.write(b'{"claim": "faster", "seed": 2, "da')  # a crash
    results = Results(tmp_path)
    assert len(results.damaged) == 5
    assert f"{path}:2: " in results.damaged[0]
    results.add(record(2))
    again = Results(tmp_path)
    assert [one.seed for one in again.records] == [0, 1, 2]
    assert len(again.damaged) == 5


def test_a_task_is_kept_once(tmp_path):
    results = Results(tmp_path)
    assert results.add(record(0))
    assert not results.add(record(0, share=0.9))
    assert results.add(record(0, quick=True))
    line = (tmp_path / FILE).read_text().splitlines()[0]
    (tmp_path / FILE).write_text(f"{line}\n{line}\n")
    assert len(Results(tmp_path).records) == 1


# --- tasks ----------------------------------------------------------------------------------------


def test_the_same_task_gives_the_same_figures_and_disturbs_nothing():
    torch.manual_seed(5)
    expected, threads = torch.get_rng_state(), torch.get_num_threads()
    first, second = (measure(Task("faster", 1, quick=True))[0] for _ in range(2))
    assert first == second
    assert torch.equal(torch.get_rng_state(), expected)
    assert torch.get_num_threads() == threads


def test_a_failing_experiment_says_where(monkeypatch):
    def broken(_):
        raise ZeroDivisionError("of what")

    (claim,) = find(["faster"])
    monkeypatch.setitem(vars(claim), "measure", broken)
    done = carry_out(Task("faster", 0))
    assert done.record is None
    assert "ZeroDivisionError: of what" in done.problem
    assert "test_lab_running.py:" in done.problem


def test_the_longest_tasks_come_first_and_none_twice():
    tasks = [Task("faster", seed) for seed in range(3)]
    assert left(tasks, {tasks[1].key}) == [tasks[0], tasks[2]]


@pytest.mark.parametrize("jobs", [1, 2])
def test_processes(jobs):
    tasks = [Task("faster", seed) for seed in range(5)]
    found = list(on_this_machine(tasks, jobs, lab_at_work.quick))
    assert sorted(done.task for done in found) == tasks


def test_a_process_that_is_killed_once_loses_nothing(tmp_path):
    tasks = [Task("faster", seed, str(tmp_path)) for seed in range(6)]
    found = list(on_this_machine(tasks, 2, lab_at_work.killed_once))
    assert Counter(done.task for done in found) == Counter(tasks)
    assert all(done.record is not None for done in found)


def test_a_task_that_kills_its_process_again_is_a_problem_and_the_rest_is_done(tmp_path):
    tasks = [Task("faster", seed, str(tmp_path)) for seed in range(4)]
    found = list(on_this_machine(tasks, 2, lab_at_work.killed_always))
    assert Counter(done.task for done in found) == Counter(tasks)
    (problem,) = (done for done in found if done.record is None)
    assert problem.task.seed == lab_at_work.FATAL
    assert "killed twice" in problem.problem


@pytest.mark.filterwarnings("ignore")  # Dask's own, when a worker is killed
def test_a_killed_worker_of_a_cluster_loses_nothing_and_nothing_comes_twice(tmp_path):
    pytest.importorskip("distributed", reason="Dask is not installed")
    tasks = [Task("faster", seed, str(tmp_path)) for seed in range(12)]
    work = on_cluster(tasks, "local:2", lab_at_work.killed_late)
    found = []
    for done in work:  # as a run does, which keeps each before it asks for the next
        found.append(done)
        (tmp_path / f"delivered-{done.task.seed}").touch()
    assert Counter(done.task for done in found) == Counter(tasks)
    assert all(done.record is not None for done in found)
    tries = {seed: (tmp_path / f"tried-{seed}").read_text().count("once") for seed in range(12)}
    assert tries[11] >= 2
    repeated = [seed for seed in range(8) if tries[seed] > 1]
    assert repeated == []  # they were delivered before a worker was killed


@pytest.mark.parametrize("where", ["nonsense", "local:no", "local:0", "tcp://127.0.0.1:1"])
def test_a_cluster_that_is_not_there(where, monkeypatch):
    distributed = pytest.importorskip("distributed", reason="Dask is not installed")
    monkeypatch.setattr(running, "ANSWER", 1)
    monkeypatch.setattr(distributed, "Client", None)  # one that fails to start would stay about
    with pytest.raises(OptionError, match="no such cluster"):
        list(on_cluster([Task("faster", 0)], where))


def test_a_cluster_with_an_address():
    distributed = pytest.importorskip("distributed", reason="Dask distributed is not installed")
    tasks = [Task("faster", seed) for seed in range(3)]
    here = {"n_workers": 1, "threads_per_worker": 1, "processes": False, "dashboard_address": None}
    with distributed.LocalCluster(**here, protocol="tcp") as cluster:
        with pytest.raises(OptionError, match="A Worker answers there, not a scheduler"):
            list(on_cluster(tasks, cluster.workers[0].address, lab_at_work.quick))
        found = list(on_cluster(tasks, cluster.scheduler_address, lab_at_work.quick))
    assert sorted(done.task for done in found) == tasks
    assert all(done.record is not None for done in found)


# --- sessions -------------------------------------------------------------------------------------


@pytest.fixture
def measured(monkeypatch):
    """Tasks that were carried out, here and at once."""
    calls = []

    def instead(tasks, jobs):
        for task in tasks:
            calls.append(task)
            names = [number.name for number in find([task.claim])[0].numbers]
            numbers = dict.fromkeys(names, 9.0) | ({"share": 0.1} if "share" in names else {})
            yield Done(task, Record(task.claim, task.seed, task.data, task.quick, numbers))

    monkeypatch.setattr(session, "on_this_machine", instead)
    return calls


def test_what_is_done_is_not_done_again(measured, tmp_path):
    first = session.run(["faster"], tmp_path, seeds=2)
    assert [task.seed for task in measured] == [0, 1]
    assert first.judged[0].status == "first look"
    again = session.run(["faster"], tmp_path, seeds=3)
    assert [task.seed for task in measured] == [0, 1, 2]
    assert again.judged[0].status == "reproduced"
    session.run(["faster"], tmp_path, seeds=1, quick=True)
    assert measured[3:] == [Task("faster", 0, quick=True)]
    assert "faster" in again.page.read_text()
    events = {path.parent.name for path in tmp_path.rglob("events.out*")}
    assert events == {*(f"digits-full-seed{n}" for n in range(3)), "digits-quick-seed0"}


def test_events_that_a_crash_has_lost_are_written_again(measured, tmp_path):
    session.run(["faster"], tmp_path, seeds=2)
    shutil.rmtree(tmp_path / "events" / "faster" / "digits-full-seed1")
    session.run(["faster"], tmp_path, seeds=2)
    assert len(measured) == 2
    assert len(list(tmp_path.rglob("events.out*"))) == 2


def test_an_interrupted_run_goes_on_where_it_stopped(measured, tmp_path, monkeypatch):
    def interrupted(tasks, jobs):
        yield from instead(tasks[:1], jobs)
        raise KeyboardInterrupt

    instead = session.on_this_machine
    with monkeypatch.context() as patch:
        patch.setattr(session, "on_this_machine", interrupted)
        with pytest.raises(KeyboardInterrupt, match="1 of 3 results are kept"):
            session.run(["faster"], tmp_path)
    session.run(["faster"], tmp_path)
    assert [task.seed for task in measured] == [0, 1, 2]


def test_what_fails_is_said_and_not_kept(measured, tmp_path, monkeypatch):
    def failing(tasks, jobs):
        yield Done(tasks[0], None, "ValueError: no")
        yield from instead(tasks[1:], jobs)

    instead = session.on_this_machine
    with monkeypatch.context() as patch:
        patch.setattr(session, "on_this_machine", failing)
        found = session.run(["faster"], tmp_path)
    assert list(found.problems.values()) == ["ValueError: no"]
    assert "ValueError: no" in found.page.read_text()
    assert session.run(["faster"], tmp_path).judged[0].status == "reproduced"
    assert [task.seed for task in measured] == [1, 2, 0]


def test_two_runs_do_not_share_a_folder(measured, tmp_path):
    with session._alone(tmp_path), pytest.raises(FileError, match="Another run"):
        session.run(["faster"], tmp_path)
    session.run(["faster"], tmp_path)


def test_a_report_is_written_again(measured, tmp_path):
    session.run(["faster"], tmp_path)
    (tmp_path / session.PAGE).unlink()
    with (tmp_path / FILE).open("a") as file:
        file.write("rubbish\n")
    found = session.report(tmp_path)
    assert found.judged[0].status == "reproduced"
    assert "rubbish" not in found.page.read_text()
    assert f"{FILE}:4" in found.page.read_text()


@pytest.mark.parametrize(
    "change",
    [
        {"seed": True},
        {"commit": 5},
        {"machine": {"cores": "two"}},
        {"machine": {"memory_gib": "much"}},
        {"versions": {"torch": 2}},
        {"numbers": {"share": 10**400}},
        {"numbers": []},
        {"series": [{"chart": 5, "name": None, "x": [], "y": []}]},
        {"series": [{"chart": "a", "name": "b", "x": [1], "y": []}]},
        {"fields": [{"chart": "a", "name": "b", "x": [1], "y": [1, 2], "z": [[1], [1, 2]]}]},
    ],
)
def test_lines_that_are_json_and_no_results_are_named(change, measured, tmp_path):
    session.run(["faster"], tmp_path)
    values = json.loads((tmp_path / FILE).read_text().splitlines()[0])
    with (tmp_path / FILE).open("a") as file:
        file.write(json.dumps(values | {"seed": 7} | change) + "\n")
    (line,) = session.report(tmp_path).damaged
    assert f"{FILE}:4: " in line
    assert session.run(["faster"], tmp_path).judged[0].status == "reproduced"


def test_results_of_other_claims_are_named(measured, tmp_path):
    session.run(["faster"], tmp_path)
    values = json.loads((tmp_path / FILE).read_text().splitlines()[0])
    with (tmp_path / FILE).open("a") as file:
        file.write(json.dumps(values | {"claim": "of_tomorrow"}) + "\n")
    found = session.report(tmp_path)
    assert found.left_out == ("of_tomorrow: no claim of this version (1 result)",)
    assert found.damaged == ()
    assert "of_tomorrow" in found.page.read_text()


def test_results_of_another_version_of_an_experiment_are_measured_again(measured, tmp_path):
    session.run(["faster"], tmp_path, seeds=1)
    line = json.loads((tmp_path / FILE).read_text())
    del line["numbers"]["share"]
    (tmp_path / FILE).write_text(json.dumps(line) + "\n")
    said = ("faster: measured by another version of its experiment (1 result)",)
    with pytest.raises(FileError, match="no results"):
        session.report(tmp_path)
    assert session.run(["faster"], tmp_path, seeds=1).left_out == said
    assert [task.seed for task in measured] == [0, 0]
    again = session.run(["faster"], tmp_path, seeds=1)  # of two lines the last counts
    assert again.left_out == ()
    assert len(measured) == 2


def test_the_report_tells_all_that_the_folder_holds(measured, tmp_path):
    session.run(["faster"], tmp_path, seeds=1)
    session.run(["undo"], tmp_path, seeds=1, quick=True)
    found = session.run(["weight_scale"], tmp_path, seeds=1)
    assert [one.claim.name for one in found.judged] == ["faster", "weight_scale"]
    assert found.left_out == ("not shown here: 1 result (--data digits --quick)",)
    quick = session.report(tmp_path, quick=True)
    assert [one.claim.name for one in quick.judged] == ["undo"]
    with pytest.raises(FileError, match=r"2 results \(--data digits --full\)"):
        session.report(tmp_path, data="mnist")


def test_a_folder_of_images_is_found_by_any_of_its_names(measured, tmp_path, monkeypatch):
    monkeypatch.setattr(session, "load", lambda *_: None)
    monkeypatch.chdir(tmp_path)
    session.run(["faster"], tmp_path / "out", seeds=1, data="my images")
    found = session.report(tmp_path / "out", data="./my images")
    assert found.data == str(tmp_path / "my images")
    assert "images&#39;" in found.page.read_text()  # quoted, in the command that tries it again


def test_what_is_in_the_way_is_found_before_the_work(measured, tmp_path):
    for name in ("report.html", "events"):
        folder = tmp_path / f"with {name}"
        folder.mkdir()
        if name == "events":
            (folder / name).write_text("a file")
        else:
            (folder / name).mkdir()
        with pytest.raises(FileError):
            session.run(["faster"], folder)
    assert measured == []


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"names": ["fastest"]}, "perhaps faster"),
        ({"names": ["qqq"]}, "lab list"),
        ({"seeds": 0}, "number of seeds.*from 1 to 1,000"),
        ({"seeds": 10**20}, "number of seeds"),
        ({"jobs": 0}, "number of jobs.*As many as"),
        ({"data": "nowhere/at/all"}, "no such data"),
    ],
)
def test_what_cannot_be_run_is_refused_before_anything_is_made(options, said, tmp_path):
    with pytest.raises((OptionError, FileError), match=said):
        session.run(**{"names": ["faster"], "out": tmp_path / "out", **options})
    assert not (tmp_path / "out").exists()


def test_folders_that_cannot_be_used(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(FileError, match="cannot be kept"):
        session.run(["faster"], tmp_path / "file")
    with pytest.raises(FileError, match="no such folder"):
        session.report(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileError, match="no results"):
        session.report(tmp_path / "empty")
    assert (tmp_path / "file").read_text() == "in the way"


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="this system has no /proc")
def test_a_folder_that_cannot_be_made():
    with pytest.raises(FileError, match="cannot be kept"):
        session.run(["faster"], "/proc/normkit-lab")  # nobody may, root neither


def test_progress_is_a_line_a_task(capsys):
    tasks = [Task("faster", seed) for seed in range(2)]
    with Progress(tasks, 1, Counter()) as progress:
        progress.finished(lab_at_work.done(tasks[0]))
        progress.finished(Done(tasks[1], None, "broken"))
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("[1/2] faster, seed 0: ")
    assert lines[1] == "[2/2] faster, seed 1: broken; 0 s left"


def test_commits_are_of_this_source_only(tmp_path, monkeypatch):
    found = running.machine.commit()
    assert found is None or len(found) >= 7
    monkeypatch.setattr(running.machine, "__file__", str(tmp_path / "machine.py"))
    assert running.machine.commit() is None


def test_a_cluster_that_is_not_there_leaves_dask_as_it_was(monkeypatch):
    array = pytest.importorskip("dask.array", reason="Dask is not installed")
    pytest.importorskip("distributed", reason="Dask distributed is not installed")
    monkeypatch.setattr(running, "ANSWER", 1)
    with pytest.raises(OptionError):
        list(running.on_cluster([Task("faster", 0)], "tcp://127.0.0.1:9"))
    assert int(array.ones(3, chunks=2).sum().compute()) == 3
