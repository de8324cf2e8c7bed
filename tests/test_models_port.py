"""Weights across frameworks: the value, conventions, single layers, and what is refused."""

from __future__ import annotations

import dataclasses
import re

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

from torch import nn  # noqa: E402

import normkit.torch as nt  # noqa: E402
from normkit.errors import ModelError, OptionError  # noqa: E402
from normkit.models import NormWeights, convert, port  # noqa: E402
from normkit.models.porting.conventions import CONVENTIONS, adapt, differences  # noqa: E402
from normkit.models.porting.frameworks import FRAMEWORKS  # noqa: E402

LIBRARIES = {
    "torch": "torch", "keras": "keras", "flax": "flax", "linen": "flax", "equinox": "equinox",
    "onnx": "onnx",
}  # fmt: skip


def need(framework):
    library = LIBRARIES[framework]
    return pytest.importorskip(library, reason=f"{library} is not installed")


def drawn(module, seed=0):
    """The module with weights and running statistics unlike those of a new one."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in module.state_dict().items():
        if value.is_floating_point():
            low = 0.5 if "var" in name or "weight" in name else -1.0
            value.copy_(low + torch.rand(value.shape, generator=generator) * 1.5)
    return module.eval()


def ported(layer, target, **options):
    lines = []
    return port(layer, target, report=lines.append, **options), lines


def batch_weights(**changes):
    rng = np.random.default_rng(0)
    held = {
        "gamma": rng.uniform(0.5, 2, 3), "beta": rng.normal(size=3), "mean": rng.normal(size=3),
        "var": rng.uniform(0.5, 2, 3),
    }  # fmt: skip
    rest = {"keep": 0.9, "variance": "unbiased", "framework": "torch"}
    return NormWeights("batch", (3,), 1e-5, **{**held, **rest, **changes})


def small(affine=True):
    return drawn(
        nn.Sequential(
            nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, affine=affine), nn.Conv2d(4, 6, 1),
            nn.GroupNorm(2, 6), nn.Flatten(), nn.LayerNorm(6 * 4),
        )
    )  # fmt: skip


# -- the value -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"eps": float("nan")}, "eps nan"),
        ({"eps": -1.0}, "eps -1.0"),
        ({"kind": "power"}, "kind 'power'"),
        ({"shape": ()}, r"shape \(\)"),
        ({"shape": (0,)}, r"shape \(0,\)"),
        ({"gamma": np.ones(4)}, r"gamma of shape \(4,\)"),
        ({"mean": np.array([0.0, np.inf, 0.0])}, "mean with NaN or infinity"),
        ({"var": np.array([1.0, -1.0, 1.0])}, "a negative variance"),
        ({"var": None}, "no running statistics"),
        ({"keep": 1.5}, "weight 1.5 of the old"),
        ({"variance": None}, "variance None"),
        ({"kind": "group", "groups": 2}, "groups 2"),
    ],
)
def test_a_value_says_what_is_wrong_with_it(changes, said):
    with pytest.raises(ModelError, match=said):
        dataclasses.replace(batch_weights(name="bn1"), **changes)


def test_a_value_is_a_copy_that_cannot_change():
    gamma = np.ones(3)
    weights = batch_weights(gamma=gamma)
    gamma[:] = 5
    assert (weights.gamma == 1).all()
    with pytest.raises(ValueError, match="read-only"):
        weights.gamma[0] = 2


def test_narrow_weights_are_widened_and_say_so():
    layer = nn.LayerNorm(4).bfloat16()
    weights = FRAMEWORKS["torch"].read(layer)
    assert weights.dtype == np.float32
    half = NormWeights("rms", (2,), 1e-6, np.ones(2, np.float16))
    assert half.notes == ("gamma of float16 widened to float32",)


@pytest.mark.parametrize("elements", [1, 0, True, 2.0])
def test_batch_elements_have_to_be_a_count(elements):
    with pytest.raises(OptionError, match="batch_elements"):
        port(nn.BatchNorm1d(2), "torch", batch_elements=elements, report=None)


def test_correction_goes_both_ways():
    before = batch_weights()
    there = before.corrected("biased", 10)
    np.testing.assert_allclose(there.var, before.var * 0.9)
    back = there.corrected("unbiased", 10)
    np.testing.assert_allclose(back.var, before.var)
    assert before.corrected("unbiased", 10) is before


# -- conventions -----------------------------------------------------------------------------------


@pytest.mark.parametrize("framework", CONVENTIONS)
def test_momentum_in_the_words_of_a_framework(framework):
    row = CONVENTIONS[framework]
    wanted = 0.01 if framework == "torch" else 0.99
    assert row.momentum_of(0.99) == wanted
    assert row.momentum_of(None) is None


@pytest.mark.parametrize("target", CONVENTIONS)
@pytest.mark.parametrize("has", [(False, False), (True, False), (False, True), (True, True)])
@pytest.mark.parametrize("kind", ["batch", "layer", "group", "instance"])
def test_missing_affine_is_filled_in_with_what_changes_nothing(kind, has, target):
    rest = dataclasses.asdict(batch_weights())
    weights = NormWeights(**{
        **rest, "kind": kind, "groups": 3 if kind == "group" else None,
        "gamma": rest["gamma"] if has[0] else None, "beta": rest["beta"] if has[1] else None,
    })  # fmt: skip
    after = adapt(weights, target)
    held = (after.gamma is not None, after.beta is not None)
    assert held in CONVENTIONS[target].affine[kind]
    assert held[0] >= has[0]
    assert held[1] >= has[1]
    if held[0] and not has[0]:
        assert (after.gamma == 1).all()
        assert "gamma of 1 filled in" in after.notes
    if held[1] and not has[1]:
        assert (after.beta == 0).all()
        assert "beta of 0 filled in" in after.notes
    # nothing more than is needed
    others = [
        pair for pair in CONVENTIONS[target].affine[kind] if pair >= has and sum(pair) < sum(held)
    ]
    assert not [pair for pair in others if pair[0] >= has[0] and pair[1] >= has[1]]


def test_a_beta_that_a_target_lacks_is_left_away_only_where_it_is_zero():
    biased = NormWeights("rms", (2,), 1e-6, np.ones(2), np.zeros(2), framework="equinox")
    after = adapt(biased, "torch")
    assert after.beta is None
    assert "all zero" in after.notes[0]
    with pytest.raises(ModelError, match="a beta that is not zero"):
        adapt(dataclasses.replace(biased, beta=np.array([0.0, 1e-9])), "torch")


def test_differences_name_what_differs_and_nothing_else():
    torch_like = batch_weights()
    assert differences(torch_like, adapt(torch_like, "torch"), "torch") == ()
    found = differences(torch_like, adapt(torch_like, "keras", dims=2), "keras")
    words = " | ".join(found)
    assert "Keras's default is 0.001" in words
    assert "momentum weighs the new statistics in PyTorch, the old ones in Keras" in words
    assert "PyTorch averages unbiased variances of batches, Keras biased ones" in words
    assert "channels come first in PyTorch, last in Keras" in words
    assert len(found) == 4
    corrected = adapt(torch_like, "keras", dims=0, batch_elements=8)
    assert not [n for n in differences(torch_like, corrected, "keras") if "as it is" in n]
    assert any("made biased for batches of 8 elements" in n for n in corrected.notes)


# -- single layers ---------------------------------------------------------------------------------


@pytest.mark.parametrize("target", LIBRARIES)
def test_a_layer_there_and_back_is_the_same(target):
    need(target)
    layer = drawn(nn.BatchNorm2d(3, eps=2e-4, momentum=0.02))
    there, _ = ported(layer, target)
    back, _ = ported(there, "torch", dims=2)
    assert type(back) is nn.BatchNorm2d
    assert (back.eps, back.momentum) == (layer.eps, layer.momentum)
    for name, value in layer.state_dict().items():
        if value.is_floating_point():
            torch.testing.assert_close(back.state_dict()[name], value, rtol=0, atol=0)
    assert not back.training


def test_float64_stays_where_a_framework_has_it():
    layer = drawn(nn.BatchNorm1d(3).double())
    back, _ = ported(layer, "torch")
    assert back.weight.dtype is torch.float64
    need("flax")
    there, lines = ported(layer, "flax")
    assert any("float64 rounded to float32" in line for line in lines)
    assert str(there.scale[...].dtype) == "float32"


def test_the_rank_has_to_be_known_where_a_layer_is_made_for_one():
    nnx = need("flax") and pytest.importorskip("flax.nnx")
    layer = nnx.BatchNorm(3, rngs=nnx.Rngs(0))
    with pytest.raises(OptionError, match="dims=2 for images"):
        port(layer, "torch", report=None)
    assert type(ported(layer, "torch", dims=3)[0]) is nn.BatchNorm3d
    assert type(ported(layer, "torch", dims=0)[0]) is nn.BatchNorm1d


def test_channels_lie_where_the_target_has_them_or_where_one_asks():
    need("keras")
    layer = drawn(nn.BatchNorm2d(3))
    assert ported(layer, "keras")[0].axis == -1
    first, lines = ported(layer, "keras", channels="first")
    assert first.axis == 1
    assert not [line for line in lines if "channels come" in line]
    with pytest.raises(OptionError, match="PyTorch has the channels first"):
        port(layer, "torch", channels="last", report=None)
    with pytest.raises(OptionError, match="channels="):
        port(layer, "keras", channels="middle", report=None)


def test_channels_are_asked_of_those_that_have_them():
    need("keras")
    got = port(nn.Sequential(nn.BatchNorm2d(3), nn.LayerNorm(3)), "keras", channels="first")
    assert [w.channels for w in got.layers.values()] == ["first", None]


def test_a_rank_that_contradicts_the_layer_is_refused():
    need("keras")
    with pytest.raises(OptionError, match=r"dims=1, expected dims=2"):
        port(nn.BatchNorm2d(3), "keras", dims=1, report=None)
    assert ported(nn.BatchNorm1d(3), "keras", dims=0)[0].input_spec.ndim == 2
    assert ported(nn.BatchNorm1d(3), "keras")[0].input_spec.ndim == 3


def test_batch_elements_correct_the_running_variance():
    need("keras")
    layer = drawn(nn.BatchNorm1d(3))
    there, lines = ported(layer, "keras", dims=0, batch_elements=16)
    var = np.asarray(there.moving_variance)
    np.testing.assert_allclose(var, layer.running_var.numpy() * 15 / 16, rtol=1e-6)
    assert any("made biased for batches of 16" in line for line in lines)


@pytest.mark.parametrize("target", LIBRARIES)
def test_synchronized_layers_are_batch_norms_elsewhere(target):
    need(target)
    layer = drawn(nn.SyncBatchNorm(3))
    there, lines = ported(layer, target, dims=2)
    assert isinstance(there, nn.SyncBatchNorm) == (target == "torch")
    assert any("synchronized over devices" in line for line in lines) == (target != "torch")


def test_layers_for_several_devices_are_run_on_one():
    nnx = pytest.importorskip("flax.nnx", reason="Flax is not installed")
    _, lines = ported(nnx.BatchNorm(3, axis_name="i", rngs=nnx.Rngs(0)), "torch", dims=2)
    assert any("axis_name='i' stays in Flax" in line for line in lines)
    eqx = pytest.importorskip("equinox", reason="Equinox is not installed")
    pair = eqx.nn.make_with_state(eqx.nn.BatchNorm)(3, ("batch", "i"), mode="batch")
    _, lines = ported(pair, "torch", dims=2)
    assert any("axis_name=('batch', 'i') stays in Equinox" in line for line in lines)


def test_an_eps_left_to_the_dtype_is_written_down():
    there, lines = ported(drawn(nn.RMSNorm(4)), "torch")
    assert there.eps == torch.finfo(torch.float32).eps
    assert any("left to the dtype" in line for line in lines)


@pytest.mark.parametrize(
    ("layer", "said"),
    [
        (nt.BatchNorm2d(3, ghost=4), "ghost=4"),
        (nt.BatchNorm2d(3, renorm=True), "renorm=RenormSchedule"),
        (nt.BatchNorm2d(3, mean_only=True), "mean_only=True"),
        (nt.BatchNorm2d(3, running="population"), "running='population'"),
        (nt.BatchNorm2d(3, domains=2), "domains=2"),
        (nt.AdaptiveBatchNorm2d(3), "AdaptiveBatchNorm2d"),
        (nt.SplitBatchNorm2d(3, 2), "SplitBatchNorm2d"),
        (nn.BatchNorm2d(3, momentum=None), "momentum=None"),
        (nn.BatchNorm2d(3, track_running_stats=False), "without running statistics"),
        (nn.InstanceNorm2d(3, track_running_stats=True), "instance norm with running statistics"),
        (nt.beyond.FilterResponseNorm(3), "no norm over a set of elements"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_others_lack_is_refused_by_name(layer, said):
    with pytest.raises(ModelError, match=re.escape(said)):
        port(layer, "onnx", report=None)


def test_the_remedy_for_an_option_works():
    net = nn.Sequential(drawn(nt.BatchNorm2d(3, ghost=4)))
    plain = convert(net, "batch", report=None)
    need("onnx")
    assert len(port(plain, "onnx").layers) == 1


@pytest.mark.parametrize("what", [3, None, object(), [], nn.Linear(2, 2)])
def test_what_is_no_layer_is_refused(what):
    with pytest.raises(ModelError, match=r"neither a layer nor a model|nothing to port"):
        port(what, "torch", report=None)


def test_unknown_frameworks_are_listed():
    with pytest.raises(OptionError, match="'torch', 'keras', 'flax', 'equinox', 'onnx', 'linen'"):
        port(nn.BatchNorm1d(2), "tensorflow", report=None)
