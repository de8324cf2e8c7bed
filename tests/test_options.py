"""Masks, residuals, activations, out=, given statistics, renorm and the two halves."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import bounds
import cases
import normkit as nk
import oracle

ROW = cases.Row("batch", ((4, 6, 7), 1), "float32")
# Every kind of row in float32; the other dtypes mean compilations more, so they have a row each.
STATISTICS_ROWS = [
    replace(row, residual=True, activation="silu")
    for row in cases.pairwise(
        norm=tuple(cases.NORMS),
        shape=(((5, 6), 1), ((3, 4, 5, 7), 1), ((3, 5, 7, 4), -1), ((4, 9, 6), -1)),
        values=("normal", "offset"),
        gamma=("channel", "none", "sample", "element"),
    )
] + [
    cases.Row(norm, ((4, 9, 6), -1), dtype, "offset", affine_dtype="float32")
    for norm, dtype in zip(
        ("batch", "tokens", "batch"), ("float16", *cases.DTYPES[1::2]), strict=False
    )
]


@pytest.mark.parametrize("row", cases.OPTION_ROWS, ids=str)
def test_row(row):
    bounds.check_problem(cases.Problem(row))


@pytest.mark.parametrize("name", list(cases.NORMS))
def test_what_a_mask_leaves_out_may_be_anything(name):
    problem = cases.Problem(cases.Row(name, ((3, 4, 5), 1), mask="positions"))
    valid = np.broadcast_to(problem.options["mask"][:, None, :], problem.shape)
    clean, saved = problem.forward()
    problem.x = np.where(valid, problem.x, np.float32(np.nan))
    dirty, dirty_saved = problem.forward()
    assert np.array_equal(clean[valid], dirty[valid])
    assert np.array_equal(saved.statistics.mean, dirty_saved.statistics.mean)
    assert np.array_equal(saved.statistics.var, dirty_saved.statistics.var)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("name", list(cases.NORMS))
def test_a_set_emptied_by_a_mask_gives_beta(name, dtype):
    row = cases.Row(name, ((4, 6, 7), 1), dtype)
    problem = cases.Problem(row)
    problem.options["mask"] = np.zeros((4, 7), bool)
    y, saved = problem.forward()
    want = np.broadcast_to(problem.beta[:, None], problem.shape)
    assert np.array_equal(y, want)
    assert not np.any(saved.statistics.mean)
    assert not np.any(saved.statistics.var)
    assert not np.any(saved.statistics.count)
    assert not np.any(saved.statistics.population_var)
    grads = problem.norm.backward(problem.dy, saved)
    assert not np.any(grads.x)
    assert not np.any(grads.gamma)
    assert np.all(np.isfinite(grads.beta))
    bounds.check_problem(problem)


def test_lengths_equal_their_mask():
    problem = cases.Problem(cases.Row("layer", ((4, 6, 7, 3), 1)))
    lengths = np.array([0, 3, 7, 1])
    mask = np.broadcast_to(np.arange(7)[None, :, None] < lengths[:, None, None], (4, 7, 3))
    a, _ = problem.forward(lengths=lengths)
    b, _ = problem.forward(mask=mask)
    assert np.array_equal(a, b)


def test_a_mask_of_all_true_changes_nothing():
    problem = cases.Problem(ROW)
    y, saved = problem.forward(mask=np.ones((4, 7), bool))
    want, want_saved = problem.forward()
    bounds.check_forward(problem.truth, y, saved.statistics, problem.x.dtype)
    np.testing.assert_allclose(y, want, rtol=1e-6, atol=1e-7)
    assert np.array_equal(
        np.broadcast_to(saved.statistics.count, (6,)),
        np.broadcast_to(want_saved.statistics.count, (6,)),
    )


@pytest.mark.parametrize("memory", ["plain", "strided", "transposed"])
@pytest.mark.parametrize("name", list(cases.NORMS))
def test_out_and_in_place_give_the_same_bits(name, memory):
    row = cases.Row(name, ((5, 6, 7), 1), memory=memory)
    problem = cases.Problem(row)
    want, _ = problem.forward()
    out = np.full_like(problem.x, 7)
    y, saved = problem.forward(out=out)
    assert y is out
    assert np.array_equal(y, want)
    bounds.check_backward(
        problem.truth, problem.dy, problem.norm.backward(problem.dy, saved), bounds.likes(problem)
    )
    strided = cases.arrange(np.zeros_like(problem.x), "strided")
    y, _ = problem.forward(out=strided)
    assert y is strided
    assert np.array_equal(strided, want)
    x = problem.x
    y, saved = problem.forward(out=x)
    assert y is x
    assert np.array_equal(x, want)
    with pytest.raises(ValueError, match=r"in place|overwr"):
        problem.norm.backward(problem.dy, saved)


@pytest.mark.parametrize("as_moments", [False, True])
@pytest.mark.parametrize("row", STATISTICS_ROWS, ids=str)
def test_given_statistics_are_constants(row, as_moments):
    problem = cases.Problem(row)
    shape, rng = problem.truth.stats.shape, cases.seed_of(row)
    mean = rng.standard_normal(shape) + (1e4 if row.values == "offset" else 0)
    mean = mean * problem.norm.center
    var = rng.uniform(0.3, 2, shape)
    given = (mean, var)
    if as_moments:
        given = nk.Moments(np.full(shape, 10.0), mean, var * 10.0)
        var = given.var
    affine = problem.gamma, problem.beta
    truth = oracle.Oracle(
        problem.sets, problem.x, *affine, statistics=(mean, var), **problem.options
    )
    dy = cases.quiet_kinks(truth, problem.dy)
    y, saved = problem.forward(statistics=given)
    bounds.check_forward(truth, y, None, problem.x.dtype)
    grads = problem.norm.backward(dy, saved)
    bounds.check_backward(truth, dy, grads, bounds.likes(problem))


RENORM_ROWS = [
    row for row in STATISTICS_ROWS if row.norm not in ("rms", "general-rms", "mean-only")
]


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("batch", "float16"), ("group", "float16"), ("mean-only", "float16"), ("tokens", "float64")],
)
def test_nan_under_given_statistics_stays_where_it_is(name, dtype):
    """Frozen statistics tie no element to another, and their dx does not depend on x."""
    problem = cases.Problem(cases.Row(name, ((4, 6, 7), 1), dtype, "nan"))
    shape = problem.truth.stats.shape
    y, saved = problem.forward(statistics=(np.zeros(shape), np.ones(shape)))
    assert np.array_equal(np.isnan(y), np.isnan(problem.x))
    assert np.all(np.isfinite(problem.norm.backward(problem.dy, saved).x))


@pytest.mark.parametrize("limits", [(1.0, 0.0), (1.2, 0.3), (1e6, 1e6)])
@pytest.mark.parametrize("row", RENORM_ROWS, ids=str)
def test_renorm(row, limits):
    problem = cases.Problem(row)
    shape, rng = problem.truth.stats.shape, cases.seed_of(row)
    mean = np.asarray(problem.truth.stats.public(problem.truth.stats.mean), np.float64)
    mean, var = mean + rng.standard_normal(shape), rng.uniform(0.3, 2, shape)
    r_max, d_max = limits
    renorm = {"mean": mean, "var": var, "r_max": r_max, "d_max": d_max}
    truth = oracle.Oracle(
        problem.sets, problem.x, problem.gamma, problem.beta, renorm=renorm, **problem.options
    )
    dy = cases.quiet_kinks(truth, problem.dy)
    y, saved = problem.forward(renorm=nk.Renorm(**renorm))
    bounds.check_forward(truth, y, saved.statistics, problem.x.dtype)
    grads = problem.norm.backward(dy, saved)
    bounds.check_backward(truth, dy, grads, bounds.likes(problem))


@pytest.mark.parametrize("row", STATISTICS_ROWS + cases.MASK_ROWS[::4], ids=str)
def test_halves_equal_the_whole(row):
    problem = cases.Problem(row)
    norm, truth = problem.norm, problem.truth
    where = {k: v for k, v in problem.options.items() if k in ("axis", "mask", "lengths")}
    moments = norm.moments(problem.x, **where)
    y, saved = norm.apply(problem.x, moments, problem.gamma, problem.beta, **problem.options)
    bounds.check_forward(truth, y, saved.statistics, problem.x.dtype)
    sums = norm.gradient_sums(problem.dy, saved)
    grads = norm.gradient_apply(problem.dy, saved, sums)
    bounds.check_backward(truth, problem.dy, grads, bounds.likes(problem))
    want = truth.backward(problem.dy)
    for at, box in truth.stats.boxes():
        g, centered = want.g[box], truth.x[box] - truth.mean[box]
        size = np.abs(g) + np.abs(want.dy[box] * truth.gamma[box])  # a slope may be near zero
        dz, dzx = (np.reshape(a, truth.stats.grid)[at] for a in (sums.dz, sums.dzx))
        assert abs(dz - g.sum()) <= 1e-6 * size.sum()
        if norm.scale:
            assert abs(dzx - (g * centered).sum()) <= 1e-6 * (size * np.abs(centered)).sum()


@pytest.mark.parametrize("cut", [1, 3])
@pytest.mark.parametrize("memory", ["plain", "transposed"])
def test_two_ranks_with_halves_equal_the_concatenation(memory, cut):
    """What a synchronized batch norm does: merge moments, add gradient sums."""
    row = cases.Row("batch", ((5, 6, 7), 1), memory=memory, residual=True, activation="silu")
    problem = cases.Problem(replace(row, values="offset"))
    norm, parts = problem.norm, (slice(0, cut), slice(cut, 5))
    locals_ = [norm.moments(problem.x[part]) for part in parts]
    moments = locals_[0].merge(locals_[1])
    residual = problem.options["residual"]
    runs = [
        norm.apply(
            problem.x[part],
            moments,
            problem.gamma,
            problem.beta,
            residual=residual[part],
            activation="silu",
        )
        for part in parts
    ]
    y = np.concatenate([run[0] for run in runs])
    bounds.check_forward(problem.truth, y, moments, problem.x.dtype)
    sums = [
        norm.gradient_sums(problem.dy[part], run[1]) for part, run in zip(parts, runs, strict=True)
    ]
    total = sums[0] + sums[1]
    grads = [
        norm.gradient_apply(problem.dy[part], run[1], total)
        for part, run in zip(parts, runs, strict=True)
    ]
    whole = bounds.Grads(
        x=np.concatenate([g.x for g in grads]),
        residual=np.concatenate([g.residual for g in grads]),
        gamma=grads[0].gamma,
        beta=grads[0].beta,
    )
    bounds.check_backward(problem.truth, problem.dy, whole, bounds.likes(problem))


def test_moments_of_masked_input_equal_forward():
    problem = cases.Problem(cases.Row("group", ((3, 4, 5, 7), 1), mask="positions"))
    moments = problem.norm.moments(problem.x, axis=1, mask=problem.options["mask"])
    _, saved = problem.forward()
    for name in ("count", "mean", "m2"):
        a, b = getattr(moments, name), getattr(saved.statistics, name)
        assert np.array_equal(np.broadcast_to(a, np.shape(b)), b), name


def test_empty_rank_takes_part_in_halves():
    norm, rng = nk.BatchNorm(), cases.seed_of("empty rank")
    x = rng.standard_normal((4, 3, 2)).astype(np.float32)
    full, empty = norm.moments(x), norm.moments(x[:0])
    merged = full.merge(empty)
    assert np.array_equal(merged.mean, full.mean)
    assert np.array_equal(merged.var, full.var)
    y, saved = norm.apply(x[:0], merged)
    assert y.shape == (0, 3, 2)
    dy = rng.standard_normal(x.shape).astype(np.float32)
    _, full_saved = norm.apply(x, merged)
    sums = norm.gradient_sums(dy, full_saved) + norm.gradient_sums(dy[:0], saved)
    want = norm.backward(dy, norm.forward(x)[1]).x
    np.testing.assert_allclose(
        norm.gradient_apply(dy, full_saved, sums).x, want, rtol=1e-6, atol=1e-7
    )


@pytest.mark.parametrize("out", ["reversed x", "shifted x", "view of x", "residual of reversed x"])
def test_out_that_overlaps_an_input(out):
    buffer = np.random.default_rng(0).standard_normal((7, 4, 50)).astype(np.float32)
    x = buffer[:-1]
    residual = {"residual": x[::-1]} if "residual" in out else {}
    want, _ = nk.BatchNorm().forward(x.copy(), **{k: v.copy() for k, v in residual.items()})
    target = {"reversed x": x[::-1], "shifted x": buffer[1:], "view of x": x[:]}.get(out, x)
    y, saved = nk.BatchNorm().forward(x, out=target, **residual)
    np.testing.assert_array_equal(y, want)
    with pytest.raises(ValueError, match="overwritten"):
        nk.BatchNorm().backward(want, saved)


def test_an_ambiguous_gamma_is_refused():
    x = np.ones((6, 6, 8), np.float32)
    with pytest.raises(ValueError, match="may mean two things"):
        nk.TokenLayerNorm().forward(x, np.ones((6, 8), np.float32), axis=-1)


@pytest.mark.parametrize("axis", [True, 1.0])
def test_an_axis_is_refused_also_where_one_was_seen(axis):
    x = np.ones((4, 3), np.float32)
    nk.BatchNorm().forward(x, axis=1)
    nk.BatchNorm().forward(x, axis=np.int64(1))
    with pytest.raises(TypeError, match="axis"):
        nk.BatchNorm().forward(x, axis=axis)


def test_a_masked_array_is_refused():
    with pytest.raises(TypeError, match="masked array"):
        nk.BatchNorm().forward(np.ma.masked_equal(np.ones((4, 3)), 0))
