"""The comparison that closes a port: it can fail, raises no false alarm, and says what ran."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import subprocess
import sys

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

from torch import nn  # noqa: E402

from normkit.errors import ParityError  # noqa: E402
from normkit.models import NormWeights, port  # noqa: E402
from normkit.models.porting.conventions import adapt  # noqa: E402
from normkit.models.porting.frameworks import FRAMEWORKS  # noqa: E402
from normkit.models.porting.parity import compare  # noqa: E402
from test_models_port import LIBRARIES, batch_weights, drawn, need, ported  # noqa: E402


class Doubling(nn.BatchNorm2d):
    """Says that it is a batch norm, and is not."""

    def forward(self, x):
        return 2 * super().forward(x)


class Forgetful(nn.BatchNorm2d):
    """Normalizes as it should, and moves its statistics otherwise."""

    def forward(self, x):
        before = self.running_var.clone()
        y = super().forward(x)
        self.running_var.copy_(before)
        return y


@pytest.mark.parametrize(("kind", "where"), [(Doubling, "inference"), (Forgetful, "training")])
def test_a_layer_that_computes_something_else_is_found_out(kind, where, tmp_path):
    with pytest.raises(ParityError, match=f"not compute the same in {where}"):
        port(nn.Sequential(drawn(kind(3))), "torch")
    target = nn.Sequential(kind(3))
    before = {name: value.clone() for name, value in target.state_dict().items()}
    with pytest.raises(ParityError, match=f"not compute the same in {where}"):
        port(nn.Sequential(drawn(nn.BatchNorm2d(3, eps=0.5))), "torch").into(target)
    for name, value in target.state_dict().items():
        assert torch.equal(value, before[name])
    assert target[0].eps == 1e-5


class Conditional(nn.BatchNorm2d):
    """Wants more than an input."""

    def forward(self, x, label):
        return super().forward(x + label)


def test_a_layer_that_cannot_be_run_says_why():
    with pytest.raises(ParityError, match=r"cannot be run \(bn\).*label"):
        port(nn.ModuleDict({"bn": drawn(Conditional(3))}), "torch")


@pytest.mark.parametrize("target", LIBRARIES)
def test_statistics_that_never_move_are_refused_only_where_they_are_divided_by(target):
    need(target)
    net = nn.Sequential(drawn(nn.BatchNorm2d(3, momentum=0.0)), drawn(nn.BatchNorm2d(3)))
    got = port(net, target, on_refused="skip")
    if target == "equinox":
        assert list(got.layers) == ["1"]
        assert "never move" in got.refused["0"]
        return
    assert got.layers["0"].keep == 1.0
    assert got.ported[0].parity.training < 1e-5


@pytest.mark.parametrize(
    "wrong",
    [
        {"eps": 1e-3},
        {"keep": 0.1},
        {"variance": "biased"},
        {"gamma": np.ones(3)},
        {"beta": None},
        {"mean": np.zeros(3)},
        {"var": np.ones(3)},
    ],
    ids=lambda value: next(iter(value)),
)
def test_every_wrong_convention_fails_the_comparison(wrong):
    """The comparison can fail: each of these is a slip that a port could make."""
    there, weights = FRAMEWORKS["torch"], batch_weights(dims=2)
    layer = there.write(weights)
    assert compare(there.side(layer, weights), there.side(layer, weights), 2).training < 1e-12
    slip = dataclasses.replace(weights, **wrong)
    with pytest.raises(ParityError):
        compare(there.side(layer, slip), there.side(layer, slip), 2)


@pytest.mark.parametrize("kind", ["layer", "rms", "group", "instance"])
def test_a_wrong_eps_fails_the_comparison_of_every_kind(kind):
    groups = {"groups": 2} if kind == "group" else {}
    weights = NormWeights(kind, (4,), 1e-6, np.ones(4), framework="torch", dims=2, **groups)
    there = FRAMEWORKS["torch"]
    layer = there.write(adapt(weights, "torch"))
    dims = 0 if kind in ("layer", "rms") else 2
    good = there.side(layer, weights)
    assert compare(good, good, dims).inference < 1e-9
    slip = there.side(layer, dataclasses.replace(weights, eps=1e-5))
    with pytest.raises(ParityError):
        compare(slip, slip, dims)


@pytest.mark.parametrize("far", [0.0, 30.0, 1e4, 1e6])
@pytest.mark.parametrize("target", LIBRARIES)
def test_running_means_far_from_zero_raise_no_false_alarm(target, far):
    need(target)
    layer = drawn(nn.BatchNorm2d(3))
    layer.running_mean.add_(far)
    there, _ = ported(layer, target)
    back, _ = ported(there, "torch", dims=2)
    assert torch.equal(back.running_mean, layer.running_mean)


@pytest.mark.parametrize("size", [1e-12, 1e-4, 1e8])
@pytest.mark.parametrize("target", LIBRARIES)
def test_variances_of_any_size_raise_no_false_alarm(target, size):
    need(target)
    layer = drawn(nn.BatchNorm2d(3))
    layer.running_var.mul_(size)
    back, _ = ported(ported(layer, target)[0], "torch", dims=2)
    assert torch.equal(back.running_var, layer.running_var)


@pytest.mark.parametrize("far", [0.0, 1e6])
def test_a_mean_far_out_does_not_hide_a_wrong_layer_in_float32(far):
    keras = need("keras")

    class Scaled(keras.layers.BatchNormalization):
        def call(self, inputs, training=None, mask=None):
            return 1.3 * super().call(inputs, training=training, mask=mask)

    for wrong in (keras.layers.BatchNormalization, Scaled):
        layer = wrong(name="bn")
        layer.build((None, 5, 5, 3))
        layer.moving_mean.assign([far, 0.1, -0.2])
        if wrong is Scaled:
            with pytest.raises(ParityError, match="not compute the same in inference"):
                port(layer, "torch", report=None)
        else:
            port(layer, "torch", report=None)


@pytest.mark.parametrize("kind", ["group", "instance", "layer"])
@pytest.mark.parametrize("channels", [1, 2, 4, 6, 48])
@pytest.mark.parametrize("dims", [0, 1])
def test_norms_over_few_elements_raise_no_false_alarm(kind, channels, dims):
    keras = need("keras")
    rng = np.random.default_rng(channels)
    shape = (None, *[None] * dims, channels)
    for groups in (g for g in range(1, channels + 1) if channels % g == 0):
        if kind == "layer":
            layer = keras.layers.LayerNormalization(epsilon=1e-6)
        else:
            layer = keras.layers.GroupNormalization(-1 if kind == "instance" else groups)
        layer.build(shape)
        layer.set_weights([rng.uniform(0.5, 2, channels), rng.normal(size=channels)])
        port(layer, "keras", report=None)
        port(layer, "linen", report=None)


def test_what_is_not_run_is_said_and_nothing_is_called_agreement(monkeypatch):
    why = "Keras is to run on tensorflow, which is not installed; set KERAS_BACKEND=torch"
    keras = FRAMEWORKS["keras"]
    monkeypatch.setattr(
        type(keras), "write", lambda *_: (_ for _ in ()).throw(ModuleNotFoundError(why))
    )
    net = nn.Sequential(drawn(nn.BatchNorm2d(3)))
    got = port(net, "keras")
    assert f"NOT run in Keras: {why}" in str(got)
    assert "agrees with the formula to" in str(got)
    assert got.to_dict()["layers"][0]["not_run"] == {"Keras": why}
    nothing = port(net.state_dict(), "keras", eps=1e-5)
    assert "nothing was compared" in str(nothing)
    assert " agree" not in str(nothing)
    assert nothing.to_dict()["layers"][0]["inference"] is None
    with pytest.raises(ModuleNotFoundError, match="set KERAS_BACKEND"):
        port(net[0], "keras", report=None)


@pytest.mark.parametrize("backend", [None, "tensorflow"])
def test_keras_without_tensorflow_runs_on_pytorch_unless_told_otherwise(backend):
    need("keras")
    if importlib.util.find_spec("tensorflow") is not None:
        pytest.skip("TensorFlow is installed")
    code = (
        "from torch import nn\nfrom normkit.models import port\n"
        "print(port(nn.Sequential(nn.BatchNorm1d(3)), 'keras'))"
    )
    asked = {} if backend is None else {"KERAS_BACKEND": backend}
    rest = {name: value for name, value in os.environ.items() if name != "KERAS_BACKEND"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=300,
        env={**rest, **asked},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    said = "on torch agree to" if backend is None else "NOT run in Keras: Keras is to run on tenso"
    assert said in done.stdout


def test_a_missing_framework_is_said(monkeypatch):
    def missing(self):
        raise ModuleNotFoundError("flax is not installed", name="flax")

    flax = FRAMEWORKS["flax"]
    monkeypatch.setattr(type(flax), "version", missing)
    monkeypatch.setattr(type(flax), "write", lambda self, _: missing(self))
    got = port(nn.Sequential(drawn(nn.BatchNorm2d(3))), "flax")
    assert "NOT run in Flax NNX: flax is not installed" in str(got)
    with pytest.raises(ModuleNotFoundError):
        port(drawn(nn.BatchNorm2d(3)), "flax", report=None)
