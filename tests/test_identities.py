"""Exact identities of normalization, as properties in float64.

The numbers: 1 dx sums to zero. 2, 3 radial part of the gradients. 4 length of dx. 5 invariance to
the scale of the input. 6 undoing, idempotence. 7 bound on x_hat. 9 a bias before the norm has no
effect. 10 table of invariances. 11 group norm contains layer and instance norm. 12 merged moments
(test_moments) and synchronized batches. 13 renorm. 14 ghost batches, permutations, output moments.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import normkit as nk

SEEDS = st.integers(0, 2**32 - 1)
SMALL = st.integers(2, 6)
EPS = st.sampled_from([1e-12, 1e-5, 1e-3, 0.5])
TOLERANCE = 1e-10


def draw(seed, *shape):
    rng = np.random.default_rng(seed)
    scale, shift = np.exp(rng.uniform(-1, 1)), rng.uniform(-2, 2)
    x = rng.standard_normal(shape) * scale + shift
    gamma, beta = rng.standard_normal(shape[1]), rng.standard_normal(shape[1])
    return x, gamma, beta, rng.standard_normal(shape), rng


def run(norm, x, gamma, beta, dy, **options):
    y, saved = norm.forward(x, gamma, beta, **options)
    return y, saved.statistics, norm.backward(dy, saved)


def per_channel(a):
    return a.reshape(1, -1, *(1,) * 1)


def close(a, b, tolerance=TOLERANCE):
    np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


@given(SEEDS, SMALL, SMALL, SMALL, EPS)
def test_1_dx_sums_to_zero(seed, n, c, p, eps):
    x, gamma, beta, dy, _ = draw(seed, n, c, p)
    dx = run(nk.BatchNorm(eps=eps), x, gamma, beta, dy)[2].x
    assert np.abs(dx.sum(axis=(0, 2))).max() <= 1e-11 * (1 + np.abs(dx).max())
    dx = run(nk.LayerNorm(eps=eps), x, gamma, beta, dy)[2].x
    assert np.abs(dx.sum(axis=(1, 2))).max() <= 1e-11 * (1 + np.abs(dx).max())


@given(SEEDS, SMALL, SMALL, SMALL, EPS)
def test_2_and_4_radial_part_and_length_of_dx(seed, n, c, p, eps):
    x, gamma, beta, g, _ = draw(seed, n + 1, c, p)
    _, statistics, grads = run(nk.BatchNorm(eps=eps), x, gamma, beta, g)
    v, m = statistics.var, (n + 1) * p
    s = np.sqrt(v + eps)
    x_hat = (x - statistics.mean[:, None]) / s[:, None]
    g_x = (g * x_hat).sum(axis=(0, 2))
    close((grads.x * x_hat).sum(axis=(0, 2)), gamma / s * g_x * eps / (v + eps), 1e-9)
    square = (g**2).sum(axis=(0, 2)) - g.sum(axis=(0, 2)) ** 2 / m
    square = square - (2 - v / (v + eps)) * g_x**2 / m
    close((grads.x**2).sum(axis=(0, 2)), gamma**2 / s**2 * square, 1e-9)


@given(SEEDS, SMALL, SMALL, EPS)
def test_3_gradient_of_the_weights_before_the_norm(seed, k, c, eps):
    rng = np.random.default_rng(seed)
    a, w = rng.standard_normal((9, k)), rng.standard_normal((k, c))
    gamma, beta, g = rng.standard_normal(c), rng.standard_normal(c), rng.standard_normal((9, c))
    _, statistics, grads = run(nk.BatchNorm(eps=eps), a @ w, gamma, beta, g)
    v = statistics.var
    x_hat = (a @ w - statistics.mean) / np.sqrt(v + eps)
    radial = (w * (a.T @ grads.x)).sum(axis=0)
    close(radial, gamma * (g * x_hat).sum(axis=0) * eps / (v + eps), 1e-9)


@given(SEEDS, SMALL, SMALL, st.floats(0.1, 30))
def test_5_scale_of_the_weights(seed, k, c, a):
    rng = np.random.default_rng(seed)
    u, w = rng.standard_normal((9, k)), rng.standard_normal((k, c))
    gamma, beta, g = rng.standard_normal(c), rng.standard_normal(c), rng.standard_normal((9, c))
    y, _, grads = run(nk.BatchNorm(eps=1e-3), u @ w, gamma, beta, g)
    scaled, _, scaled_grads = run(nk.BatchNorm(eps=a * a * 1e-3), u @ (a * w), gamma, beta, g)
    close(scaled, y)
    close(u.T @ scaled_grads.x, u.T @ grads.x / a)
    close(scaled_grads.x @ (a * w).T, grads.x @ w.T)
    flipped = run(nk.BatchNorm(eps=a * a * 1e-3), u @ (-a * w), gamma, beta, g)[0]
    close(flipped, 2 * beta - y)


@given(SEEDS, SMALL, SMALL, SMALL)
def test_6_undo_and_idempotence(seed, n, c, p):
    x, _, _, _, _ = draw(seed, n + 1, c, p)
    norm = nk.BatchNorm(eps=1e-5)
    statistics = norm.moments(x)
    y, _ = norm.forward(x, np.sqrt(statistics.var + 1e-5), statistics.mean)
    close(y, x)
    exact = nk.BatchNorm(eps=0.0)
    once, _ = exact.forward(x)
    close(exact.forward(once)[0], once)


@given(SEEDS, SMALL, SMALL)
def test_7_x_hat_is_bounded_and_two_elements_give_signs(seed, n, p):
    x, gamma, beta, dy, rng = draw(seed, n, 3, p)
    x[0, 0, 0] = 1e8
    y, _ = nk.BatchNorm().forward(x)
    assert np.abs(y).max() <= np.sqrt(n * p - 1) * (1 + 1e-12)
    pair = rng.standard_normal((2, 3, 1))
    y, saved = nk.BatchNorm(eps=0.0).forward(pair, gamma, beta)
    sign = np.sign(pair - pair[::-1])
    close(y, sign * gamma[:, None] + beta[:, None])
    dx = nk.BatchNorm(eps=0.0).backward(dy[:2, :, :1], saved).x
    scale = np.abs(pair - pair[::-1]).min()
    assert np.abs(dx).max() <= 1e-12 * (1 + np.abs(dy).max() * np.abs(gamma).max()) / scale


@given(SEEDS, SMALL, SMALL, SMALL)
def test_9_bias_before_the_norm(seed, n, c, p):
    x, gamma, beta, dy, rng = draw(seed, n, c, p)
    bias = rng.standard_normal(c)[:, None]
    y, statistics, grads = run(nk.BatchNorm(), x, gamma, beta, dy)
    close(run(nk.BatchNorm(), x + bias, gamma, beta, dy)[0], y)
    assert np.abs(grads.x.sum(axis=(0, 2))).max() < 1e-10 * (1 + np.abs(grads.x).max())
    fixed = run(nk.BatchNorm(), x, gamma, beta, dy, statistics=statistics)[2]
    want = (dy * (gamma / np.sqrt(statistics.var + 1e-5))[:, None]).sum(axis=(0, 2))
    close(fixed.x.sum(axis=(0, 2)), want)


# What leaves the output as it is (eps = 0), for x = data @ weights of shape (samples, units).
# Columns: weights * a, weights + one vector for every unit, one unit's weights * a, data * a,
# data + c, one sample * a.
CHANGES = ("weights*a", "weights+v", "unit*a", "data*a", "data+c", "sample*a")
INVARIANT = {
    "batch": (True, False, True, True, True, False),
    "layer": (True, True, False, True, True, True),
    "rms": (True, False, False, True, False, True),
}
BARE = {
    "batch": nk.BatchNorm(eps=0.0),
    "layer": nk.TokenLayerNorm(eps=0.0),
    "rms": nk.RMSNorm(eps=0.0),
}


def changed(change, data, weights, rng):
    a = 2.7
    if change == "weights*a":
        return data, weights * a
    if change == "weights+v":
        return data, weights + rng.standard_normal((len(weights), 1))
    if change == "unit*a":
        return data, weights * np.where(np.arange(weights.shape[1]) == 1, a, 1)
    if change == "data*a":
        return data * a, weights
    if change == "data+c":
        return data, weights
    return data * np.where(np.arange(len(data)) == 1, a, 1)[:, None], weights


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", list(INVARIANT))
@given(seed=SEEDS)
def test_10_invariances(name, change, seed):
    rng = np.random.default_rng(seed)
    data, weights = rng.standard_normal((8, 5)) + 0.5, rng.standard_normal((5, 6))
    x = data @ weights
    other, other_weights = changed(change, data, weights, rng)
    moved = other @ other_weights
    if change == "data+c":
        # A constant added to all pre-activations of a unit is what batch norm removes, one added to
        # all pre-activations of a sample what layer norm removes.
        moved = x + (rng.standard_normal(6) if name == "batch" else rng.standard_normal((8, 1)))
    same = np.abs(BARE[name].forward(moved)[0] - BARE[name].forward(x)[0]).max()
    expected = INVARIANT[name][CHANGES.index(change)]
    assert same < 1e-9 if expected else same > 1e-6


@given(SEEDS, SMALL, SMALL, SMALL)
def test_11_group_norm_contains_layer_and_instance_norm(seed, n, c, p):
    x, gamma, beta, dy, _ = draw(seed, n, c, p)
    pairs = (
        (nk.GroupNorm(1), nk.LayerNorm(), x),
        (nk.GroupNorm(c), nk.InstanceNorm(), x),
        (nk.BatchNorm(), nk.InstanceNorm(), x[:1]),
    )
    for a, b, given_x in pairs:
        first = run(a, given_x, gamma, beta, dy[: len(given_x)])
        second = run(b, given_x, gamma, beta, dy[: len(given_x)])
        close(first[0], second[0], 1e-12)
        close(first[2].x, second[2].x)
        close(first[2].gamma, second[2].gamma)


@given(SEEDS, st.lists(st.integers(1, 5), min_size=2, max_size=4), SMALL)
def test_12_synchronized_batches_equal_their_concatenation(seed, sizes, c):
    x, gamma, beta, dy, _ = draw(seed, sum(sizes), c, 3)
    norm, ends = nk.BatchNorm(), np.cumsum(sizes)[:-1]
    xs, dys = np.split(x, ends), np.split(dy, ends)
    moments = norm.moments(xs[0])
    for part in xs[1:]:
        moments = moments.merge(norm.moments(part))
    runs = [norm.apply(part, moments, gamma, beta) for part in xs]
    sums = [norm.gradient_sums(part, saved) for part, (_, saved) in zip(dys, runs, strict=True)]
    total = sums[0]
    for more in sums[1:]:
        total = total + more
    grads = [
        norm.gradient_apply(part, saved, total) for part, (_, saved) in zip(dys, runs, strict=True)
    ]
    y, _, want = run(norm, x, gamma, beta, dy)
    close(np.concatenate([y for y, _ in runs]), y)
    close(np.concatenate([g.x for g in grads]), want.x)
    close(grads[0].gamma, want.gamma)


@given(SEEDS, SMALL, SMALL, SMALL)
def test_13_renorm(seed, n, c, p):
    x, gamma, beta, dy, rng = draw(seed, n, c, p)
    mean, var = rng.standard_normal(c), rng.uniform(0.2, 3, c)
    norm = nk.BatchNorm()
    free = nk.Renorm(mean, var, r_max=1e9, d_max=1e9)
    close(
        norm.forward(x, gamma, beta, renorm=free)[0],
        norm.forward(x, gamma, beta, statistics=(mean, var))[0],
    )
    shut = run(norm, x, gamma, beta, dy, renorm=nk.Renorm(mean, var, r_max=1.0, d_max=0.0))
    plain = run(norm, x, gamma, beta, dy)
    close(shut[0], plain[0])
    close(shut[2].x, plain[2].x)
    # r and d get no gradient: dx is plain batch norm's times r
    r = np.sqrt((plain[1].var + 1e-5) / (var + 1e-5))
    close(run(norm, x, gamma, beta, dy, renorm=free)[2].x, plain[2].x * r[:, None])


@given(SEEDS, SMALL, SMALL, SMALL)
def test_14_ghosts_permutations_and_output_moments(seed, n, c, p):
    x, gamma, beta, dy, rng = draw(seed, n, c, p)
    y, statistics, grads = run(nk.BatchNorm(), x, gamma, beta, dy)
    for size in (n, n + 3):
        close(run(nk.GhostBatchNorm(size), x, gamma, beta, dy)[2].x, grads.x)
    order = rng.permutation(n)
    shuffled = run(nk.BatchNorm(), x[order], gamma, beta, dy[order])
    close(shuffled[0], y[order])
    close(shuffled[2].x, grads.x[order])
    v = statistics.var
    close(y.mean(axis=(0, 2)), beta)
    close(y.var(axis=(0, 2)), gamma**2 * v / (v + 1e-5))
