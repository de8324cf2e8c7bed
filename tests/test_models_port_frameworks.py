"""Layers of Keras, Flax and Equinox that have something of their own, as sources and targets."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

from torch import nn  # noqa: E402

from normkit.errors import ModelError, ParityError  # noqa: E402
from normkit.models import port  # noqa: E402
from normkit.models.porting.frameworks import owner  # noqa: E402
from test_models_port import drawn, need, ported  # noqa: E402


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


def test_a_norm_of_linen_is_checked_and_run_where_its_module_is_given():
    linen = pytest.importorskip("flax.linen", reason="Flax is not installed")
    jax = pytest.importorskip("jax")
    x = np.ones((2, 4), np.float32)

    def pair(module):
        return module, module.init(jax.random.key(0), x)

    got = port(nn.Sequential(drawn(nn.GroupNorm(2, 4, eps=1e-4))), "linen")
    _, variables = got.into(pair(linen.GroupNorm(2, epsilon=1e-4)))
    np.testing.assert_array_equal(variables["params"]["scale"], got.layers["0"].gamma)
    with pytest.raises(ParityError, match="eps: 1e-06"):
        got.into(pair(linen.GroupNorm(2)))
    with pytest.raises(ModelError, match="shapes do not tell them apart"):
        got.into(pair(linen.LayerNorm(epsilon=1e-4)))
    with pytest.raises(ModelError, match="no norm that weights can go into"):
        got.into(pair(linen.Dense(4)))


def test_variables_of_linen_are_never_called_compared():
    pytest.importorskip("flax", reason="Flax is not installed")
    ones = np.ones(4, np.float32)
    place = {"params": {"GroupNorm_0": {"scale": ones, "bias": ones}, "a": {"scale": ones}}}
    lines = []
    got = port(nn.Sequential(drawn(nn.GroupNorm(2, 4, eps=1e-4))), "linen")
    got.into(place, names={"0": "GroupNorm_0"}, report=lines.append)
    assert "nothing was run there" in lines[0]
    assert "GroupNorm_0: GroupNorm(epsilon=0.0001, num_groups=2)" in lines[1]
    assert "LayerNorm_0" not in place["params"]
    other = {"params": {"LayerNorm_0": {"scale": ones, "bias": ones}}}
    with pytest.raises(ModelError, match=r"a group norm \(0\) for LayerNorm_0"):
        got.into(other)
