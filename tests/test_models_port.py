"""Weights across frameworks: layers, models, what is refused; nothing wrong gets through."""

from __future__ import annotations

import dataclasses
import re

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

from torch import nn  # noqa: E402

import normkit.torch as nt  # noqa: E402
from normkit.errors import FileError, ModelError, OptionError, ParityError  # noqa: E402
from normkit.models import NormWeights, convert, port  # noqa: E402
from normkit.models.porting.conventions import CONVENTIONS, adapt, differences  # noqa: E402
from normkit.models.porting.frameworks import FRAMEWORKS, owner  # noqa: E402
from normkit.models.porting.matching import matched  # noqa: E402
from normkit.models.porting.parity import compare  # noqa: E402

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
def test_momentum_goes_there_and_back(framework):
    row = CONVENTIONS[framework]
    assert row.keep_of(row.momentum_of(0.99)) == 0.99
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


def test_synchronized_layers_stay_in_pytorch():
    layer = drawn(nn.SyncBatchNorm(3))
    assert type(ported(layer, "torch")[0]) is nn.SyncBatchNorm
    with pytest.raises(ModelError, match="synchronized statistics"):
        port(layer, "onnx", report=None)


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


# -- other frameworks' layers ----------------------------------------------------------------------


def test_flax_axes_and_devices_are_refused():
    nnx = pytest.importorskip("flax.nnx", reason="Flax is not installed")
    rngs = nnx.Rngs(0)
    for layer, said in (
        (nnx.BatchNorm(3, axis=2, rngs=rngs), "axis=2"),
        (nnx.LayerNorm(3, feature_axes=1, reduction_axes=1, rngs=rngs), "feature_axes"),
        (nnx.LayerNorm(3, reduction_axes=(-2, -1), rngs=rngs), "reduction_axes"),
        (nnx.LayerNorm(3, axis_name="i", rngs=rngs), "axis_name='i'"),
    ):
        with pytest.raises(ModelError, match=said):
            port(layer, "torch", dims=2, report=None)


def test_keras_options_and_axes_are_refused():
    keras = need("keras")
    layers = keras.layers
    for layer, shape, said in (
        (layers.BatchNormalization(renorm=True), (None, 4), "renorm=True"),
        (layers.LayerNormalization(axis=1), (None, 4, 5), "not the last"),
        (layers.BatchNormalization(axis=2), (None, 4, 5, 6), "channels at axis 2"),
        (layers.UnitNormalization(), (None, 4), "UnitNormalization"),
    ):
        layer.build(shape)
        with pytest.raises(ModelError, match=said):
            port(layer, "torch", report=None)
    with pytest.raises(ModelError, match="not built"):
        port(layers.BatchNormalization(), "torch", report=None)


def test_normkits_keras_layers_are_keras_layers():
    need("keras")
    ours = pytest.importorskip("normkit.keras", reason="normkit.keras is not there")
    layer = ours.BatchNormalization()
    layer.build((None, 4, 3))
    assert type(ported(layer, "torch")[0]) is nn.BatchNorm1d
    layer = ours.InstanceNormalization()
    layer.build((None, 4, 5, 3))
    assert owner(layer).name == "keras"
    there, _ = ported(layer, "torch")
    assert isinstance(there, nn.GroupNorm | nn.InstanceNorm2d)
    layer = ours.BatchNormalization(ghost=4)
    layer.build((None, 3))
    with pytest.raises(ModelError, match="ghost=4"):
        port(layer, "torch", report=None)


def test_normkits_jax_layers_are_flax_and_equinox_layers():
    nnx = pytest.importorskip("flax.nnx", reason="Flax is not installed")
    eqx = pytest.importorskip("equinox", reason="Equinox is not installed")
    from normkit.jax import equinox as ours_eqx
    from normkit.jax import nnx as ours

    there, _ = ported(ours.BatchNorm(3, rngs=nnx.Rngs(0)), "torch", dims=2)
    assert there.momentum == 0.01
    pair = eqx.nn.make_with_state(ours_eqx.BatchNorm)(3, "batch", mode="batch")
    assert ported(pair, "torch", dims=2)[0].eps == 1e-5


def test_equinox_batch_norms_come_with_their_state():
    eqx = pytest.importorskip("equinox", reason="Equinox is not installed")
    layer, state = eqx.nn.make_with_state(eqx.nn.BatchNorm)(3, "batch", mode="ema")
    with pytest.raises(ModelError, match=r"\(module, state\)"):
        port(layer, "torch", dims=2, report=None)
    with pytest.raises(ModelError, match="seen no batch"):
        port((layer, state), "torch", dims=2, report=None)


@pytest.mark.parametrize("batches", [0, 1, 5, 600, 5000])
def test_equinox_statistics_are_debiased_once(batches):
    eqx = pytest.importorskip("equinox", reason="Equinox is not installed")
    jnp = pytest.importorskip("jax.numpy")
    layer, state = eqx.nn.make_with_state(eqx.nn.BatchNorm)(2, "batch", mode="batch")
    hidden = (jnp.array([0.02, 0.3]), jnp.array([0.01, 0.4]))
    state = state.set(layer.batch_state_index, hidden)
    state = state.set(layer.batch_counter, state.get(layer.batch_counter) + batches)
    there, lines = ported((layer, state), "torch", dims=2)
    scale = 1.0 if batches == 0 else 1 - 0.99**batches
    np.testing.assert_allclose(there.running_mean, np.asarray(hidden[0]) / scale, rtol=1e-6)
    np.testing.assert_allclose(there.running_var, np.asarray(hidden[1]) / scale, rtol=1e-6)
    assert any("zero-debiased" in line for line in lines) == (batches < 5000)


def test_a_new_equinox_layer_goes_on_averaging_as_others_do():
    """Its counter stands where debiasing has ended: else the next batch would count for all."""
    need("equinox")
    jax = pytest.importorskip("jax")
    layer = drawn(nn.BatchNorm1d(2, momentum=0.3))
    (module, state), _ = ported(layer, "equinox", dims=0)
    x = np.random.default_rng(0).normal(3, 2, size=(16, 2)).astype(np.float32)
    _, after = jax.vmap(
        lambda one: module(one, state, inference=False), axis_name="batch", out_axes=(0, None)
    )(x)
    mean, _ = after.get(module.batch_state_index)
    layer.train()(torch.from_numpy(x))
    np.testing.assert_allclose(mean, layer.running_mean, rtol=1e-5)


def test_linen_variables_do_not_say_eps():
    linen = pytest.importorskip("flax.linen", reason="Flax is not installed")
    jax = pytest.importorskip("jax")

    class Net(linen.Module):
        @linen.compact
        def __call__(self, x):
            x = linen.BatchNorm(use_running_average=True)(linen.Dense(3)(x))
            return linen.LayerNorm()(x)

    variables = Net().init(jax.random.key(0), np.ones((2, 4), np.float32))
    with pytest.raises(ModelError, match="does not say eps"):
        port(variables, "torch")
    got = port(variables, "torch", eps=1e-5)
    assert list(got.layers) == ["BatchNorm_0", "LayerNorm_0"]
    assert any("momentum is not in the weights" in note for note in got.notes())
    net = nn.ModuleDict({"BatchNorm_0": drawn(nn.BatchNorm1d(3)), "LayerNorm_0": nn.LayerNorm(3)})
    net["BatchNorm_0"].momentum = 0.37
    got.into(net)
    assert net["BatchNorm_0"].momentum == 0.37  # which nothing said
    assert (net["BatchNorm_0"].running_var == 1).all()
    back = port(drawn(net, 3), "linen").into(variables)
    np.testing.assert_array_equal(
        back["batch_stats"]["BatchNorm_0"]["var"], net["BatchNorm_0"].running_var
    )
    assert float(variables["batch_stats"]["BatchNorm_0"]["var"][0]) == 1.0  # not changed


# -- models ----------------------------------------------------------------------------------------


def small(affine=True):
    return drawn(
        nn.Sequential(
            nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, affine=affine), nn.Conv2d(4, 6, 1),
            nn.GroupNorm(2, 6), nn.Flatten(), nn.LayerNorm(6 * 4),
        )
    )  # fmt: skip


def test_a_model_gives_its_layers_by_name():
    got = port(small(), "torch")
    assert list(got.layers) == ["1", "3", "5"]
    assert [w.kind for w in got.layers.values()] == ["batch", "group", "layer"]
    assert isinstance(got.make("1"), nn.BatchNorm2d)
    with pytest.raises(ModelError, match="one of 1, 3, 5"):
        got.make("2")
    assert list(port(small(), "torch", only=["1", "5"]).layers) == ["1", "5"]


def test_the_table_says_momentum_here_and_there():
    need("keras")
    text = str(port(small(), "keras"))
    assert re.search(r"1 +batch +4 +1e-05 +0.1 → 0.9", text)
    assert "3 norms ported to Keras" in text
    row = port(small(), "keras").to_dict()["layers"][0]
    assert row["momentum"] == [0.1, 0.9]
    assert row["inference"] < 1e-5


def test_norms_without_counterpart_stop_a_model_or_are_skipped():
    net = nn.Sequential(nt.BatchNorm2d(4, ghost=2), drawn(nn.BatchNorm2d(4)))
    with pytest.raises(ModelError, match=r"1 norm of 2 cannot be ported.*ghost=2.*on_refused"):
        port(net, "torch")
    got = port(net, "torch", on_refused="skip")
    assert list(got.layers) == ["1"]
    assert "ghost=2" in got.refused["0"]
    assert "refused: 0" in str(got)
    with pytest.raises(OptionError, match="on_refused"):
        port(net, "torch", on_refused="ignore")


def test_into_sets_everything_by_name():
    source = small()
    source[1].eps, source[1].momentum = 3e-4, 0.03
    target = small()
    for value in target.state_dict().values():
        value.zero_()
    assert port(source, "torch").into(target) is target
    assert (target[1].eps, target[1].momentum) == (3e-4, 0.03)
    for i in (1, 3, 5):
        for name, value in source[i].state_dict().items():
            if value.is_floating_point():
                torch.testing.assert_close(target[i].state_dict()[name], value)
    assert not target[0].weight.any()  # convolutions are none of port's business


def test_into_refuses_what_cannot_be_told():
    two = nn.ModuleDict({"a": drawn(nn.BatchNorm2d(4)), "b": drawn(nn.BatchNorm2d(4), 1)})
    other = nn.ModuleDict({"c": drawn(nn.BatchNorm2d(4), 2), "d": drawn(nn.BatchNorm2d(4), 3)})
    before = {name: value.clone() for name, value in other.state_dict().items()}
    got = port(two, "torch")
    with pytest.raises(ModelError, match="shapes do not tell them apart"):
        got.into(other)
    with pytest.raises(OptionError, match="not there"):
        got.into(other, names={"a": "c", "b": "e"})
    with pytest.raises(OptionError, match="Two layers go into one"):
        got.into(other, names={"a": "c", "b": "c"})
    with pytest.raises(OptionError, match="match="):
        got.into(other, match="shape")
    for name, value in other.state_dict().items():
        assert torch.equal(value, before[name])
    got.into(other, names={"a": "d", "b": "c"})
    assert torch.equal(other["d"].weight, two["a"].weight)
    got.into(other, match="order")
    assert torch.equal(other["c"].weight, two["a"].weight)
    with pytest.raises(ModelError, match="different numbers"):
        got.into(nn.ModuleDict({"c": nn.BatchNorm2d(4)}), match="order")
    with pytest.raises(ModelError, match="not alike"):
        got.into(nn.ModuleDict({"a": nn.BatchNorm2d(4), "b": nn.BatchNorm2d(5)}))
    with pytest.raises(ModelError, match="another framework"):
        got.into("net")


def test_shapes_tell_layers_apart_where_each_is_alone():
    one, other = NormWeights("rms", (2,), 1e-6), NormWeights("rms", (3,), 1e-6)
    assert matched({"a": one, "b": other}, {"x": other, "y": one}, None, "names") == {
        "a": "y",
        "b": "x",
    }
    with pytest.raises(ModelError, match="do not tell them apart"):
        matched({"a": one}, {"x": one, "y": one}, None, "names")


def test_into_fits_the_affine_of_the_models_layer():
    plain = port(small(affine=False), "torch")
    target = small()
    plain.into(target)
    assert (target[1].weight == 1).all()
    assert (target[1].bias == 0).all()
    with pytest.raises(ModelError, match="has no gamma"):
        port(small(), "torch").into(small(affine=False))


def test_into_a_model_of_narrow_weights():
    source, target = small(), small().bfloat16()
    port(source, "torch").into(target)
    assert target[1].weight.dtype is torch.bfloat16
    assert torch.equal(target[1].weight, source[1].weight.bfloat16())
    back = small()
    got = port(target, "torch")
    got.into(back)
    assert torch.equal(back[1].weight, target[1].weight.float())
    assert any("bfloat16 widened" in note for note in got.notes())


def test_a_group_of_single_channels_is_an_instance_norm():
    source = nn.Sequential(drawn(nn.GroupNorm(4, 4)))
    target = nn.Sequential(nn.InstanceNorm2d(4, affine=True))
    port(source, "torch").into(target)
    assert torch.equal(target[0].weight, source[0].weight)


# -- parity ----------------------------------------------------------------------------------------


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


def test_statistics_that_never_move_are_refused_where_they_are_divided_by():
    need("equinox")
    net = nn.Sequential(drawn(nn.BatchNorm2d(3, momentum=0.0)), drawn(nn.BatchNorm2d(3)))
    got = port(net, "equinox", on_refused="skip")
    assert list(got.layers) == ["1"]
    assert "never move" in got.refused["0"]


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


def test_a_missing_framework_is_computed_by_normkit(monkeypatch):
    def missing(self):
        raise ModuleNotFoundError("flax is not installed", name="flax")

    flax = FRAMEWORKS["flax"]
    monkeypatch.setattr(type(flax), "version", missing)
    monkeypatch.setattr(type(flax), "write", lambda self, _: missing(self))
    got = port(nn.Sequential(drawn(nn.BatchNorm2d(3))), "flax")
    assert "Flax NNX (computed by normkit)" in str(got)
    with pytest.raises(ModuleNotFoundError):
        port(drawn(nn.BatchNorm2d(3)), "flax", report=None)


# -- files -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", LIBRARIES)
def test_what_is_saved_is_read_again(target, tmp_path):
    pytest.importorskip("safetensors", reason="safetensors is not installed")
    path = tmp_path / "ported.safetensors"
    source = small()
    source[1].eps, source[1].momentum = 2e-3, 0.25
    got = port(source, target)
    got.save(path)
    back = port(path, "torch")
    for name, weights in got.layers.items():
        again = back.layers[name]
        assert (again.eps, again.keep, again.groups) == (weights.eps, weights.keep, weights.groups)
        for role, value in weights.arrays().items():
            np.testing.assert_array_equal(getattr(again, role), value)
    back.into(small())


def test_torch_takes_the_file_as_a_state_dict(tmp_path):
    safetensors = pytest.importorskip("safetensors.torch", reason="safetensors is not installed")
    got = port(small(), "torch")
    got.save(tmp_path / "a.safetensors")
    got.save(tmp_path / "b.pt", names={"1": "stem.bn"})
    state = safetensors.load_file(tmp_path / "a.safetensors")
    missing, unexpected = small().load_state_dict(state, strict=False)
    assert not unexpected
    assert all(name.startswith(("0.", "2.")) for name in missing)
    renamed = torch.load(tmp_path / "b.pt", weights_only=True)
    assert "stem.bn.running_var" in renamed
    assert "1.weight" not in renamed


def test_nothing_is_overwritten_unasked(tmp_path):
    got = port(small(), "torch")
    path = tmp_path / "a.safetensors"
    path.write_text("mine")
    with pytest.raises(FileError, match="would replace a file"):
        got.save(path)
    assert path.read_text() == "mine"
    got.save(path, overwrite=True)
    with pytest.raises(FileError, match="No such format"):
        got.save(tmp_path / "a.npz")
    need("flax")
    with pytest.raises(FileError, match="No such format"):
        port(small(), "flax").save(tmp_path / "a.pt")


def test_a_checkpoint_needs_an_eps(tmp_path):
    path = tmp_path / "net.pt"
    torch.save(small().state_dict(), path)
    with pytest.raises(ModelError, match=r"does not say eps.*1e-5"):
        port(path, "torch")
    got = port(path, "torch", eps=1e-5, only="1")
    assert list(got.layers) == ["1"]
    assert got.layers["1"].keep is None
    assert list(port(small().state_dict(), "torch", eps=1e-5, only="1").layers) == ["1"]


def test_an_exported_program_is_a_source(tmp_path):
    path = tmp_path / "net.pt2"
    net = small()
    torch.export.save(torch.export.export(net, (torch.randn(1, 3, 2, 2),)), path)
    for source in (path, torch.export.load(path)):
        got = port(source, "torch", only="1")
        np.testing.assert_array_equal(got.layers["1"].var, net[1].running_var)
        assert "computed by normkit" in str(got)


def test_files_that_say_too_little_are_refused(tmp_path):
    with pytest.raises(FileError, match="No such file"):
        port(tmp_path / "nothing.keras", "torch")
    h5py = pytest.importorskip("h5py", reason="h5py is not installed")
    with h5py.File(tmp_path / "model.weights.h5", "w") as file:
        file["a"] = np.ones(3)
    with pytest.raises(FileError, match="does not say what its layers compute"):
        port(tmp_path / "model.weights.h5", "torch")
    (tmp_path / "noise.pt").write_bytes(b"\x00" * 100)
    with pytest.raises(FileError):
        port(tmp_path / "noise.pt", "torch")


def test_a_file_whose_description_does_not_fit_is_refused(tmp_path):
    numpy_file = pytest.importorskip("safetensors.numpy", reason="safetensors is not installed")
    for i, said in enumerate(('[{"name": "a"}]', "{", '[{"framework": "mxnet", "name": ""}]')):
        path = tmp_path / f"{i}.safetensors"
        numpy_file.save_file({"a.weight": np.ones(3)}, path, {"normkit.port": said})
        with pytest.raises(FileError, match="does not fit its tensors"):
            port(path, "torch")
