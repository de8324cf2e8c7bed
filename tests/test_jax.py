"""normkit.jax: pure functions under JAX's transformations, against oracles and PyTorch."""

from __future__ import annotations

import os
from functools import partial

os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=2")

import numpy as np
import pytest

import normkit as nk
from normkit.errors import OptionError, ShapeError

jax = pytest.importorskip("jax", reason="JAX is not installed")
torch = pytest.importorskip("torch", reason="PyTorch is not installed")
jnp, F = jax.numpy, torch.nn.functional
PartitionSpec = jax.sharding.PartitionSpec
from benchmarks import jax_formula  # noqa: E402
from normkit.jax import (  # noqa: E402
    BatchStats,
    batch_norm,
    group_norm,
    instance_norm,
    layer_norm,
    normalize,
    rms_norm,
)

MESH = jax.sharding.Mesh(np.array(jax.devices()[:2]), ("devices",))
CLOSE = {"rtol": 2e-5, "atol": 2e-5}


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(1.5, 2.0, shape).astype("float32")


def of_torch(function, *arrays):
    """Output, and gradients of its sum with fixed weights."""
    tensors = [torch.tensor(a, requires_grad=True) for a in arrays]
    y = function(*tensors)
    (y * torch.tensor(draw(*y.shape, seed=9))).sum().backward()
    return y.detach().numpy(), [t.grad.numpy() for t in tensors]


def of_jax(function, *arrays):
    arrays = [jnp.asarray(a) for a in arrays]
    y = jax.jit(function)(*arrays)
    weights = draw(*y.shape, seed=9)
    grads = jax.jit(jax.grad(lambda *a: (function(*a) * weights).sum(), tuple(range(len(arrays)))))
    return np.asarray(y), [np.asarray(g) for g in grads(*arrays)]


CASES = {
    "batch": (
        lambda x, g, b: normalize(nk.BatchNorm(), x, g, b, axis=1)[0],
        lambda x, g, b: F.batch_norm(x, None, None, g, b, training=True),
    ),
    "layer": (
        lambda x, g, b: layer_norm(x, g, b, eps=1e-5, axis=1),
        lambda x, g, b: F.layer_norm(x.movedim(1, -1), (6,), g, b).movedim(-1, 1),
    ),
    "group": (
        lambda x, g, b: group_norm(x, 3, g, b, eps=1e-5, axis=1),
        lambda x, g, b: F.group_norm(x, 3, g, b),
    ),
    "instance": (
        lambda x, g, b: instance_norm(x, g, b, eps=1e-5, axis=1),
        lambda x, g, b: F.instance_norm(x, weight=g, bias=b),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_output_and_gradients_are_pytorchs(name):
    ours, theirs = CASES[name]
    arrays = draw(4, 6, 5), draw(6, seed=1), draw(6, seed=2)
    for one, other in zip(*(
        (y, *grads) for y, grads in (of_jax(ours, *arrays), of_torch(theirs, *arrays))
    ), strict=True):  # fmt: skip
        np.testing.assert_allclose(one, other, **CLOSE)


def test_rms_norm_is_pytorchs():
    arrays = draw(4, 5, 6), draw(6, seed=1)
    ours = of_jax(lambda x, g: rms_norm(x, g, eps=1e-5), *arrays)
    theirs = of_torch(lambda x, g: F.rms_norm(x, (6,), g, 1e-5), *arrays)
    np.testing.assert_allclose(ours[0], theirs[0], **CLOSE)
    for one, other in zip(ours[1], theirs[1], strict=True):
        np.testing.assert_allclose(one, other, **CLOSE)


@pytest.mark.parametrize("options", [{"activation": "relu"}, {"activation": "gelu"},
                                     {"input_activation": "relu"}])  # fmt: skip
def test_activations_are_part_of_it(options):
    x, g, b = draw(4, 5, 6), draw(6, seed=1), draw(6, seed=2)

    def apart(x, g, b):
        of = {"relu": jax.nn.relu, "gelu": lambda v: jax.nn.gelu(v, approximate=False)}
        x = of[options["input_activation"]](x) if "input_activation" in options else x
        y = normalize(nk.BatchNorm(), x, g, b)[0]
        return of[options["activation"]](y) if "activation" in options else y

    whole = of_jax(lambda *a: normalize(nk.BatchNorm(), *a, **options)[0], x, g, b)
    steps = of_jax(apart, x, g, b)
    np.testing.assert_allclose(whole[0], steps[0], **CLOSE)
    for one, other in zip(whole[1], steps[1], strict=True):
        np.testing.assert_allclose(one, other, **CLOSE)


def test_masks_and_residuals_pass_through_grad():
    x, residual = draw(4, 5, 6), draw(4, 5, 6, seed=3)
    mask = np.arange(5) < np.array([[5], [3], [1], [4]])

    def loss(x, residual, mask):
        y, _ = normalize(nk.BatchNorm(), x, mask=mask, residual=residual, activation="relu")
        return (y * draw(4, 5, 6, seed=9) * mask[..., None]).sum()

    dx, dr = jax.jit(jax.grad(loss, (0, 1)))(x, residual, mask)
    changed = np.where(mask[..., None], x, 1e6).astype("float32")
    again, _ = jax.jit(jax.grad(loss, (0, 1)))(changed, residual, mask)
    np.testing.assert_allclose(dx, again, **CLOSE)  # what is masked has no part in it
    assert float(jnp.abs(dr).max()) > 0
    assert not np.asarray(dx)[~mask].any()


def split_loss(x, dy, axis_name):
    """For one part of a batch: its output, and its gradient by x."""

    def loss(x):
        y, _ = normalize(nk.BatchNorm(), x, axis_name=axis_name, activation="silu")
        return (y * dy).sum(), y

    (_, y), dx = jax.value_and_grad(loss, has_aux=True)(x)
    return y, dx


def test_statistics_over_a_mapped_axis_are_those_of_the_whole_batch():
    x, dy = draw(8, 5, 6), draw(8, 5, 6, seed=4)
    whole = split_loss(jnp.asarray(x), dy, None)
    parts = [a.reshape(4, 2, 5, 6) for a in (x, dy)]
    mapped = jax.vmap(lambda x, dy: split_loss(x, dy, "parts"), axis_name="parts")(*parts)
    for one, other in zip(mapped, whole, strict=True):
        np.testing.assert_allclose(one.reshape(8, 5, 6), other, **CLOSE)


@pytest.mark.skipif(jax.device_count() < 2, reason="JAX sees one device only")
@pytest.mark.parametrize("way", ["pmap", "shard_map", "shard_map without vma"])
def test_statistics_over_devices_are_those_of_the_whole_batch(way):
    x, dy = draw(8, 5, 6), draw(8, 5, 6, seed=4)
    whole = split_loss(jnp.asarray(x), dy, None)
    of_part = partial(split_loss, axis_name="devices")
    if way == "pmap":
        mapped = jax.pmap(of_part, axis_name="devices")
        found = mapped(x.reshape(2, 4, 5, 6), dy.reshape(2, 4, 5, 6))
    else:
        along = PartitionSpec("devices")
        found = jax.shard_map(
            of_part, mesh=MESH, in_specs=(along, along), out_specs=(along, along),
            check_vma=way == "shard_map",
        )(x, dy)  # fmt: skip
    for one, other in zip(found, whole, strict=True):
        np.testing.assert_allclose(np.asarray(one).reshape(8, 5, 6), other, **CLOSE)


@pytest.mark.skipif(jax.device_count() < 2, reason="JAX sees one device only")
@pytest.mark.parametrize("where", ["inside", "outside"])
def test_gradients_of_what_devices_share_are_those_of_the_whole_batch(where):
    arrays = draw(8, 6), draw(6, seed=1), draw(6, seed=2)

    def loss(x, gamma, beta, axis_name=None):
        y, _ = normalize(nk.BatchNorm(), x, gamma, beta, axis_name=axis_name)
        total = (y**3).sum()
        return total if axis_name is None else jax.lax.psum(total, axis_name)

    of_part = partial(loss, axis_name="devices")
    split, shared = PartitionSpec("devices"), PartitionSpec()
    options = {"mesh": MESH, "in_specs": (split, shared, shared)}
    if where == "inside":
        parts = jax.grad(of_part, (0, 1, 2))
        found = jax.shard_map(parts, out_specs=(split, shared, shared), **options)(*arrays)
    else:
        found = jax.grad(jax.shard_map(of_part, out_specs=shared, **options), (0, 1, 2))(*arrays)
    whole = jax.grad(loss, (0, 1, 2))(*arrays)
    plain = jax.grad(lambda *a: (reference(*a) ** 3).sum(), (0, 1, 2))(*arrays)
    for one, other, oracle in zip(found, whole, plain, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-3)
        np.testing.assert_allclose(one, oracle, rtol=1e-3, atol=1e-2)


def reference(x, gamma, beta):
    """Batch norm in JAX's own operations."""
    centred = x - x.mean(0)
    return centred / jnp.sqrt((centred**2).mean(0) + 1e-5) * gamma + beta


def test_parts_of_unequal_size_weigh_by_their_elements():
    x = draw(2, 6, 3)
    mask = np.array([[True] * 6, [True] * 2 + [False] * 4])
    of_part = jax.vmap(
        lambda x, mask: normalize(nk.BatchNorm(), x, mask=mask, axis_name="parts")[1],
        axis_name="parts",
    )
    found = of_part(x, mask)
    kept = np.concatenate([x[0], x[1, :2]]).astype("float64")
    np.testing.assert_allclose(found.mean[0], kept.mean(0), rtol=1e-5)
    np.testing.assert_allclose(found.var[1], kept.var(0), rtol=1e-5)


def test_far_from_zero_where_squares_fail():
    """flax's default takes the variance as the mean of squares less the square of the mean."""
    x = (np.random.default_rng(0).normal(size=(4096, 3)) + 1e4).astype("float32")
    y, moments = jax.jit(lambda x: normalize(nk.BatchNorm(eps=0.0), x))(x)
    exact = x.astype("float64").var(0)
    np.testing.assert_allclose(moments.var, exact, rtol=1e-5)
    np.testing.assert_allclose(np.asarray(y).std(0), 1, rtol=1e-3)
    squares = np.asarray(jnp.mean(x * x, 0) - jnp.mean(x, 0) ** 2)
    assert np.abs(squares / exact - 1).max() > 0.5


def test_far_from_zero_where_flax_fails():
    nnx = pytest.importorskip("flax.nnx", reason="flax is not installed")
    x = (np.random.default_rng(0).normal(size=(4096, 3)) + 1e4).astype("float32")
    theirs = nnx.BatchNorm(3, rngs=nnx.Rngs(0), use_scale=False, use_bias=False)(jnp.asarray(x))
    assert np.abs(np.asarray(theirs).std(0) - 1).max() > 0.1
    ours = batch_norm(x, BatchStats.start(3), training=True)[0]
    np.testing.assert_allclose(np.asarray(ours).std(0), 1, rtol=1e-3)


def test_backward_keeps_x_and_numbers_a_channel():
    x, g, b = (jnp.asarray(a) for a in (draw(16, 32, 8), draw(8), draw(8)))
    _, back = jax.vjp(
        lambda x, g, b: normalize(nk.BatchNorm(), x, g, b, activation="relu")[0], x, g, b
    )
    sizes = sorted(leaf.size for leaf in jax.tree.leaves(back) if hasattr(leaf, "size"))
    assert sizes[-1] == x.size
    assert sum(sizes[:-1]) < 10 * 8


def test_second_derivatives():
    x = draw(6, 3)

    def slope(x):
        return jax.grad(lambda x: (normalize(nk.BatchNorm(), x)[0] ** 3).sum())(x)

    def plain(x):
        return (reference(x, 1.0, 0.0) ** 3).sum()

    ours = jax.grad(lambda x: (slope(x) ** 2).sum())(jnp.asarray(x))
    theirs = jax.grad(lambda x: (jax.grad(plain)(x) ** 2).sum())(jnp.asarray(x))
    np.testing.assert_allclose(ours, theirs, rtol=2e-3, atol=2e-4)


class TestBatchNorm:
    @pytest.mark.parametrize("unbiased", [False, True])
    def test_statistics_move_as_pytorchs_or_flaxs(self, unbiased):
        x = draw(8, 3)
        _, stats = batch_norm(
            x, BatchStats.start(3), training=True, momentum=0.9, unbiased=unbiased
        )
        np.testing.assert_allclose(stats.mean, 0.1 * x.mean(0), rtol=1e-5)
        var = x.var(0, ddof=int(unbiased))
        np.testing.assert_allclose(stats.var, 0.9 + 0.1 * var, rtol=1e-5)

    def test_one_sample_at_inference(self):
        stats = BatchStats(jnp.array([1.0, 2.0]), jnp.array([4.0, 9.0]))
        y, same = batch_norm(jnp.array([[3.0, 8.0]]), stats, training=False, eps=0.0)
        np.testing.assert_allclose(y, [[1.0, 2.0]], rtol=1e-6)
        assert same is stats

    def test_no_gradient_flows_through_the_statistics(self):
        def moved(x):
            return sum(s.sum() for s in batch_norm(x, BatchStats.start(3), training=True)[1])

        assert not jax.grad(moved)(jnp.asarray(draw(8, 3))).any()

    def test_a_batch_that_is_masked_as_a_whole_moves_nothing(self):
        stats = BatchStats(jnp.array([5.0, 6.0]), jnp.array([2.0, 3.0]))
        mask = np.zeros((3, 4), bool)
        _, after = batch_norm(draw(3, 4, 2), stats, training=True, mask=mask)
        for one, other in zip(after, stats, strict=True):
            assert jnp.array_equal(one, other)

    def test_it_trains_in_a_scan(self):
        x = jnp.asarray(draw(5, 8, 3))

        def step(stats, x):
            y, stats = batch_norm(x, stats, training=True)
            return stats, y.mean()

        stats, means = jax.jit(lambda x: jax.lax.scan(step, BatchStats.start(3), x))(x)
        alone = BatchStats.start(3)
        for one in x:
            _, alone = batch_norm(one, alone, training=True)
        np.testing.assert_allclose(stats.mean, alone.mean, rtol=1e-5)
        assert means.shape == (5,)

    @pytest.mark.parametrize("momentum", [-0.1, 1.5, float("nan")])
    def test_momentum_is_a_weight(self, momentum):
        with pytest.raises(OptionError, match="weight of the old statistics"):
            batch_norm(draw(2, 3), BatchStats.start(3), training=True, momentum=momentum)

    def test_lists_are_arrays_too(self):
        y, _ = batch_norm([[1.0], [3.0]], BatchStats.start(1), training=True, eps=0.0)
        assert y.ravel().tolist() == [-1.0, 1.0]

    def test_statistics_of_other_channels(self):
        with pytest.raises(ShapeError, match=r"received shape \(4,\), expected \(3,\)"):
            batch_norm(draw(2, 3), BatchStats.start(4), training=True)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_keeps_its_dtype_and_sums_in_float32(dtype):
    x = jnp.asarray(draw(512, 4) + 30, dtype)
    y, moments = jax.jit(lambda x: normalize(nk.BatchNorm(), x))(x)
    assert y.dtype == x.dtype
    assert moments.mean.dtype == jnp.float32
    np.testing.assert_allclose(moments.mean, np.asarray(x, "float64").mean(0), rtol=1e-5)


# --- where arrays are mapped and stacked ----------------------------------------------------------


def test_moments_are_mapped_and_stacked():
    x = draw(3, 8, 6)
    y, found = jax.vmap(lambda x: normalize(nk.BatchNorm(), x))(x)
    assert found.count.shape == found.mean.shape == (3, 6)
    _, stacked = jax.lax.scan(lambda c, x: (c, normalize(nk.BatchNorm(), x)[1]), 0.0, x)
    np.testing.assert_allclose(stacked.mean, found.mean, rtol=1e-6)
    np.testing.assert_allclose(found.var, x.var(1), rtol=1e-4)
    assert y.shape == x.shape


@pytest.mark.parametrize("norm", [layer_norm, rms_norm])
def test_one_token(norm):
    x = draw(3, 6)
    np.testing.assert_allclose(jax.vmap(norm)(x), norm(x), **CLOSE)


@pytest.mark.parametrize("case", jax_formula.CASES, ids=lambda case: f"{case[0]}-{case[3]}")
def test_what_is_timed_beside_the_formula_is_the_same(case):
    _, norm, shape, axis, axes = case
    small = [min(size, 8) for size in shape]
    x = jax.random.normal(jax.random.key(0), small)
    given = (x, jnp.arange(1.0, 9.0), jnp.arange(8.0))
    ours, formula = jax_formula.ours(norm, axis), jax_formula.formula(axis, axes)
    np.testing.assert_allclose(ours(*given), formula(*given), rtol=1e-5, atol=1e-5)
