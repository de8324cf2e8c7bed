"""norm.trace: the nine steps of batch norm and their gradients, to 1e-12 in float64."""

from __future__ import annotations

import numpy as np
import pytest

import cases
import normkit as nk
import oracle

NAMES = [
    "mean",
    "centered",
    "squared",
    "var",
    "std",
    "inverse",
    "normalized",
    "scaled",
    "out",
    "d_out",
    "d_scaled",
    "d_normalized",
    "d_inverse",
    "d_std",
    "d_var",
    "d_squared",
    "d_centered",
    "d_mean",
    "dx",
    "d_gamma",
    "d_beta",
]


def chain(x, gamma, beta, dy, eps):
    """The graph written out on (samples and positions, channels)."""
    v, m = {}, len(x)
    v["mean"] = x.mean(axis=0)
    v["centered"] = x - v["mean"]
    v["squared"] = v["centered"] ** 2
    v["var"] = v["squared"].mean(axis=0)
    v["std"] = np.sqrt(v["var"] + eps)
    v["inverse"] = 1 / v["std"]
    v["normalized"] = v["centered"] * v["inverse"]
    v["scaled"] = gamma * v["normalized"]
    v["out"] = v["scaled"] + beta
    v["d_out"] = v["d_scaled"] = dy
    v["d_beta"] = dy.sum(axis=0)
    v["d_gamma"] = (dy * v["normalized"]).sum(axis=0)
    v["d_normalized"] = dy * gamma
    v["d_inverse"] = (v["d_normalized"] * v["centered"]).sum(axis=0)
    v["d_std"] = -v["d_inverse"] / v["std"] ** 2
    v["d_var"] = v["d_std"] / (2 * v["std"])
    v["d_squared"] = np.broadcast_to(v["d_var"] / m, x.shape)
    v["d_centered"] = v["d_normalized"] * v["inverse"] + 2 * v["centered"] * v["d_squared"]
    v["d_mean"] = -v["d_centered"].sum(axis=0)
    v["dx"] = v["d_centered"] + v["d_mean"] / m
    return v


def flat(a, shape, axis):
    """An array of x's shape as (rest, channels), one of statistics as (channels,)."""
    a, c = np.asarray(a), shape[axis]
    if a.size == c:
        return a.reshape(c)
    return np.moveaxis(np.broadcast_to(a, shape), axis, -1).reshape(-1, c)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("eps", [1e-5, 0.1])
@pytest.mark.parametrize(("shape", "axis"), [((8, 3), 1), ((4, 3, 5), 1), ((4, 5, 6, 3), -1)])
def test_every_step_and_gradient(shape, axis, eps, dtype):
    rng = cases.seed_of(shape, eps)
    x, dy = (rng.standard_normal(shape).astype(dtype) for _ in range(2))
    gamma, beta = (rng.standard_normal(3).astype(dtype) for _ in range(2))
    trace = nk.BatchNorm(eps=eps).trace(x, gamma, beta, dy, axis=axis)
    wide = [np.asarray(a, np.longdouble) for a in (x, gamma, beta, dy)]
    want = chain(flat(wide[0], shape, axis), wide[1], wide[2], flat(wide[3], shape, axis), eps)
    for name in NAMES:
        got = getattr(trace, name)
        assert np.asarray(got).dtype == np.float64, name
        np.testing.assert_allclose(
            flat(got, shape, axis), want[name].astype(float), rtol=1e-12, atol=1e-12, err_msg=name
        )


def test_equals_the_closed_form_and_the_oracle():
    problem = cases.Problem(cases.Row("batch", ((5, 4, 6), 1), "float64"))
    trace = problem.norm.trace(problem.x, problem.gamma, problem.beta, problem.dy)
    y, saved = problem.forward()
    grads, want = problem.norm.backward(problem.dy, saved), problem.truth.backward(problem.dy)
    truth = problem.truth.view.back(problem.truth.y)
    for a, b, c in (
        (trace.out, y, truth),
        (trace.dx, grads.x, want.x),
        (trace.d_gamma, grads.gamma, want.gamma),
        (trace.d_beta, grads.beta, want.beta),
    ):
        for other in (b, c.astype(float)):
            np.testing.assert_allclose(
                np.reshape(a, np.shape(other)), other, rtol=1e-12, atol=1e-12
            )


def test_steps_come_in_the_order_of_the_computation():
    rng = cases.seed_of("order")
    x, dy = rng.standard_normal((2, 6, 3))
    trace = nk.BatchNorm().trace(x, np.ones(3), np.zeros(3), dy)
    steps = list(trace)
    assert [step.name for step in steps] == list(NAMES[:9])
    for step in steps:
        assert step.value is getattr(trace, step.name)
        assert step.gradient is getattr(trace, f"d_{step.name}")
        assert step.formula


def test_gradients_are_those_of_the_steps():
    """Nudging a step's value by h changes the loss by its gradient times h."""
    rng = cases.seed_of("nudge")
    x, dy = rng.standard_normal((2, 6, 3))
    gamma, beta = rng.standard_normal((2, 3))
    trace = nk.BatchNorm(eps=1e-3).trace(x, gamma, beta, dy)
    h = 1e-6

    def loss(inverse=0.0, var=0.0, mean=0.0):
        centered = x - (x.mean(axis=0) + mean)
        v = (centered**2).mean(axis=0) + var
        return (dy * (gamma * centered * (1 / np.sqrt(v + 1e-3) + inverse) + beta)).sum(axis=0)

    for name in ("inverse", "var", "mean"):
        slope = (loss(**{name: h}) - loss(**{name: -h})) / (2 * h)
        np.testing.assert_allclose(
            np.ravel(getattr(trace, f"d_{name}")), slope, rtol=1e-6, atol=1e-7
        )


def test_the_oracle_agrees_with_the_chain():
    rng = cases.seed_of("chain")
    x, dy = rng.standard_normal((2, 9, 4))
    gamma, beta = rng.standard_normal((2, 4))
    want = chain(x, gamma, beta, dy, 1e-5)
    grads = oracle.Oracle(oracle.Sets(), x, gamma, beta).backward(dy)
    np.testing.assert_allclose(grads.x.astype(float), want["dx"], rtol=1e-12, atol=1e-12)
