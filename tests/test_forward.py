"""y and the statistics against the oracle: norms x layouts x dtypes x adversarial values."""

from __future__ import annotations

import numpy as np
import pytest

import bounds
import cases
import normkit as nk
import oracle


@pytest.mark.parametrize("row", cases.PLAIN_ROWS + cases.LARGE_ROWS, ids=str)
def test_row(row):
    problem = cases.Problem(row)
    y, saved = problem.forward()
    bounds.check_forward(problem.truth, y, saved.statistics, problem.x.dtype)


@pytest.mark.parametrize("bad", ["nan", "inf", "-inf"])
@pytest.mark.parametrize("dtype", cases.DTYPES)
@pytest.mark.parametrize("name", list(cases.NORMS))
def test_nan_and_inf_stay_in_their_set(name, dtype, bad):
    row = cases.Row(name, ((4, 6, 7), 1), dtype, bad, gamma="sample", beta="channel")
    problem = cases.Problem(row)
    truth, (y, saved) = problem.truth, problem.forward()
    want = truth.view.back(truth.y)
    assert np.array_equal(np.isnan(np.asarray(y, np.float64)), np.isnan(want.astype(np.float64)))
    clean_x = np.where(np.isfinite(problem.x.astype(np.float64)), problem.x, 0).astype(
        dtype_like(problem)
    )
    clean, clean_saved = problem.norm.forward(clean_x, problem.gamma, problem.beta)
    hit = truth.view.back(truth.spread(~np.isfinite(truth.stats.var)).astype(bool))
    assert hit.any()
    assert np.array_equal(bits(y)[~hit], bits(clean)[~hit]), "a clean set changed"
    mean_hit = ~np.isfinite(truth.stats.public(truth.stats.var))
    var = np.asarray(saved.statistics.var)
    assert not np.isfinite(var[mean_hit]).any()
    assert np.array_equal(var[~mean_hit], np.asarray(clean_saved.statistics.var)[~mean_hit])


def dtype_like(problem):
    return problem.x.dtype


def bits(a):
    a = np.ascontiguousarray(a)
    return a.view(f"u{a.dtype.itemsize}")


@pytest.mark.parametrize("name", list(cases.NORMS))
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_empty_batch(name, dtype):
    rng = cases.seed_of(name)
    x = np.zeros((0, 4, 3), cases.dtype_of(dtype))
    gamma, beta = (cases.affine("channel", x.shape, 1, np.float32, rng) for _ in range(2))
    norm, sets = (make(4) for make in cases.NORMS[name])
    y, saved = norm.forward(x, gamma, beta)
    truth = oracle.Oracle(sets, x, gamma, beta)
    assert y.shape == x.shape
    assert y.dtype == x.dtype
    statistics = saved.statistics
    for value in (statistics.count, statistics.mean, statistics.var, statistics.population_var):
        value = np.broadcast_to(value, truth.stats.shape)
        assert value.shape == truth.stats.shape
        assert not np.any(value)
    grads = norm.backward(np.zeros_like(x), saved)
    assert grads.x.shape == x.shape
    assert grads.x.dtype == x.dtype
    assert grads.gamma.shape == (4,)
    assert not grads.gamma.any()
    assert grads.beta.shape == (4,)
    assert not grads.beta.any()


@pytest.mark.parametrize("dtype", cases.DTYPES)
@pytest.mark.parametrize(
    ("name", "shape"),
    [("batch", (1, 6)), ("instance", (3, 6)), ("instance", (3, 6, 1, 1)), ("tokens", (4, 1, 5))],
)
def test_one_element_sets_give_beta_and_no_gradient(name, shape, dtype):
    row = cases.Row(name, (shape, 1), dtype, "offset", gamma="channel", beta="channel")
    problem = cases.Problem(row)
    y, saved = problem.forward()
    beta = np.broadcast_to(problem.beta.reshape(1, -1, *(1,) * (len(shape) - 2)), shape)
    assert np.array_equal(y, beta.astype(y.dtype))
    assert not np.any(problem.norm.backward(problem.dy, saved).x)
    assert not np.any(saved.statistics.var)
    assert not np.any(saved.statistics.population_var)


def test_input_is_never_written():
    for row in cases.PLAIN_ROWS[::9]:
        problem = cases.Problem(row)
        before = [None if a is None else a.copy() for a in (problem.x, problem.gamma, problem.beta)]
        _, saved = problem.forward()
        problem.norm.backward(problem.dy, saved)
        for old, new in zip(before, (problem.x, problem.gamma, problem.beta), strict=True):
            assert old is None or np.array_equal(bits(old), bits(new)), row


def test_broadcast_input_of_stride_zero():
    x = np.broadcast_to(np.arange(6, dtype=np.float32)[:, None, None], (6, 4, 5))
    y, saved = nk.BatchNorm().forward(x)
    bounds.check_forward(oracle.Oracle(oracle.Sets(), x), y, saved.statistics, x.dtype)


def test_population_variance_and_count():
    x = cases.values("normal", (5, 3, 4), np.float64, cases.seed_of("population"))
    _, saved = nk.BatchNorm().forward(x)
    statistics = saved.statistics
    assert np.all(np.asarray(statistics.count) == 20)
    np.testing.assert_allclose(statistics.population_var, x.var(axis=(0, 2), ddof=1), rtol=1e-13)
    np.testing.assert_allclose(statistics.var, x.var(axis=(0, 2)), rtol=1e-13)
    assert np.asarray(statistics.mean).dtype == np.float64
