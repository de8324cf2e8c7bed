"""normkit lab: what its commands print, write and return; interrupted, killed, and begun again."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
import webbrowser

import pytest

pytest.importorskip("torch", reason="PyTorch is not installed")
pytest.importorskip("typer", reason="typer is not installed")
pytest.importorskip("jinja2", reason="jinja2 is not installed")
pytest.importorskip("plotly", reason="plotly is not installed")
pytest.importorskip("tensorboard", reason="TensorBoard is not installed")

from hearing import hearing
from normkit.cli import main
from normkit.lab import running
from normkit.lab.claims import TOPICS, find
from normkit.lab.results import FILE
from normkit.lab.session import PAGE
from test_report import loads

CHEAP = ("undo", "redundant_bias", "weight_norm_gradient")  # a moment each


@pytest.fixture
def run(capsys):
    def run(*words):
        status = main(["lab", *map(str, words)])
        shown = capsys.readouterr()
        return status, shown.out, shown.err

    return run


@pytest.fixture
def results(run, tmp_path):
    """A folder with two seeds of one claim."""
    folder = tmp_path / "results"
    assert run("run", "undo", "--quick", "--seeds", 2, "--jobs", 1, "--out", folder)[0] == 0
    return folder


def broken(*_):
    raise ZeroDivisionError("of what")


@pytest.fixture
def nothing_measured(results, monkeypatch):
    """Whatever is measured from now on fails."""
    monkeypatch.setattr(running, "measure", broken)


def one_line(text):
    return text.startswith("normkit: ") and text.count("\n") == 1 and "Traceback" not in text


def records(folder):
    """What the lines of the results say, each of them whole."""
    return [json.loads(line) for line in (folder / FILE).read_bytes().splitlines()]


def keys(folder):
    return [(one["claim"], one["seed"]) for one in records(folder)]


# --- list -----------------------------------------------------------------------------------------


def test_list_names_every_claim_with_its_topic(run):
    status, out, err = run("list")
    assert (status, err) == (0, "")
    for topic, names in TOPICS.items():
        for name in names:
            assert any(topic in line and name in line.split() for line in out.splitlines()), name


def test_list_as_json(run):
    status, out, err = run("list", "--json")
    assert (status, err) == (0, "")
    found = json.loads(out)
    assert [(one["topic"], one["name"]) for one in found] == [
        (topic, name) for topic, names in TOPICS.items() for name in names
    ]
    (undo,) = (one for one in found if one["name"] == "undo")
    assert set(undo["criteria"]) == {number.name for number in find(["undo"])[0].criteria}
    assert all(one["title"] and one["sentence"] and one["source"] for one in found)


@pytest.mark.parametrize("command", ["list", "run", "report"])
def test_help_has_examples(run, command):
    status, out, _ = run(command, "--help")
    assert status == 0
    if command != "list":
        assert f"normkit lab {command}" in out


# --- run ------------------------------------------------------------------------------------------


def test_run_prints_a_table_and_writes_results_and_page(run, tmp_path):
    out = tmp_path / "deep" / "out"
    status, shown, err = run("run", *CHEAP, "--quick", "--seeds", 1, "--jobs", 1, "--out", out)
    assert status == 0
    assert set(keys(out)) == {(name, 0) for name in CHEAP}
    for name in CHEAP:
        rows = [line for line in shown.splitlines() if line.split()[0] == name]
        assert len(rows) == len(find([name])[0].criteria)
        assert all("first look" in row for row in rows)
    assert str(out / PAGE) in err.splitlines()[-1]
    assert loads((out / PAGE).read_text(encoding="utf-8")).found == []
    assert len(list(out.rglob("events.out*"))) == len(CHEAP)


def test_run_as_json_is_one_document(run, tmp_path):
    words = ("undo", "--quick", "--seeds", 2, "--jobs", 1, "--json", "--out", tmp_path)
    status, out, _ = run("run", *words)
    assert status == 0
    (found,) = json.loads(out)
    assert (found["claim"], found["status"], found["seeds"]) == ("undo", "first look", [0, 1])
    measured = [one["numbers"]["undone"] for one in records(tmp_path)]
    assert found["numbers"]["undone"]["values"] == measured
    assert set(found["numbers"]) == {number.name for number in find(["undo"])[0].numbers}


@pytest.mark.usefixtures("nothing_measured")
def test_a_second_run_measures_nothing(run, results):
    before = (results / FILE).read_bytes()
    (results / PAGE).unlink()
    status, out, err = run(
        "run", "undo", "--quick", "--seeds", 2, "--jobs", 1, "--out", results, "--json"
    )
    assert (status, err.count("\n")) == (0, 1)  # where the page is
    assert json.loads(out)[0]["seeds"] == [0, 1]
    assert (results / FILE).read_bytes() == before
    assert (results / PAGE).exists()


def test_only_what_is_missing_is_measured(run, results):
    before = (results / FILE).read_bytes()
    assert run("run", "undo", "--quick", "--seeds", 3, "--jobs", 1, "--out", results)[0] == 0
    assert (results / FILE).read_bytes().startswith(before)
    assert keys(results) == [("undo", 0), ("undo", 1), ("undo", 2)]


def test_an_experiment_that_fails_is_said_and_the_rest_is_kept(run, tmp_path, monkeypatch):
    words = ("run", "undo", "redundant_bias", "--quick", "--seeds", 1, "--jobs", 1)
    with monkeypatch.context() as patch:
        patch.setitem(vars(find(["undo"])[0]), "measure", broken)
        status, out, err = run(*words, "--out", tmp_path, "--json")
    assert status == 2
    assert {one["claim"]: one["status"] for one in json.loads(out)} == {
        "undo": "not run", "redundant_bias": "first look",
    }  # fmt: skip
    said = [line for line in err.splitlines() if "ZeroDivisionError: of what" in line]
    assert all("undo, seed 0" in line for line in said)
    assert said
    assert "Traceback" not in err
    assert "ZeroDivisionError: of what" in (tmp_path / PAGE).read_text(encoding="utf-8")
    assert keys(tmp_path) == [("redundant_bias", 0)]
    assert run(*words, "--out", tmp_path)[0] == 0  # and it is tried once more
    assert keys(tmp_path) == [("redundant_bias", 0), ("undo", 0)]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["undoo"], "perhaps undo"),
        (["undo", "faste"], "perhaps faster"),
        (["qqq"], "normkit lab list"),
        (["undo", "--seeds", "0"], "seeds"),
        (["undo", "--seeds", "-1"], "seeds"),
        (["undo", "--seeds", "some"], "'--seeds'"),
        (["undo", "--jobs", "0"], "jobs"),
        (["undo", "--data", "nowhere/at/all"], "nowhere/at/all"),
        (["undo", "--cluster", "local:none"], "local:none"),
        (["undo", "--fast"], "--fast"),
    ],
)
def test_what_cannot_be_run_is_one_line(run, words, said, tmp_path):
    status, out, err = run("run", *words, "--quick", "--out", tmp_path / "out")
    assert (status, out) == (2, "")
    assert one_line(err)
    assert said in err
    assert not (tmp_path / "out" / FILE).exists()


def test_a_file_where_the_folder_should_be(run, tmp_path):
    (tmp_path / "file").write_text("in the way")
    for command in (["run", "undo", "--out"], ["report"]):
        status, out, err = run(*command, tmp_path / "file")
        assert (status, out) == (2, "")
        assert one_line(err)
        assert str(tmp_path / "file") in err
    assert (tmp_path / "file").read_text() == "in the way"


def test_a_damaged_line_is_named_and_the_rest_is_kept(run, results):
    with (results / FILE).open("ab") as file:
        file.write(b'{"claim": "undo", "seed": 2, "da')  # a crash
    words = ("run", "undo", "--quick", "--seeds", 3, "--jobs", 1, "--out", results, "--json")
    for _ in range(2):
        status, out, err = run(*words)
        assert status == 0
        assert json.loads(out)[0]["seeds"] == [0, 1, 2]
        assert [f"{FILE}:3" in line for line in err.splitlines()].count(True) == 1
    assert len((results / FILE).read_bytes().splitlines()) == 4
    assert f"{FILE}:3" in run("report", results)[2]


# --- report ---------------------------------------------------------------------------------------


@pytest.mark.usefixtures("nothing_measured")
def test_report_writes_the_page_again(run, results, monkeypatch):
    opened = []
    monkeypatch.setattr(webbrowser, "open", opened.append)
    (results / PAGE).unlink()
    status, out, _ = run("report", results)
    assert status == 0
    assert out.splitlines()[-1].split()[0] == "undo"
    assert "undo" in (results / PAGE).read_text(encoding="utf-8")
    assert opened == []
    status, out, _ = run("report", results, "--open", "--json")
    assert (status, json.loads(out)[0]["seeds"]) == (0, [0, 1])
    assert opened == [(results / PAGE).as_uri()]


def test_report_of_what_is_not_there(run, results, tmp_path):
    (tmp_path / "empty").mkdir()
    for words in (["nothing"], ["empty"], ["results", "--full"], ["results", "--data", "mnist"]):
        status, out, err = run("report", tmp_path / words[0], *words[1:])
        assert (status, out) == (2, "")
        assert one_line(err)
        assert str(tmp_path / words[0]) in err
    assert not (tmp_path / "nothing").exists()


# --- interrupted and killed -----------------------------------------------------------------------

LONG = ("precise_statistics", "redundant_bias", "undo")  # half a second each seed, then moments
SEEDS = 5


def begun(out):
    """The command in a process of its own."""
    words = ("run", *LONG, "--quick", "--seeds", str(SEEDS), "--jobs", "1", "--out", str(out))
    return subprocess.Popen(
        hearing("-m", "normkit.cli", "lab", *words),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def stopped(out, how, lines):
    """Status and standard error of a run that gets a signal when there are so many results."""
    with begun(out) as process:
        try:
            deadline = time.monotonic() + 120
            while not (out / FILE).exists() or (out / FILE).read_bytes().count(b"\n") < lines:
                assert process.poll() is None, process.communicate()[1]
                assert time.monotonic() < deadline, "no result in time"
                time.sleep(0.01)
            process.send_signal(how)
            _, err = process.communicate(timeout=60)
        finally:
            process.kill()
    return process.returncode, err


def measured(err):
    """The tasks that a run's progress names."""
    return {
        (name, seed)
        for name in LONG
        for seed in range(SEEDS)
        if any(f"{name}, seed {seed}:" in line for line in err.splitlines())
    }


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")
def test_a_run_that_was_interrupted_and_then_killed_goes_on_where_it_stopped(tmp_path):
    status, err = stopped(tmp_path, signal.SIGINT, 1)
    # Python dies of the signal itself where it caught it in exec("..."): 130 to a shell, too.
    assert status in (130, -signal.SIGINT)
    assert "Traceback" not in err
    assert err.splitlines()[-1].startswith("normkit: interrupted")
    first = keys(tmp_path)
    assert 1 <= len(first) < len(LONG) * SEEDS

    status, err = stopped(tmp_path, signal.SIGKILL, len(first) + 1)
    assert status == -signal.SIGKILL
    assert not measured(err) & set(first)
    second = keys(tmp_path)
    assert second[: len(first)] == first
    assert len(first) < len(second) < len(LONG) * SEEDS

    with begun(tmp_path) as process:
        out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    every = {(name, seed) for name in LONG for seed in range(SEEDS)}
    assert measured(err) == every - set(second)
    assert len(keys(tmp_path)) == len(every)
    assert set(keys(tmp_path)) == every
    assert "undo" in out
    assert (tmp_path / PAGE).exists()
