"""watch(): what is recorded is right, and training never notices."""

from __future__ import annotations

import copy
import json
import math
import os
import subprocess
import sys
import textwrap

import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

import normkit.torch as nt  # noqa: E402
from normkit.errors import FileError, ModelError, OptionError  # noqa: E402
from normkit.models.watching import (  # noqa: E402
    JsonLines,
    KerasCallback,
    LayerState,
    LightningCallback,
    Record,
    TensorBoard,
    Terminal,
    read_records,
    watch,
)

nn = torch.nn


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(inplace=True), nn.Dropout(0.2),
        nn.Conv2d(6, 6, 3), nn.GroupNorm(2, 6), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 2),
    )  # fmt: skip


def batch(step, n=8):
    return torch.randn(n, 3, 8, 8, generator=torch.Generator().manual_seed(step))


def train(model, steps, w=None, accumulate=1, optimizer=None, run=None):
    """The same training whoever watches."""
    run = model if run is None else run
    optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    torch.manual_seed(1)
    for step in range(steps):
        for micro in range(accumulate):
            loss = run(batch(step * accumulate + micro)).square().mean()
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if w is not None:
            w.step(loss=loss)
    return {k: v.clone() for k, v in model.state_dict().items()}


class Kept:
    """A sink that keeps records."""

    def __init__(self):
        self.records, self.closed = [], 0

    def write(self, record):
        self.records.append(record)

    def close(self):
        self.closed += 1


def hooks_of(model):
    names = ("_forward_hooks", "_forward_pre_hooks", "_forward_hooks_with_kwargs",
             "_forward_pre_hooks_with_kwargs", "_backward_hooks")  # fmt: skip
    return [len(getattr(m, name)) for m in model.modules() for name in names]


# --- training does not notice ---------------------------------------------------------------------


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_weights_are_the_same_bit_for_bit(every, accumulate):
    alone, watched = network(), network()
    want = train(alone, 6, accumulate=accumulate)
    sink = Kept()
    with watch(watched, every=every, to=[sink]) as w:
        got = train(watched, 6, w, accumulate=accumulate)
    assert all(torch.equal(got[k], want[k]) for k in want)
    assert [r.step for r in sink.records] == list(range(every, 7, every))
    assert sink.closed == 1


def test_fused_models_stay_fused():
    """Unfused they would run on other kernels, with other bits."""
    plain, model = network(), nt.accelerate(network(), example=batch(0), report=None)
    model[2].forward = None  # ReLU is not called by itself
    want = train(nt.accelerate(plain, example=batch(0), report=None), 4)
    with watch(model, every=1) as w:
        got = train(model, 4, w)
    assert all(torch.equal(got[k], want[k]) for k in want)
    assert w.last.layers["1"].drift is not None
    model[1].register_forward_hook(lambda *_: None)  # any other hook may want to see the norm alone
    with pytest.raises(TypeError):
        train(model, 1)


def test_between_records_there_are_no_hooks():
    model = network()
    clean = hooks_of(model)
    with watch(model, every=3) as w:
        seen = []
        for step in range(6):
            seen.append(hooks_of(model) == clean)
            model(batch(step))
            w.step()
        assert seen == [True, True, False, True, True, False]
        w.step()
        w.step()
        assert hooks_of(model) != clean
    assert hooks_of(model) == clean


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_errors_close_everything(error, tmp_path):
    model, sink = network(), Kept()
    clean = hooks_of(model)
    lines = JsonLines(tmp_path / "r.jsonl")

    def training():
        with watch(model, every=1, to=[sink, lines]) as w:
            model(batch(0))
            w.step(loss=1.0)
            raise error

    with pytest.raises(error):
        training()
    assert hooks_of(model) == clean
    assert sink.closed == 1
    assert lines._file.closed
    assert len(read_records(tmp_path / "r.jsonl")) == 1


def test_a_model_can_be_copied_and_saved_while_it_is_heard(tmp_path):
    model = network()
    with watch(model, every=1) as w:
        twin = copy.deepcopy(model)
        torch.save(model, tmp_path / "model.pt")
        twin(batch(0) + 100)  # is not heard
        assert not w._ears[0].heard
        model(batch(0))
        w.step()
    twin(batch(0))


def test_checkpointed_batches_count_once():
    model = network()

    def run(x):
        return torch.utils.checkpoint.checkpoint(model, x, use_reentrant=False)

    sink, plain = Kept(), Kept()
    with watch(model, every=1, to=[sink]) as w:
        train(model, 1, w, run=run)
    other = network()
    with watch(other, every=1, to=[plain]) as w:
        train(other, 1, w)
    assert sink.records[0].layers["1"] == plain.records[0].layers["1"]


def test_autocast_and_scaled_gradients():
    runs = []
    for watched in (False, True):
        model = network()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        scaler = torch.amp.GradScaler("cpu")
        with watch(model, every=1 if watched else 100) as w:
            torch.manual_seed(1)
            for step in range(3):
                with torch.autocast("cpu", torch.bfloat16):
                    loss = model(batch(step)).square().mean()
                scaler.scale(loss).backward()
                scaler.step(optimizer)
                scaler.update()
                optimizer.zero_grad()
                w.step(loss=loss)
        runs.append(copy.deepcopy(model.state_dict()))
    assert all(torch.equal(runs[0][k], runs[1][k]) for k in runs[0])
    assert w.last.layers["1"].drift is not None


def test_compiled_models_are_watched_by_their_weights():
    testing = pytest.importorskip("torch._dynamo.testing", reason="torch.compile is not there")
    runs = []
    for every in (100, 1):
        torch._dynamo.reset()
        counter = testing.CompileCounterWithBackend("eager")
        model = network()
        compiled = torch.compile(model, backend=counter)
        with watch(compiled, every=every) as w:
            runs.append((train(model, 4, w, run=compiled), counter.frame_count))
    assert runs[0][1] == runs[1][1]  # compiled as often
    assert all(torch.equal(runs[0][0][k], runs[1][0][k]) for k in runs[0][0])
    assert w.last.unheard == ("1", "5")
    assert w.last.layers["1"].update > 0
    assert w.last.layers["1"].drift is None


# --- what is recorded -----------------------------------------------------------------------------


def kl(mean1, var1, mean0, var0, eps=1e-5):
    new = torch.distributions.Normal(mean1, (var1 + eps).sqrt())
    old = torch.distributions.Normal(mean0, (var0 + eps).sqrt())
    return torch.distributions.kl_divergence(new, old)


def test_drift_is_the_batch_against_what_was_there_before():
    layer = nn.BatchNorm2d(3).double()
    layer.running_mean.copy_(torch.tensor([1.0, 2, 3]))
    layer.running_var.copy_(torch.tensor([0.5, 1, 2]))
    before = layer.running_mean.clone(), layer.running_var.clone()
    x = torch.randn(16, 3, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with watch(layer, every=1) as w:
        layer(x[:6])
        layer.eval()(x[:1] + 100)  # a validation in between
        layer.train()(x[6:])  # accumulated
        record = w.step()
    state = record.layers[""]
    want = kl(x.mean((0, 2, 3)), x.movedim(1, 0).flatten(1).var(1), *before)
    assert state.drift == pytest.approx(float(want.mean()), rel=1e-9)
    assert state.drift_worst == pytest.approx(float(want.max()), rel=1e-9)
    assert state.channels == 3


def test_chance_is_what_a_healthy_layer_drifts():
    torch.manual_seed(0)
    layer = nn.BatchNorm1d(64, momentum=0.05)
    for _ in range(300):
        layer(torch.randn(64, 64))
    found = []
    with watch(layer, every=1) as w:
        for _ in range(20):
            layer(torch.randn(64, 64))
            state = w.step().layers[""]
            found.append(state.drift / state.chance)
        layer(torch.randn(64, 64) + 1)
        state = w.step().layers[""]
    assert 0.8 < sum(found) / 20 < 1.25
    assert state.drift > 10 * state.chance


def test_updates_since_the_last_record():
    model = nn.Linear(3, 2)
    start = torch.cat([p.detach().flatten().clone() for p in model.parameters()])
    with watch(model, every=2) as w:
        for _ in range(2):
            with torch.no_grad():
                model.weight += 0.25
            record = w.step()
        want = (6 * 0.5**2) ** 0.5 / float(start.norm())
        assert record.layers[""].update == pytest.approx(want, rel=1e-5)
        w.step()
        assert w.step().layers[""].update == 0.0


def test_tied_weights_belong_to_the_first_layer():
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    model[1].weight = model[0].weight
    with watch(model, every=1) as w:
        assert list(w.step().layers) == ["0"]


def test_dead_and_weightless_channels():
    model = nn.Sequential(nn.BatchNorm1d(6), nn.ReLU(inplace=True))
    with torch.no_grad():
        model[0].bias[1:3] = -100.0
        model[0].weight[3] = 1e-5
    with watch(model, every=1) as w:
        model(torch.randn(32, 6))
        state = w.step().layers["0"]
    assert (state.dead, state.zero_gain) == (2, 1)


def test_layers_that_are_not_called_are_named():
    model = nn.ModuleDict({"a": nn.BatchNorm1d(3), "b": nn.BatchNorm1d(3)})
    with watch(model, every=1) as w:
        model["a"](torch.randn(4, 3))
        record = w.step()
    assert record.unheard == ("b",)
    assert record.layers["b"] == LayerState(update=0.0, zero_gain=0, channels=3)


def test_rules_are_asked():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sink = Kept()
    with watch(model, every=2, to=[sink], optimizer=optimizer) as w:
        train(model, 4, w, optimizer=optimizer)
        with torch.no_grad():
            model[1].running_var[2] = math.nan
        w.step()
        w.step()
    rules = [{(n.rule, n.site) for n in r.findings if n.severity == "error"} for r in sink.records]
    assert rules[:2] == [set(), set()]
    assert any(site == "1" for _, site in rules[2])
    with watch(model, every=1, rules=False) as w:
        assert w.step().findings == ()
    with pytest.raises(OptionError, match="stale"):
        watch(model, rules=["stale-statistics"])


def test_scalars_and_the_state_of_a_watch():
    model = nn.Linear(2, 2)
    with watch(model, every=2, start=10) as w:
        assert w.last is None
        loss = model(torch.ones(1, 2)).sum()
        assert w.step(loss=loss) is None
        record = w.step(loss=loss, lr=0.1)
        assert record is w.last
        assert record.step == 12
        assert record.scalars == {"loss": pytest.approx(float(loss.detach())), "lr": 0.1}


@pytest.mark.parametrize("options", [{"every": 0}, {"every": True}, {"every": 1.5}, {"start": -1}])
def test_options_are_checked(options):
    with pytest.raises(OptionError, match="number of steps"):
        watch(nn.Linear(2, 2), **options)


def test_mistakes_are_explained():
    with pytest.raises(ModelError):
        watch("model")
    with pytest.raises(OptionError, match="outside the with block"):
        watch(nn.Linear(2, 2)).step()
    with pytest.raises(OptionError, match="no place for records"), watch(nn.Linear(2, 2), to=3):
        pass


# --- where it goes --------------------------------------------------------------------------------


def test_json_lines_come_back_as_they_were(tmp_path):
    model, sink = network(), Kept()
    path = tmp_path / "deep" / "run.jsonl"
    with watch(model, every=1, to=[JsonLines(path), sink]) as w:
        train(model, 3, w)
        w.step(loss=math.nan, other=-math.inf)
        assert len(read_records(path)) == 4  # on the disk before the end
    *first, last = read_records(path)
    assert first == sink.records[:3]
    assert math.isnan(last.scalars["loss"])
    assert last.scalars["other"] == -math.inf
    for line in path.read_text().splitlines():
        json.loads(line, parse_constant=pytest.fail)


def test_a_crash_costs_the_last_line(tmp_path):
    path = tmp_path / "run.jsonl"
    program = f"""
        import os, torch
        from normkit.models.watching import watch
        net = torch.nn.BatchNorm1d(3)
        with watch(net, every=1, to={str(path)!r}) as w:
            for i in range(5):
                net(torch.randn(4, 3))
                w.step(loss=i)
            os._exit(1)
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(program)], timeout=120, check=False)
    assert [r.step for r in read_records(path)] == [1, 2, 3, 4, 5]
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    with pytest.warns(UserWarning, match=r"run\.jsonl, line 5 is damaged"):
        assert [r.step for r in read_records(path)] == [1, 2, 3, 4]
    # Going on does not spoil the next line.
    model = nn.BatchNorm1d(3)
    with watch(model, every=1, to=path, start=5) as w:
        w.step()
    with pytest.warns(UserWarning, match="line 5 "):
        assert [r.step for r in read_records(path)] == [1, 2, 3, 4, 6]


@pytest.mark.parametrize("content", [b"\x80\x81\n\xff", b'{"a": 1}\n', b"[1]\n", b"1\n"])
def test_other_files_are_refused(content, tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_bytes(content)
    with pytest.raises(FileError, match="holds no records"):
        read_records(path)
    with pytest.raises(FileError, match="There are no records"):
        read_records(tmp_path)


def test_an_empty_file_has_no_records(tmp_path):
    (tmp_path / "records.jsonl").touch()
    assert read_records(tmp_path) == []


def test_places_that_cannot_be_written_to(tmp_path):
    (tmp_path / "file").touch()
    with (
        pytest.raises(FileError, match="cannot be written there"),
        watch(nn.Linear(2, 2), to=tmp_path / "file" / "run.jsonl"),
    ):
        pass


def test_a_sink_that_fails_does_not_end_training():
    class Full(Kept):
        def write(self, record):  # noqa: ARG002
            raise OSError("no space left")

    model, bad, good = nn.Linear(2, 2), Full(), Kept()
    with watch(model, every=1, to=[bad, good]) as w:
        with pytest.warns(UserWarning, match="no more to Full after OSError: no space left"):
            w.step()
        w.step()
    assert len(good.records) == 2


def test_tensorboard_files(tmp_path):
    pytest.importorskip("tensorboard", reason="TensorBoard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    model = network()
    with watch(model, every=2, to=tmp_path / "run") as w:
        train(model, 4, w)
    records = read_records(tmp_path / "run")
    events = EventAccumulator(str(tmp_path / "run")).Reload()
    tags = events.Tags()["scalars"]
    assert {"loss", "drift/1", "update/0", "update/9", "dead/1", "dead/5"} <= set(tags)
    for tag, values in (("loss", [r.scalars["loss"] for r in records]),
                        ("drift/1", [r.layers["1"].drift for r in records])):  # fmt: skip
        found = events.Scalars(tag)
        assert [e.step for e in found] == [2, 4]
        assert [e.value for e in found] == pytest.approx(values)


def test_without_tensorboard_the_extra_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(ModuleNotFoundError, match=r"normkit\[watch\]"):
        TensorBoard(tmp_path)


def example_record():
    layers = {
        "a": LayerState(update=0.1, drift=0.5, chance=0.01, dead=3, zero_gain=0, channels=8),
        "b": LayerState(update=0.2, drift=0.02, chance=0.02, dead=0),
        "c": LayerState(update=0.3),
    }
    return Record(7, 0.0, {"loss": 1.25}, layers)


def test_one_line_where_nobody_watches(capsys):
    terminal = Terminal()
    terminal.write(example_record())
    terminal.close()
    words = "step 7, loss 1.25, largest update 0.3, drift 0.5 at a, 3 dead channels\n"
    assert capsys.readouterr().err == words


def test_a_live_table_on_a_terminal():
    pytest.importorskip("rich", reason="rich is not installed")
    pty = pytest.importorskip("pty", reason="there are no pseudo-terminals")
    program = """
        import torch
        from normkit.models.watching import watch
        net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8))
        with watch(net, every=1) as w:
            for i in range(3):
                net(torch.randn(16, 4))
                w.step(loss=i)
    """
    ours, theirs = pty.openpty()
    env = os.environ | {"TERM": "xterm", "COLUMNS": "100"}
    with subprocess.Popen([sys.executable, "-c", textwrap.dedent(program)],
                          stderr=theirs, env=env) as process:  # fmt: skip
        os.close(theirs)
        shown = b""
        while True:
            try:
                part = os.read(ours, 4096)
            except OSError:  # the other end is closed
                break
            if not part:
                break
            shown += part
        assert process.wait(timeout=120) == 0
    os.close(ours)
    assert b"step 3, loss 2" in shown
    assert b"by chance" in shown


# --- trainers -------------------------------------------------------------------------------------


class Trainer:
    """As Lightning's calls back: every hook by its name, without asking whether it is there."""

    def __init__(self, callback):
        self.callback, self.optimizers = callback, []

    def call(self, hook, *args):
        getattr(self.callback, hook)(self, *args)

    def fit(self, module, steps, fail=False):
        self.call("setup", module, "fit")
        self.call("on_fit_start", module)
        self.optimizers = [torch.optim.SGD(module.parameters(), lr=0.1)]
        self.call("on_train_start", module)
        for i in range(steps):
            self.call("on_train_batch_start", module, None, i)
            loss = module(batch(i)).square().mean()
            loss.backward()
            self.optimizers[0].step()
            self.call("on_train_batch_end", module, {"loss": loss}, None, i)
            if fail:
                self.call("on_exception", module, KeyboardInterrupt())
                return
        self.call("on_fit_end", module)


def test_the_protocol_of_lightning(tmp_path):
    model = network()
    clean = hooks_of(model)
    callback = LightningCallback(every=2, to=tmp_path / "a.jsonl")
    trainer = Trainer(callback)
    trainer.fit(model, 4)
    assert [r.step for r in read_records(tmp_path / "a.jsonl")] == [2, 4]
    assert callback.watch.optimizer is trainer.optimizers[0]
    assert hooks_of(model) == clean
    Trainer(callback).fit(model, 4, fail=True)
    assert hooks_of(model) == clean
    assert callback.watch.steps == 5  # goes on counting
    assert callback.state_dict() == {}
    with pytest.raises(AttributeError):
        callback.unknown  # noqa: B018


def test_the_protocol_of_keras(tmp_path):
    model = network()
    callback = KerasCallback(every=2, to=tmp_path / "a.jsonl")
    callback.set_params({"epochs": 1})
    callback.set_model(model)
    callback.on_train_begin()
    callback.on_epoch_begin(0, {})
    for i in range(4):
        callback.on_train_batch_begin(i)
        model(batch(i))
        callback.on_train_batch_end(i, {"loss": float(i), "accuracy": 0.5})
    callback.on_epoch_end(0, {})
    callback.on_train_end()
    assert [r.scalars for r in read_records(tmp_path / "a.jsonl")] == [
        {"loss": 1.0, "accuracy": 0.5}, {"loss": 3.0, "accuracy": 0.5},
    ]  # fmt: skip


def test_only_the_first_rank_writes(monkeypatch, tmp_path):
    from normkit.models.watching import watcher

    monkeypatch.setattr(watcher, "_is_first", lambda: False)
    model = network()
    clean = hooks_of(model)
    with watch(model, every=1, to=tmp_path / "a.jsonl") as w:
        assert hooks_of(model) == clean
        model(batch(0))
        assert w.step() is None
    assert not (tmp_path / "a.jsonl").exists()


# --- a watch that nobody steps ------------------------------------------------------------------


def test_a_block_without_a_step_says_what_is_missing(tmp_path):
    net = network()
    with (
        pytest.warns(UserWarning, match=r"recorded nothing: call w\.step\(\)"),
        watch(net, every=1),
    ):
        train(net, 2)
    with watch(net, every=50) as w:  # steps, though none that is recorded
        train(net, 2, w)
    with pytest.raises(ZeroDivisionError), watch(net):  # an error says enough by itself
        raise ZeroDivisionError
    callback = LightningCallback(every=1)  # whose steps are not the user's to call
    callback.on_fit_start(None, net)
    callback.on_exception(None, net, RuntimeError())
