"""The benchmark's figures, targets, page, and one tiny run from end to end."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))  # benchmarks/ is not installed

from bench_cases import CALLS, CASES, CHAINS, LAYERS, NETWORKS, Case  # noqa: E402
from benchmarks import (  # noqa: E402
    command,
    driver,
    figures,
    layer_targets,
    machine,
    peers,
    price,
    report,
    suites,
    targets,
    worker,
)

# The worker's measurements


class Recorder(peers.Session):
    """Notes the order of its calls."""

    def __init__(self) -> None:
        super().__init__(CASES[0])
        self.calls: list[str] = []

    def forward(self) -> None:
        self.calls.append("forward")

    def backward(self) -> None:
        self.calls.append("backward")

    def release(self) -> None:
        self.calls.append("release")


def test_a_round_is_forward_backward_release() -> None:
    session = Recorder()
    seconds = worker.timed(session, 2)
    assert session.calls == ["forward", "backward", "release"] * 2
    assert seconds["step"] >= seconds["forward"] + seconds["backward"] > 0


def test_a_round_has_one_uncounted_repetition() -> None:
    session = Recorder()
    worker.one_round(session, 3)
    assert session.calls.count("forward") == 4


class Hoarder(peers.Session):
    """Allocates 32 MiB on the way to an output of 8 MiB."""

    def forward(self) -> None:
        kept = np.ones(32 << 17)
        self.y = kept[: 8 << 17].copy()

    def backward(self) -> None:
        pass

    def gradients(self) -> dict[str, Any]:
        return {"x": None}


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="needs Linux's /proc")
def test_memory_beyond_the_results_is_seen() -> None:
    found = worker.memory(Hoarder(CASES[0]))
    assert found["outputs"] == 8 << 20
    assert found["method"].startswith("VmHWM")
    assert 30 << 20 <= found["beyond"] <= 35 << 20


@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="needs Linux's /proc")
def test_our_own_work_is_not_that_of_others() -> None:
    ours, theirs = machine.Others([]), machine.Others([])
    theirs.ours = []  # as if this process were someone else
    theirs.before = theirs._ticks()
    wall, cpu = time.perf_counter(), time.process_time()
    while time.process_time() < cpu + 0.5:
        pass
    share, everything = ours.share(), theirs.share()
    if share is None or everything is None:
        pytest.skip("this system counts no ticks")
    used = (time.process_time() - cpu) / (time.perf_counter() - wall) / (os.cpu_count() or 1)
    assert everything - share == pytest.approx(used, abs=0.1)


def test_blocks_of_calls_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    now, order = 0.0, list[str]()
    monkeypatch.setattr(price.time, "perf_counter", lambda: now)

    def call(name: str, seconds: float) -> None:
        nonlocal now
        now += seconds * (1 + 0.1 * now)  # the machine becomes slower and slower
        order.append(name)

    found = price.alternated(
        {"nn": lambda: call("nn", 0.01), "normkit": lambda: call("normkit", 0.03)}, 4
    )
    blocks = order[:: price.CALLS]
    assert [name for name in blocks for _ in range(price.CALLS)] == order
    assert blocks[2:] == ["nn", "normkit", "normkit", "nn"] * 2  # after one each to warm up
    assert found["nn"] > 0.01
    assert found["over"] == pytest.approx(found["normkit"] - found["nn"], rel=0.05)


def test_an_unknown_request_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'dance'.*expected prepare"):
        worker.answer(Recorder(), {"do": "dance"})


# Figures


def test_summary() -> None:
    kept = figures.summarise([3.0, 1.0, 2.0, 10.0])
    assert kept == {"median": 2.5, "min": 1.0, "max": 10.0, "n": 4}
    assert figures.spread(kept) == pytest.approx(3.6)
    with pytest.raises(ValueError, match="no samples"):
        figures.summarise([])


def test_geometric_mean() -> None:
    assert figures.geometric_mean([0.5, 2.0]) == pytest.approx(1.0)
    assert figures.geometric_mean([1.0, 2.0, 4.0]) == pytest.approx(2.0)
    with pytest.raises(ValueError, match="positive"):
        figures.geometric_mean([1.0, 0.0])
    with pytest.raises(ValueError, match="no ratios"):
        figures.geometric_mean([])


def test_repetitions_fill_a_round_within_bounds() -> None:
    assert figures.repetitions(0.01, 0.1, least=2) == 10
    assert figures.repetitions(0.5, 0.1, least=2) == 2
    assert figures.repetitions(0.0, 0.1, least=2) == 5000


def test_every_peer_begins_a_round_and_follows_different_ones() -> None:
    names = ["a", "b", "c"]
    orders = [driver._rotated(names, turn) for turn in range(6)]
    assert {order[0] for order in orders} == set(names)
    assert all(sorted(order) == names for order in orders)
    assert len({tuple(order) for order in orders}) == 6


# Targets and the page


def timed_row(case: Case, found: dict[str, Any]) -> dict[str, Any]:
    return driver.describe(case) | {"times": found, "others": 0.0, "skipped": {}}


def price_row(case: Case, over: float) -> dict[str, Any]:
    each = {"nn": 2e-5, "normkit": 2e-5 + over, "over": over}
    found = {name: figures.summarise([value]) for name, value in each.items()}
    both = dict.fromkeys(price.QUANTITIES, found)
    return driver.describe(case) | {"id": f"{case.norm}, train", "price": both, "skipped": {}}


def saved_row(case: Case, lean: int) -> dict[str, Any]:
    kept = {"network": 120_000_000, "swapped": 120_000_000, "accelerated": 110_000_000}
    saved = {peer: {"kept": value} for peer, value in (kept | {"lean": lean}).items()}
    return driver.describe(case) | {"saved": saved, "skipped": {}}


def made_up(eager: float = 4.5, memory: float = 0.8) -> dict[str, Any]:
    """Results of a run in which every step of ours takes a second, forward and backward half."""

    def times(step: float) -> dict[str, Any]:
        half = figures.summarise([step / 2])
        return {"forward": half, "backward": half, "step": figures.summarise([step])}

    costs = {"normkit": 1.0, "numpy": 0.9, "eager": eager, "compile": 2.5, "jax": 2.5}
    rows = []
    for case in CASES:
        found = {peer: times(s) for peer, s in costs.items() if peers.applies(peer, case)}
        if peers.applies("memory", case):
            found["memory"] = times(memory)
        rows.append(timed_row(case, found))
    layered = {"nn": 2.0, "nn-compiled": 1.5, "normkit-layer": 1.0}
    networked = {"network": 4.0, "swapped": 3.0, "accelerated": 2.0, "lean": 2.5}
    beyond = {
        peer: {"beyond": 1_000_000, "outputs": 2 * CASES[1].bytes, "method": "VmHWM"}
        for peer in ("normkit", "numpy")
    }
    names = ("import", "warm step, NumPy", "warm step, PyTorch")
    colds = ("cold step, NumPy", "cold step, PyTorch")
    seconds = dict.fromkeys(names, 0.25) | dict.fromkeys(colds, 12.0)
    return {
        "date": "2026-01-02T03:04:05+00:00",
        "machine": machine.facts(),
        "versions": machine.versions(),
        "commit": "0123456789ab",
        "plan": {"rounds": 1, "round_seconds": 0.1},
        "minutes": 1.0,
        "cases": rows,
        "layers": [timed_row(case, {p: times(s) for p, s in layered.items()}) for case in LAYERS],
        "networks": [
            timed_row(case, {p: times(s) for p, s in networked.items()}) for case in NETWORKS
        ],
        "price": [price_row(case, 5e-6) for case in CALLS],
        "saved": [saved_row(case, 60_000_000) for case in (*NETWORKS, *CHAINS)],
        "memory": [driver.describe(CASES[1]) | {"memory": beyond, "skipped": {}}],
        "startup": {
            "seconds": {name: figures.summarise([value]) for name, value in seconds.items()},
            "skipped": {},
        },
    }


def verdicts(results: dict[str, Any]) -> dict[str, str]:
    return {f"{t.group}: {t.text}": verdict for t, _, verdict in targets.judge(results)}


def test_every_target_is_judged_by_a_whole_run() -> None:
    assert set(verdicts(made_up()).values()) == {"met"}


def test_missed_targets_say_by_how_much() -> None:
    found = verdicts(made_up(eager=2.0, memory=0.5))
    batch = "Batch norm, forward + backward: "
    assert found[batch + "geometric mean over eager, channels first, f32"] == "**missed by 33.3%**"
    assert found[batch + "geometric mean over eager, channels last, f32"] == "met"
    memory = "Batch norm against memory, 25 MB and more: "
    copied = found[memory + "forward against a copy of x, channels last, f32"]
    assert copied == "**missed by 42.9%**"  # 2 where 1.4 is allowed


def test_one_slow_case_is_found() -> None:
    slow = made_up()
    row = next(row for row in slow["cases"] if row["id"] == "rms-8x16-tokens-f32")
    row["times"]["normkit"]["step"]["median"] = 5.0
    judged = {t.text: (m, verdict) for t, m, verdict in targets.judge(slow)}
    measured, verdict = judged["every case of every norm: our time against eager's"]
    assert measured is not None
    assert "rms-8x16-tokens-f32" in measured.note
    assert verdict == "**missed by 1.0%**"


def test_what_was_not_measured_is_not_judged() -> None:
    empty = made_up() | suites.nothing()
    assert set(verdicts(empty).values()) == {"not measured"}
    for name in ("layers", "networks", "price", "saved"):
        del empty[name]  # as in the results from before these parts
    assert set(verdicts(empty).values()) == {"not measured"}
    assert report.PARTS["networks"](empty) == "Not measured by the newest results."


def test_a_slow_layer_is_named() -> None:
    slow = made_up()
    words = "Slower than torch.nn's eager layer by more than 10%: "
    assert report.PARTS["layers"](slow).endswith(words + "none.")
    row = next(row for row in slow["layers"] if row["norm"] == "GroupNorm")
    row["times"]["normkit-layer"]["step"]["median"] = 2.5
    assert report.PARTS["layers"](slow).endswith(words + f"`{row['id']}` (1.25×).")
    found = verdicts(slow)
    (missed,) = [name for name, verdict in found.items() if verdict != "met"]
    assert missed.endswith("every case of GroupNorm: our time against torch.nn's")
    assert found[missed] == "**missed by 13.6%**"


def test_a_dear_call_is_named() -> None:
    dear = made_up()
    assert report.PARTS["price"](dear).endswith("More than 15 µs beyond torch.nn's: none.")
    dear["price"][1] = price_row(CALLS[1], 18e-6)
    text = report.PARTS["price"](dear)
    assert "| LayerNorm, train | 20.0 | 38.0 | 18.0 (18.0 to 18.0) |" in text
    assert text.endswith(": LayerNorm, train, forward (18.0 µs); LayerNorm, train, "
                         "forward + backward (18.0 µs).")  # fmt: skip
    found = verdicts(dear)
    assert found["The price of a call: forward, beyond torch.nn's, every layer"] == (
        "**missed by 20.0%**"
    )


def test_the_worst_lean_chain_is_judged() -> None:
    results = made_up()
    results["saved"][-1] = saved_row(CHAINS[-1], 90_000_000)
    (target,) = (t for t in layer_targets.LAYER_TARGETS if t.group == "Kept for backward")
    measured = target.measure(results)
    assert measured is not None
    assert measured.value == 0.75
    assert CHAINS[-1].id in measured.note
    assert "lean memory | 90.0 | 0.75 |" in report.PARTS["saved"](results)


def test_each_variant_of_a_network_has_its_ratio() -> None:
    rows = report.PARTS["networks"](made_up()).splitlines()
    assert [row.rsplit("|", 2)[1].strip() for row in rows[2:6]] == ["1.00", "1.33", "2.00", "1.60"]


def test_the_page_is_filled_and_the_rest_of_it_kept(tmp_path: Path) -> None:
    page = tmp_path / "benchmarks.md"
    page.write_text(report.PAGE.read_text())
    report.fill(made_up(), page)
    once = page.read_text()
    report.fill(made_up(), page)
    assert page.read_text() == once
    assert "Nothing has been measured yet" not in once
    assert "commit 0123456789ab" in once
    assert "| `batch-8x16-first-f32` | 0.000512 | 4500.0 (0%) | 1000.0 (0%) | 4.50 |" in once
    assert "## How it is measured" in once
    table = once.split("<!-- targets -->")[1].split("<!-- /targets -->")[0]
    assert table.count("| met |") == len(targets.TARGETS)


def test_cases_that_shared_the_machine_are_named() -> None:
    results = made_up()
    assert "poor figures" not in report.facts(results)
    results["cases"][3]["others"] = 0.4
    assert f"`{CASES[3].id}` (40%)" in report.facts(results)


def test_a_page_without_marks_is_refused(tmp_path: Path) -> None:
    page = tmp_path / "benchmarks.md"
    page.write_text("nothing here")
    with pytest.raises(ValueError, match="has no marks <!-- facts -->"):
        report.fill(made_up(), page)


def test_the_newest_results_are_chosen_by_their_date(tmp_path: Path) -> None:
    for name, date in (("z.json", "2026-01-01"), ("a.json", "2026-02-01")):
        (tmp_path / name).write_text(json.dumps({"date": date}))
    assert report.newest(tmp_path).name == "a.json"


# From end to end


@pytest.mark.skipif(not importlib.util.find_spec("torch"), reason="needs PyTorch")
def test_a_peer_that_fails_is_skipped_with_its_reason() -> None:
    case = Case("batch", (8, 16), activation="no_such_activation")
    row = driver.measure(case, ["eager"], driver.Plan(rounds=1, round_seconds=0.001, least=1))
    assert row["times"] == {}
    assert "no_such_activation" in row["skipped"]["eager"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--peer", "normkit,tensorflow"], "tensorflow"),
        (["--case", "no-such-case"], "no-such-case"),
        (["--rounds", "0"], "--rounds 0"),
        (["--suite", "layers,weather"], "weather"),
    ],
)
def test_unknown_arguments_are_refused(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        command.arguments(arguments)
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("", list(suites.SUITES)),
        ("--quick", list(suites.SUITES)),
        ("--peer eager", ["cases"]),
        ("--case 8x64", ["cases", "layers"]),
        ("--suite price,layers", ["price", "layers"]),
    ],
)
def test_the_parts_that_a_run_measures(line: str, expected: list[str]) -> None:
    assert command.chosen_suites(command.arguments(line.split())) == expected


@pytest.mark.skipif(not importlib.util.find_spec("torch"), reason="needs PyTorch")
def test_the_price_of_a_call_from_end_to_end() -> None:
    row = driver.price_of_call(CALLS[0], "eval", processes=1, blocks=2)
    assert (row["id"], row["skipped"]) == ("BatchNorm1d (8, 16), eval", {})
    for quantity in price.QUANTITIES:
        found = row["price"][quantity]
        assert 0 < found["nn"]["median"] < 0.1
        assert 0 < found["normkit"]["median"] < 0.1


@pytest.mark.skipif(not importlib.util.find_spec("torch"), reason="needs PyTorch")
def test_a_tiny_run(tmp_path: Path) -> None:
    out = tmp_path / "kept" / "results.json"
    name = "batch-8x16-first-f32"
    line = f"--quick --case {name} --peer normkit,eager --rounds 2 --out {out}"
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "run.py"), *line.split()],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    kept = json.loads(out.read_text())
    (row,) = kept["cases"]
    assert (row["id"], row["skipped"]) == (name, {})
    for peer in ("normkit", "eager"):
        for quantity in driver.QUANTITIES:
            summary = row["times"][peer][quantity]
            assert summary["n"] == 2
            assert 0 < summary["min"] <= summary["median"] <= summary["max"] < 1
    assert kept["machine"]["threads"] == 2
    assert kept["versions"]["torch"] == importlib.metadata.version("torch")
    assert name in done.stdout
    assert "every case of every norm" in done.stdout
