"""The suite's checks reject what they must: wrong backwards and forwards are planted and caught.

With unit gamma and a constant dy the gradient of a centred norm is zero, so a backward that
returns zeros would pass; that is why every gradient test draws both at random.
"""

from __future__ import annotations

import numpy as np
import pytest

import bounds
import cases
import normkit as nk
import oracle

ROWS = [
    cases.Row(norm, ((4, 6, 7), 1), dtype, gamma=gamma, residual=True)
    for norm, gamma in (
        ("batch", "channel"),
        ("ghost", "sample"),
        ("layer", "element"),
        ("tokens", "channel"),
        ("instance", "channel"),
        ("group", "channel"),
        ("batch-group", "sample"),
    )
    for dtype in cases.DTYPES
]


def dx(truth, g, *, mean=1.0, var=1.0, count=0):
    """dx with its two indirect terms weighted, and `count` elements fewer in every set."""
    shrink = np.maximum(truth.spread(truth.stats.count), 1)
    shrink = shrink / (shrink - count)
    indirect = mean * g.through_mean + var * truth.x_hat * g.through_var
    return truth.view.back((g.g - shrink * indirect) / truth.s)


# name: what the broken backward returns in place of dx (or of another gradient)
BROKEN_X = {
    "zeros": lambda t, _: np.zeros(t.view.shape),
    "without the variance term": lambda t, g: dx(t, g, var=0),
    "without the mean term": lambda t, g: dx(t, g, mean=0),
    "n-1": lambda t, g: dx(t, g, count=1),
    "statistics taken as constants": lambda t, g: dx(t, g, mean=0, var=0),
    "sign of the variance term": lambda t, g: dx(t, g, var=-1),
    "gamma forgotten": lambda t, g: dx(t, g) / t.view.back(t.gamma),
    "eps forgotten": lambda t, g: dx(t, g) * t.view.back(t.s / t.std),
    "twice": lambda t, g: 2 * dx(t, g),
}
BROKEN_AFFINE = {
    "zeros": lambda want: (0 * want.gamma, 0 * want.beta),
    "swapped": lambda want: (want.beta, want.gamma),
    "mean for sum": lambda want: (want.gamma / 7, want.beta / 7),
    "negative": lambda want: (-want.gamma, -want.beta),
}


def planted(problem, want, **wrong):
    """Gradients in the right shapes and dtypes: the oracle's, or what is planted over them."""
    like = {"x": problem.x, "gamma": problem.gamma, "beta": problem.beta, "residual": problem.x}
    values = {name: np.asarray(wrong.get(name, getattr(want, name)), np.float64) for name in like}
    return bounds.Grads(**{name: values[name].astype(like[name].dtype) for name in like})


def prepare(row):
    problem = cases.Problem(row)
    if row.values == "normal":  # a spread at which eps = 1e-5 is seen in every dtype
        problem.x = (problem.x.astype(np.float64) * 0.02).astype(problem.x.dtype)
    truth = problem.truth
    return problem, truth, truth.backward(problem.dy)


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_the_truth_passes(row):
    problem, truth, want = prepare(row)
    bounds.check_backward(truth, problem.dy, planted(problem, want), bounds.likes(problem))


@pytest.mark.parametrize("row", ROWS, ids=str)
@pytest.mark.parametrize("name", list(BROKEN_X))
def test_a_broken_dx_is_rejected(name, row):
    problem, truth, want = prepare(row)
    grads = planted(problem, want, x=BROKEN_X[name](truth, want))
    with pytest.raises(AssertionError, match=r"dx: .* wrong"):
        bounds.check_backward(truth, problem.dy, grads, bounds.likes(problem))


@pytest.mark.parametrize("row", ROWS[:4], ids=str)
@pytest.mark.parametrize("name", list(BROKEN_AFFINE))
def test_broken_gamma_and_beta_are_rejected(name, row):
    problem, truth, want = prepare(row)
    gamma, beta = BROKEN_AFFINE[name](want)
    for wrong in ({"gamma": gamma}, {"beta": beta}):
        grads = planted(problem, want, **wrong)
        with pytest.raises(AssertionError, match=r"d(gamma|beta): .* wrong"):
            bounds.check_backward(truth, problem.dy, grads, bounds.likes(problem))


def test_a_planted_backward_fails_the_shared_row_check():
    """check_problem, which test_backward runs on every row, with a broken library behind it."""
    problem = cases.Problem(cases.Row())

    def zeros(dy, saved):
        grads = problem.norm.backward(dy, saved)
        return bounds.Grads(np.zeros_like(grads.x), grads.gamma, grads.beta, grads.residual)

    bounds.check_problem(cases.Problem(cases.Row()))
    with pytest.raises(AssertionError, match=r"dx: .* wrong"):
        bounds.check_problem(problem, backward=zeros)


def naive_variance(x):
    """E[x^2] - E[x]^2 in float32, the textbook's way to lose everything."""
    mean = x.mean(axis=(0, 2), dtype=np.float32)
    return mean, (x * x).mean(axis=(0, 2), dtype=np.float32) - mean * mean


BROKEN_FORWARD = {
    "E[x^2]-E[x]^2": naive_variance,
    "unbiased variance": lambda x: (x.mean((0, 2), np.float64), x.var((0, 2), np.float64, ddof=1)),
    "float32 mean": lambda x: (x.mean((0, 2)), x.var((0, 2), np.float64)),
}


@pytest.mark.parametrize("name", list(BROKEN_FORWARD))
def test_broken_statistics_are_rejected(name):
    problem = cases.Problem(cases.Row(values="offset"))
    mean, var = (np.asarray(a, np.float64) for a in BROKEN_FORWARD[name](problem.x))
    count = np.full(6, 28.0)
    wrong = nk.Moments(count, mean, var * count)
    x_hat = (problem.x - mean[:, None]) / np.sqrt(np.maximum(var, 0) + 1e-5)[:, None]
    y = (x_hat * problem.gamma[:, None] + problem.beta[:, None]).astype(np.float32)
    right = oracle.Oracle(problem.sets, problem.x, problem.gamma, problem.beta)
    with pytest.raises(AssertionError, match=r"y: .* wrong"):
        bounds.check_forward(right, y, None, problem.x.dtype)
    good = right.view.back(right.y).astype(np.float64).astype(np.float32)
    bounds.check_forward(right, good, None, problem.x.dtype)
    with pytest.raises(AssertionError, match=r"(mean|var): .* wrong"):
        bounds.check_forward(right, good, wrong, problem.x.dtype)


def test_the_trap_itself():
    """Unit gamma and constant dy: zeros are right, which is why no test uses them."""
    x = cases.values("normal", (8, 3, 4), np.float64, cases.seed_of("trap"))
    truth = oracle.Oracle(oracle.Sets(), x, np.ones(3), np.zeros(3))
    assert np.abs(truth.backward(np.ones_like(x)).x).max() < 1e-12
