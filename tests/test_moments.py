"""Moments merge exactly; running averages follow each framework's convention to the digit."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import cases
import normkit as nk

LENGTHS = st.lists(st.integers(0, 40), min_size=2, max_size=6)


def columns(*rows):
    return np.array(rows, np.float64)


def moments_of(a):
    """Two-pass moments of the columns of a, by definition."""
    n = np.full(a.shape[1], float(len(a)))
    mean = a.mean(axis=0) if len(a) else np.zeros(a.shape[1])
    return nk.Moments(n, mean, ((a - mean) ** 2).sum(axis=0))


def close(a, b, rtol=1e-12):
    np.testing.assert_array_equal(a.count, b.count)
    np.testing.assert_allclose(a.mean, b.mean, rtol=rtol, atol=1e-300)
    np.testing.assert_allclose(a.m2, b.m2, rtol=rtol, atol=1e-9)


@given(LENGTHS, st.integers(0, 2**32 - 1))
def test_merge_equals_one_pass_and_is_associative_and_commutative(lengths, seed):
    rng = np.random.default_rng(seed)
    parts = [rng.standard_normal((n, 3)) + 1e3 for n in lengths]
    moments = [moments_of(part) for part in parts]
    forwards, backwards = moments[0], moments[-1]
    for m in moments[1:]:
        forwards = forwards.merge(m)
    for m in moments[-2::-1]:
        backwards = m.merge(backwards)
    whole = moments_of(np.concatenate(parts))
    close(forwards, whole)
    close(backwards, whole)
    close(moments[0].merge(moments[1]), moments[1].merge(moments[0]))
    close(moments[0].merge(*moments[1:]), whole)


def test_merge_with_nothing_is_exact():
    a, nothing = moments_of(columns([1.5, 2.0], [4.0, 1e8])), moments_of(np.zeros((0, 2)))
    for merged in (a.merge(nothing), nothing.merge(a)):
        for name in ("count", "mean", "m2"):
            assert np.array_equal(getattr(merged, name), getattr(a, name))
    empty = nothing.merge(nothing)
    for value in (empty.count, empty.mean, empty.var, empty.population_var):
        assert not np.any(value)


def test_variances():
    a = moments_of(columns([1.0, 5.0], [2.0, 5.0], [6.0, 5.0]))
    np.testing.assert_allclose(a.mean, [3, 5])
    np.testing.assert_allclose(a.var, [14 / 3, 0])
    np.testing.assert_allclose(a.population_var, [7, 0])
    one = moments_of(columns([4.0, 5.0]))
    assert not np.any(one.var)
    assert not np.any(one.population_var)


def test_merge_of_other_shapes_is_refused():
    with pytest.raises(ValueError, match=r"\(2,\).*\(3,\)"):
        moments_of(np.ones((2, 2))).merge(moments_of(np.ones((2, 3))))


BATCH = columns([1.0], [2.0], [6.0])  # mean 3, biased variance 14/3, unbiased 7

# convention, mean and variance after one batch and after two of the same batch
GOLDEN = (
    ("torch", {}, (0.3, 0.9 + 0.1 * 7), (0.57, 0.81 + 0.19 * 7)),
    ("torch", {"momentum": 0.25}, (0.75, 0.75 + 0.25 * 7), (1.3125, 0.5625 + 0.4375 * 7)),
    ("keras", {}, (0.03, 0.99 + 0.01 * 14 / 3), (0.0597, 0.9801 + 0.0199 * 14 / 3)),
    ("keras", {"momentum": 0.75}, (0.75, 0.75 + 0.25 * 14 / 3), (1.3125, 0.5625 + 0.4375 * 14 / 3)),
    ("flax", {}, (0.03, 0.99 + 0.01 * 14 / 3), (0.0597, 0.9801 + 0.0199 * 14 / 3)),
)


@pytest.mark.parametrize(("convention", "options", "first", "second"), GOLDEN)
def test_conventions(convention, options, first, second):
    start = getattr(nk.ExponentialAverage, convention)(1, **options)
    assert (start.mean, start.var, start.steps) == (0, 1, 0)
    once = start.update(moments_of(BATCH))
    twice = once.update(moments_of(BATCH))
    for average, (mean, var), steps in ((once, first, 1), (twice, second, 2)):
        np.testing.assert_allclose([average.mean[0], average.var[0]], [mean, var], rtol=1e-14)
        assert average.steps == steps
    assert (start.mean, start.var, start.steps) == (0, 1, 0), "update changed its receiver"


def test_torch_convention_is_torch():
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    layer, average = torch.nn.BatchNorm1d(3).double(), nk.ExponentialAverage.torch(3)
    for seed in range(4):
        x = np.random.default_rng(seed).standard_normal((5, 3))
        layer(torch.from_numpy(x))
        average = average.update(nk.BatchNorm().forward(x)[1].statistics)
    np.testing.assert_allclose(average.mean, layer.running_mean.numpy(), rtol=1e-12)
    np.testing.assert_allclose(average.var, layer.running_var.numpy(), rtol=1e-12)


AVERAGES = (
    nk.ExponentialAverage.torch(2),
    nk.ExponentialAverage.keras(2),
    nk.CumulativeAverage.start(2),
    nk.PopulationAverage.start(2),
)


@pytest.mark.parametrize("average", AVERAGES, ids=lambda a: type(a).__name__)
def test_an_empty_batch_changes_no_average(average):
    empty = moments_of(np.zeros((0, 2)))
    for start in (average, average.update(moments_of(columns([1.0, 5.0], [2.0, 3.0])))):
        after = start.update(empty)
        assert np.array_equal(after.mean, start.mean)
        assert np.array_equal(after.var, start.var)
    once = average.update(empty).update(moments_of(columns([1.0, 5.0], [2.0, 3.0])))
    want = average.update(moments_of(columns([1.0, 5.0], [2.0, 3.0])))
    assert np.array_equal(once.mean, want.mean)
    assert np.array_equal(once.var, want.var)


@given(st.lists(st.integers(2, 9), min_size=1, max_size=6), st.integers(0, 2**32 - 1))
def test_cumulative_is_the_mean_of_batches_and_population_is_exact(lengths, seed):
    rng = np.random.default_rng(seed)
    parts = [rng.standard_normal((n, 2)) * 3 + rng.standard_normal(2) * 10 for n in lengths]
    cumulative, population = nk.CumulativeAverage.start(2), nk.PopulationAverage.start(2)
    for part in parts:
        cumulative = cumulative.update(moments_of(part))
        population = population.update(moments_of(part))
    np.testing.assert_allclose(cumulative.mean, np.mean([p.mean(0) for p in parts], 0), rtol=1e-10)
    unbiased = np.mean([p.var(0, ddof=1) for p in parts], 0)
    np.testing.assert_allclose(cumulative.var, unbiased, rtol=1e-10)
    whole = np.concatenate(parts)
    np.testing.assert_allclose(population.mean, whole.mean(0), rtol=1e-10)
    np.testing.assert_allclose(population.var, whole.var(0, ddof=1), rtol=1e-10)


@pytest.mark.parametrize("t", [1, 5, 30])
def test_weight_of_the_start_decays_geometrically(t):
    """Identity 15: after t steps the starting value weighs (1 - rate)^t."""
    average, batch = nk.ExponentialAverage.torch(1, momentum=0.1), moments_of(np.zeros((4, 1)))
    for _ in range(t):
        average = average.update(batch)
    np.testing.assert_allclose(average.var, 0.9**t, rtol=1e-13)


def test_averaging_variances_is_not_the_population_variance():
    parts = [np.full((4, 1), 1.0) + columns([0.0], [0.1], [0.2], [0.3]) * s for s in (1, 5)]
    parts[1] += 100
    cumulative, population = nk.CumulativeAverage.start(1), nk.PopulationAverage.start(1)
    for part in parts:
        cumulative = cumulative.update(moments_of(part))
        population = population.update(moments_of(part))
    assert population.var[0] > 2000 > 1 > cumulative.var[0]


@pytest.mark.parametrize("rate", [float("nan"), -0.1, 1.1, "fast", None])
@pytest.mark.parametrize("convention", ["torch", "keras", "flax"])
def test_a_momentum_that_is_no_weight_is_refused(convention, rate):
    with pytest.raises((ValueError, TypeError), match="momentum"):
        getattr(nk.ExponentialAverage, convention)(3, momentum=rate)


def test_statistics_of_a_large_offset_survive():
    x = cases.values("offset", (64, 3, 50), np.float32, cases.seed_of("offset"))
    a, b = (nk.BatchNorm().moments(part) for part in (x[:11], x[11:]))
    merged, exact = a.merge(b), x.astype(np.longdouble)
    np.testing.assert_allclose(merged.var, exact.var(axis=(0, 2)).astype(float), rtol=1e-9)
