"""The layers of Flax NNX and Equinox, computed by normkit, against Flax' and Equinox' own."""

from __future__ import annotations

import numpy as np
import pytest

from normkit.errors import OptionError, ShapeError

jax = pytest.importorskip("jax", reason="JAX is not installed")
jnp = jax.numpy

CLOSE = {"rtol": 2e-5, "atol": 2e-5}


def draw(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(1.5, 2.0, shape).astype("float32"))


class TestFlax:
    nnx = pytest.importorskip("flax.nnx", reason="flax is not installed")
    ours = pytest.importorskip("normkit.jax.nnx", reason="flax is not installed")
    OPTIONS = {  # noqa: RUF012
        "BatchNorm": {},
        "LayerNorm": {},
        "RMSNorm": {},
        "InstanceNorm": {},
        "GroupNorm": {"num_groups": 3},
    }

    def both(self, name, **options):
        """Our layer and Flax', with the same random parameters."""
        layers = []
        for module in (self.ours, self.nnx):
            layer = getattr(module, name)(6, **self.OPTIONS[name], **options, rngs=self.nnx.Rngs(0))
            for number, variable in enumerate(("scale", "bias")):
                if getattr(layer, variable, None) is not None:
                    getattr(layer, variable)[...] = draw(6, seed=number + 1)
            layers.append(layer)
        return layers

    @pytest.mark.parametrize("name", OPTIONS)
    def test_output_gradients_and_statistics_are_flaxs(self, name):
        x, weights = draw(4, 5, 6), draw(4, 5, 6, seed=7)

        def loss(layer, x):
            return (layer(x) * weights).sum()

        found = []
        for layer in self.both(name):
            value, grads = self.nnx.jit(self.nnx.value_and_grad(loss, argnums=(0, 1)))(layer, x)
            state = self.nnx.state(layer)
            found.append(jax.tree.leaves((value, grads, state)))
        assert len(found[0]) == len(found[1]) > 2
        for one, other in zip(*found, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)

    def test_one_sample_with_running_averages(self):
        for training in (True, False):
            ours, theirs = self.both("BatchNorm", momentum=0.8)
            for layer in (ours, theirs):
                layer(draw(32, 6))
                layer.set_attributes(use_running_average=not training)
            x = draw(8 if training else 1, 6, seed=3)
            np.testing.assert_allclose(ours(x), theirs(x), **CLOSE)
            np.testing.assert_allclose(ours.var[...], theirs.var[...], **CLOSE)

    def test_masks_are_flaxs(self):
        mask = (jnp.arange(5) < jnp.array([[5], [3], [1], [4]]))[..., None]
        ours, theirs = self.both("BatchNorm")
        y, other = ours(draw(4, 5, 6), mask=mask), theirs(draw(4, 5, 6), mask=mask)
        np.testing.assert_allclose(jnp.where(mask, y, 0), jnp.where(mask, other, 0), **CLOSE)
        np.testing.assert_allclose(ours.mean[...], theirs.mean[...], **CLOSE)

    def test_half_precision_follows_flax(self):
        for dtype in (None, jnp.bfloat16):
            ours, theirs = self.both("LayerNorm", dtype=dtype)
            x = draw(4, 6).astype(jnp.bfloat16)
            assert ours(x).dtype == theirs(x).dtype

    def test_far_from_zero_ours_is_right_and_flaxs_is_not(self):
        x = np.random.default_rng(0).normal(size=(4096, 6)) + 1e4
        ours, theirs = (
            getattr(module, "BatchNorm")(  # noqa: B009
                6, use_scale=False, use_bias=False, rngs=self.nnx.Rngs(0)
            )
            for module in (self.ours, self.nnx)
        )
        x = jnp.asarray(x, jnp.float32)
        assert float(jnp.abs(ours(x).std(0) - 1).max()) < 1e-3
        assert float(jnp.abs(theirs(x).std(0) - 1).max()) > 0.1

    def test_statistics_over_devices(self):
        layer = self.ours.BatchNorm(6, axis_name="parts", rngs=self.nnx.Rngs(0))
        mapped = self.nnx.vmap(
            lambda layer, x: layer(x), in_axes=(None, 0), out_axes=0, axis_name="parts"
        )
        x, alone = draw(4, 2, 6), self.ours.BatchNorm(6, rngs=self.nnx.Rngs(0))
        np.testing.assert_allclose(mapped(layer, x).reshape(8, 6), alone(x.reshape(8, 6)), **CLOSE)
        np.testing.assert_allclose(layer.var[...], alone.var[...], **CLOSE)

    def test_what_it_does_not_take(self):
        rngs = self.nnx.Rngs(0)
        with pytest.raises(OptionError, match="Other axes"):
            self.ours.LayerNorm(6, reduction_axes=(-2, -1), rngs=rngs)(draw(2, 5, 6))
        with pytest.raises(OptionError, match="Groups of devices"):
            self.ours.BatchNorm(6, axis_index_groups=[[0], [1]], rngs=rngs)(draw(2, 6))
        with pytest.raises(OptionError, match="split over devices"):
            self.ours.LayerNorm(6, axis_name="d", rngs=rngs)(draw(2, 6))
        with pytest.raises(ShapeError, match="single features"):
            self.ours.BatchNorm(6, rngs=rngs)(draw(2, 6), mask=jnp.ones((2, 6), bool))
        with pytest.raises(ValueError, match="use_running_average"):
            self.ours.BatchNorm(6, use_running_average=None, rngs=rngs)(draw(2, 6))

    def test_masks_of_features_are_refused_whatever_their_axes(self):
        layer = self.ours.BatchNorm(6, rngs=self.nnx.Rngs(0))
        with pytest.raises(ShapeError, match="single features"):
            layer(draw(4, 6), use_running_average=False, mask=np.arange(6) < 3)

    @pytest.mark.parametrize("name", ["LayerNorm", "RMSNorm"])
    def test_one_token(self, name):
        layer = getattr(self.ours, name)(6, rngs=self.nnx.Rngs(0))
        x = draw(6)
        np.testing.assert_allclose(layer(x), layer(x[None])[0], rtol=1e-6)


class TestEquinox:
    eqx = pytest.importorskip("equinox", reason="equinox is not installed")
    ours = pytest.importorskip("normkit.jax.equinox", reason="equinox is not installed")

    @pytest.mark.parametrize("mode", ["batch", "ema"])
    def test_output_state_and_gradients_are_equinox(self, mode):
        x, weights = draw(8, 6, 5), draw(8, 6, 5, seed=3)
        found = []
        for module in (self.ours, self.eqx.nn):
            layer, state = self.eqx.nn.make_with_state(module.BatchNorm)(6, "batch", mode=mode)

            def loss(x, layer=layer, state=state):
                over = jax.vmap(layer, in_axes=(0, None), out_axes=(0, None), axis_name="batch")
                y, after = over(x, state)
                return (y * weights).sum(), (y, after)

            (_, (y, after)), dx = jax.jit(jax.value_and_grad(loss, has_aux=True))(x)
            alone = self.eqx.nn.inference_mode(layer)
            one, _ = jax.vmap(alone, (0, None), (0, None), axis_name="batch")(x[:1], after)
            found.append((y, dx, one, *jax.tree.leaves(after)))
        for one, other in zip(*found, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)

    @pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
    def test_dtypes_follow_equinox(self, dtype):
        x = jax.numpy.asarray(draw(8, 6), "bfloat16")
        found = []
        for module in (self.ours, self.eqx.nn):
            layer, state = self.eqx.nn.make_with_state(module.BatchNorm)(
                6, "batch", mode="batch", dtype=dtype
            )
            mapped = jax.vmap(layer, axis_name="batch", in_axes=(0, None), out_axes=(0, None))
            y, state = mapped(x, state)
            found.append((y.dtype, [v.dtype for v in state.get(layer.batch_state_index)]))
        assert found[0] == found[1]
