"""The demo as a user runs it, and the parts that its figures rest on."""

from __future__ import annotations

import copy
import json
import math
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from browser import Browser, needs_chromium
from hearing import hearing
from normkit.demo import chapters, journey, lab
from normkit.demo import main as command
from normkit.demo.main import main
from normkit.demo.networks import build
from normkit.demo.summary import COLUMNS, agreement, findings, grouped, table
from normkit.demo.training import Agreement, Point, Result, Run, one_at_a_time, train
from normkit.lab.claims import find
from normkit.lab.data.loading import digits
from normkit.lab.verdicts import judge
from test_report import chart_data, loads

COMMAND = [sys.executable, "-m", "normkit.demo", "--quick", "--seed", "7"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> list[tuple[str, str, Path]]:
    """Two runs, as text and as JSON: standard output, standard error, page."""
    found = []
    for options in ([], ["--json"]):
        out = tmp_path_factory.mktemp("demo") / "demo.html"
        done = subprocess.run(
            [*COMMAND, "--out", out, *options],
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        found.append((done.stdout, done.stderr, out))
    return found


def test_two_runs_say_the_same_as_text_and_as_json(runs):
    lines, values = runs[0][0].splitlines(), json.loads(runs[1][0])
    rows = [re.split(r"  +", line)[:-1] for line in lines[2:10]]  # the last column is seconds
    assert rows == [
        [
            one["network"],
            one["norm"],
            f"{one['rate']:g}",
            ", ".join("never" if step is None else str(step) for step in one["steps_to_goal"]),
            f"{one['train_accuracy'][0]:.1%}",
            f"{one['test_accuracy'][0]:.1%}",
        ]
        for one in values["training"]
    ]
    assert lines[11 : 11 + len(values["findings"])] == values["findings"]
    trip = values["journey"]
    rights = [f"{one['right'] / trip['images']:.1%}" for one in trip["stations"]]
    assert re.findall(r"([0-9.]+%) right", runs[0][0]) == rights
    assert [len(one["findings"] or ()) > 0 for one in trip["stations"]] == [
        False,
        True,
        False,
        False,
    ]
    assert all(trip["checks"].values())
    assert values["page"] == str(runs[1][2].resolve())


def test_two_runs_draw_the_same_curves(runs):
    first, second = (chart_data(out.read_text(encoding="utf-8")) for *_, out in runs)
    assert first == second


def test_table_has_every_run_and_the_page_the_same_figures(runs):
    stdout, _, out = runs[0]
    rows = [re.split(r"  +", line) for line in stdout.splitlines()[2:10]]
    assert [tuple(row[:3]) for row in rows] == [
        ("dense", "batch norm", "0.02"),
        ("dense", "none", "0.02"),
        ("dense", "batch norm", "1"),
        ("dense", "none", "1"),
        ("convolutional", "batch norm", "0.01"),
        ("convolutional", "none", "0.01"),
        ("convolutional", "batch norm", "0.2"),
        ("convolutional", "none", "0.2"),
    ]
    text = out.read_text(encoding="utf-8")
    figures = text[text.index("<h2>The figures</h2>") :].partition("</table>")[0]
    cells = re.findall(r"<td.*?>(.*?)</td>", figures)
    assert cells == [cell for row in rows for cell in row]
    charts = chart_data(text)[:4]  # those of the lab follow
    assert all(len(chart["lines"]) == 4 for chart in charts)


def test_batch_norm_learns_where_the_plain_network_fails(runs):
    rows = [re.split(r"  +", line) for line in runs[0][0].splitlines()[2:10]]
    accuracy = {tuple(row[:3]): float(row[5].rstrip("%")) for row in rows}
    assert accuracy["dense", "batch norm", "1"] > 90
    assert accuracy["dense", "none", "1"] < 80


def test_plain_progress_is_a_line_a_run(runs):
    lines = [line for line in runs[0][1].splitlines() if line.startswith("[")]
    assert len(lines) == 9  # the eight of the table, and the one that goes on the journey
    assert lines[0].startswith("[1/9] dense with batch norm, rate 0.02, seed 7: train ")


def test_page_loads_nothing(runs):
    parsed = loads(runs[0][2].read_text(encoding="utf-8"))
    assert parsed.found == []
    assert "default-src 'none'" in parsed.policy


@pytest.mark.browser
@needs_chromium
def test_page_draws_in_a_browser(runs, tmp_path):
    with Browser(tmp_path) as browser:
        browser.open(runs[0][2])
        plots = browser.ask("document.querySelectorAll('.plot').length")
        assert plots == len(chart_data(runs[0][2].read_text(encoding="utf-8"))) > 4
        for number in range(plots):
            plot = f"document.querySelectorAll('.plot')[{number}]"
            browser.ask(f"{plot}.scrollIntoView()")
            drawn = f"{plot}.querySelectorAll('.trace.scatter').length"
            assert browser.until(f"{drawn} >= {4 if number < 4 else 1}")
        for width in (390, 1200):
            browser.resize(width)
            assert browser.overflow() <= 0
        assert browser.problems == []  # no error, and nothing that the policy had to refuse


def test_the_journey_is_told_in_short_lines(runs):
    lines = runs[0][0].splitlines()
    start = lines.index("The journey of the convolutional network, seed 7:")
    told = lines[start + 1 : lines.index("", start)]
    assert [line.split()[0] for line in told] == (
        ["trained", "spoiled", "recalibrated", "folded", "compared"]
    )
    share = [float(re.search(r"([\d.]+)% right", line)[1]) for line in told[:4]]
    assert share[1] < share[0] - 1
    assert abs(share[2] - share[0]) < 1
    assert share[3] == share[2]
    assert re.search("audit: nothing found by 2[0-9] rules$", told[0])
    assert told[1].endswith("audit: stale-statistics (error) at layer 4")
    assert re.search("audit: nothing found by 2[0-9] rules$", told[2])
    assert "2 of 2 norms folded" in told[4]
    assert "500 of 500 predictions alike" in told[4]
    assert max(map(len, lines[start : start + 5])) < 100


def test_the_page_tells_the_journey_too(runs):
    text = runs[0][2].read_text(encoding="utf-8")
    assert "A trained network was spoiled, found out, repaired and folded, and still agrees" in text
    anchors = re.findall(r'id="at-(\w+)"', text)
    assert anchors == ["trained", "spoiled", "recalibrated", "score"]  # and then the lab
    opened = re.findall(r'<details class="fold" id="at-(\S+)" open>', text)
    assert opened == ["spoiled", "spoiled-2"]  # the audit that found something, and the layer
    for heading in ("What recalibrating changed", "What folding did", "How it was trained"):
        assert f"<h2>{heading}</h2>" in text


def test_the_lab_tells_of_its_five_claims_in_lines_json_and_cards(runs):
    lines, values = runs[0][0].splitlines(), json.loads(runs[1][0])["lab"]
    start = lines.index("A quick look into the lab (normkit lab has the rest):")
    told = lines[start + 1 : lines.index("", start)]
    heads = [line for line in told if not line.startswith(" ")]
    assert list(values["claims"]) == list(lab.CLAIMS)
    text = runs[0][2].read_text(encoding="utf-8")
    for line, claim in zip(heads, find(lab.CLAIMS), strict=True):
        one = values["claims"][claim.name]
        assert one["seeds"] == [7]
        assert line == f"{claim.title} ({claim.name}): criteria met by {one['held']} of 1 seed"
        for number in claim.criteria:
            shown = number.shown(one["numbers"][number.name])
            assert f"    {number.words}: {shown}, expected {number.bound}" in told
        assert f'id="at-claim-{claim.name}"' in text
    assert values["problems"] == []
    assert "These are quick runs" in text


def test_an_experiment_that_fails_is_said_and_stops_no_other(monkeypatch):
    def fail(setup):
        raise ValueError("no such thing")

    faster, other = find(["faster", "precise_statistics"])
    monkeypatch.setattr(lab, "find", lambda _: [faster, other])
    monkeypatch.setitem(vars(faster), "measure", fail)  # frozen: there is no other way in
    said = []
    visit = lab.visit([3], said.append)
    assert len(visit.problems) == 1
    assert visit.problems[0].startswith("The experiment faster failed, seed 3: ValueError: no such")
    assert [len(one.records) for one in visit.judged] == [0, 1]
    assert said[0].endswith("(faster): criteria met by 0 of 0 seeds")
    assert visit.to_dict()["problems"] == list(visit.problems)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seed", "-1"], "expected a whole number from 0 to 4294967292, got '-1'"),
        (["--seed", "4294967293"], "expected a whole number from 0"),
        (["--seed", "two"], "got 'two'"),
        (["--init", "zero"], "invalid choice: 'zero'"),
        (["--out", "."], "expected a file to write, got the folder '.'"),
        (["--out", "page.txt"], "expected a name that ends in .html, got 'page.txt'"),
        (["--fast"], "unrecognized arguments: --fast"),
    ],
)
def test_bad_arguments_get_one_line(arguments, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.count("\n") == 1
    assert output.err.startswith("normkit.demo: error: ")
    assert message in output.err


def test_page_that_cannot_be_written_is_found_out_before_the_work(tmp_path, capsys):
    (tmp_path / "file").write_text("in the way")
    assert main(["--out", str(tmp_path / "file" / "page.html")]) == 1
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.count("\n") == 1
    assert "the page could not be written" in output.err


def test_a_page_is_not_replaced_unless_told_and_that_before_the_work(tmp_path, capsys):
    page = tmp_path / "page.html"
    page.write_text("precious")
    assert main(["--out", str(page)]) == 1
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.count("\n") == 1
    assert "would replace a file" in output.err
    assert "--overwrite" in output.err
    assert page.read_text() == "precious"


@pytest.mark.parametrize("arguments", [[], ["--out", "mine.html", "--overwrite"]])
def test_the_usual_page_is_replaced_and_others_when_told(arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for path in (Path("out/demo.html"), Path("mine.html")):
        path.parent.mkdir(exist_ok=True)
        path.write_text("old")

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "_train", interrupt)
    assert main(["--quick", *arguments]) == 130  # it got as far as the training
    assert Path("out/demo.html").read_text() == Path("mine.html").read_text() == "old"


def test_interrupted_run_leaves_no_file(tmp_path):
    command = [*COMMAND[1:], "--out", tmp_path / "page.html"]
    command.remove("--quick")  # a signal that comes late on a busy machine still finds it training
    with subprocess.Popen(
        hearing(*command), stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as run:
        for line in run.stderr:
            if line.startswith("[1/"):
                break
        run.send_signal(signal.SIGINT)
        rest = run.stderr.read()
        assert run.stdout.read() == ""
    assert run.returncode == 130
    assert rest.splitlines()[-1] == "interrupted; no page was written"
    assert "Traceback" not in rest
    assert list(tmp_path.iterdir()) == []


def test_split_is_seeded_and_scaled_by_the_training_images():
    first, again, other = digits(0), digits(0), digits(1)
    assert torch.equal(first.train_images, again.train_images)
    assert not torch.equal(first.train_images, other.train_images)
    assert first.train_images.shape == (1297, 1, 8, 8)
    assert first.test_images.shape == (500, 1, 8, 8)
    assert float(first.train_images.mean()) == pytest.approx(0, abs=1e-5)
    assert float(first.train_images.std()) == pytest.approx(1, abs=1e-5)
    assert first.test_labels.bincount().min() >= 45  # every class in proportion


@pytest.mark.parametrize("network", ["dense", "convolutional"])
@pytest.mark.parametrize("init", ["torch", "he"])
def test_weights_are_alike_with_batch_norm_and_without(network, init):
    def weights(batch_norm):
        layers = build(network, batch_norm, init, seed=3)
        return [one.weight for one in layers if getattr(one, "weight", torch.empty(0)).ndim > 1]

    normed, plain = weights(True), weights(False)
    assert len(normed) == len(plain) == 3
    assert all(torch.equal(*pair) for pair in zip(normed, plain, strict=True))


@pytest.mark.parametrize("network", ["dense", "convolutional"])
def test_training_is_repeatable_bit_by_bit(network):
    run = Run(network, batch_norm=True, rate=0.1, steps=10, seed=0)
    data = digits(0)
    seen = []
    first, again = train(run, data, seen.append), train(run, data, lambda _: None)
    assert first.points == again.points == tuple(seen)
    assert [point.step for point in seen] == [5, 10]


@pytest.mark.parametrize("network", ["dense", "convolutional"])
def test_one_image_at_a_time(network):
    run = Run(network, batch_norm=True, rate=0.1, steps=5, seed=0)
    assert train(run, digits(0), lambda _: None).agreement.holds


def test_one_image_at_a_time_rejects_statistics_of_the_batch():
    network = build("convolutional", True, "torch", seed=0)
    for layer in network:
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.running_mean = layer.running_var = None  # eval falls back on the batch's own
    found = one_at_a_time(network, digits(0).test_images[:20])
    assert found.roundings > 1e4
    assert not found.holds


def result(steps_to_goal: int | None, batch_norm: bool, agreed: Agreement | None = None) -> Result:
    """A result of 100 steps with the goal reached at the given one."""
    points = tuple(
        Point(step, 1.0, 0.5 if steps_to_goal is None or step < steps_to_goal else 0.96, 0.5)
        for step in range(5, 101, 5)
    )
    run = Run("dense", batch_norm, rate=0.5, steps=100, seed=0)
    return Result(run, points, seconds=1.0, agreement=agreed or Agreement(1e-6, 10.0))


@pytest.mark.parametrize(
    ("normed", "plain", "words"),
    [
        (20, 60, "95% after 20 steps with batch norm, 60 without: 3.0 times fewer."),
        (60, 20, "95% after 60 steps with batch norm, 20 without: batch norm was slower here."),
        (20, 25, "no difference worth the name."),
        (90, 80, "no difference worth the name."),
        (20, None, "95% after 20 steps with batch norm, not in 100 without."),
        (None, 20, "95% after 20 steps without batch norm, not in 100 with it."),
        (None, None, "95% not reached in 100 steps, with batch norm or without."),
    ],
)
def test_findings_say_what_the_steps_say(normed, plain, words):
    [sentence] = findings(grouped([result(normed, True), result(plain, False)]))
    assert sentence.startswith("Dense network at rate 0.5: ")
    assert sentence.endswith(words)


def test_steps_of_several_seeds_are_all_shown():
    [group] = grouped([result(20, True), result(None, True), result(30, True)])
    assert group.steps_to_goal == 30
    assert group.row[3] == "20, never, 30"
    assert table([group]).splitlines()[2].split() == (
        ["dense", "batch", "norm", "0.5", "20,", "never,", "30", "80.7%", "50.0%", "3.00"]
    )
    assert len(group.row) == len(COLUMNS)


def test_agreement_fails_for_batch_norm_alone():
    apart = Agreement(difference=1.0, scale=10.0)
    broken = Agreement(difference=math.nan, scale=math.nan)
    assert agreement([result(20, True), result(20, False, broken)])[0]
    holds, words = agreement([result(20, True, apart), result(20, False)])
    assert not holds
    assert "NOT equal" in words
    assert not agreement([result(20, True, broken)])[0]


# --- the journey ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained() -> Result:
    return train(journey.wanted(0, "torch"), digits(0), lambda _: None)


@pytest.fixture(scope="module")
def travelled(trained) -> journey.Journey:
    return journey.travel(trained, digits(0), lambda _: None)


def changed(whole, **fields):
    """A copy of a value with other fields."""
    other = copy.copy(whole)
    for name, value in fields.items():
        object.__setattr__(other, name, value)
    return other


def test_spoiling_changes_the_statistics_of_a_copy_and_nothing_else(trained):
    data = digits(0)
    before = {name: one.clone() for name, one in trained.network.state_dict().items()}
    spoiled = journey.spoil(trained.network, trained.run, (data.train_images, data.train_labels))
    for name, one in trained.network.state_dict().items():
        assert torch.equal(one, before[name]), name
    moved = [
        name for name, one in spoiled.state_dict().items() if not torch.equal(one, before[name])
    ]
    assert moved == ["1.running_mean", "1.running_var", "4.running_mean", "4.running_var"]
    # of the weights before the training, by hand
    young = build("convolutional", True, "torch", seed=0)
    first = young[0](data.train_images).detach().double()
    assert torch.allclose(spoiled[1].running_mean.double(), first.mean((0, 2, 3)), atol=1e-6)
    assert torch.allclose(spoiled[1].running_var.double(), first.var((0, 2, 3)), rtol=1e-5)


def test_the_journey_holds_and_leaves_the_trained_network_alone(trained, travelled):
    assert all(travelled.checks.values()), travelled.checks
    assert not any(isinstance(layer, torch.nn.Identity) for layer in trained.network)
    assert travelled.images == travelled.alike == 500
    assert len(travelled.logits[0]) == len(travelled.logits[1]) == 5000
    assert chapters.verdict(travelled).level == "good"
    assert [fold.norm for fold in travelled.folding.folded] == ["1", "4"]
    assert {finding.rule for finding in travelled.spoiled.report.findings} == {"stale-statistics"}


def test_every_check_of_the_journey_can_fail(travelled):
    clean, found = travelled.trained, travelled.spoiled
    broken = {
        "nothing was found in the trained network": {"trained": found},
        "the spoiled statistics were found, and nothing else": {"spoiled": clean},
        "nothing was found after recalibrating": {"repaired": found},
        "all norms were folded": {
            "folding": changed(travelled.folding, refused=(("4", "for a reason"),))
        },
        "all predictions agree": {"alike": 499},
    }
    assert list(broken) == list(travelled.checks)
    for words, fields in broken.items():
        other = changed(travelled, **fields)
        assert [name for name, held in other.checks.items() if not held] == [words]
        assert not other.holds
        verdict = chapters.verdict(other)
        assert verdict.level == "error"
        assert words in verdict.words
    apart = changed(travelled, agreement=Agreement(1.0, 10.0))
    assert not apart.checks["all predictions agree"]


def test_what_fails_is_an_exit_status(travelled, monkeypatch, tmp_path, capsys):
    runs = []

    def one(wanted, _):
        runs.extend(wanted)
        return {
            run: Result(run, result(20, True).points, 1.0, Agreement(0.0, 1.0)) for run in wanted
        }

    monkeypatch.setattr(command, "_train", one)
    not_run = judge(find(["faster"])[0], [])
    for journeyed, problems, status in (
        (travelled, (), 0),
        (changed(travelled, alike=499), (), 1),
        (travelled, ("The experiment faster failed.",), 1),
    ):
        visited = lab.Visit((not_run,), problems)
        monkeypatch.setattr(journey, "travel", lambda *_, done=journeyed: done)
        monkeypatch.setattr(lab, "visit", lambda *_, done=visited: done)
        assert main(["--out", str(tmp_path / "page.html"), "--overwrite"]) == status
    assert journey.wanted(0, "torch") in runs
    assert len(runs) == len(set(runs)) * 3 == 72  # the journey's network is one of the table's
