"""All gradients against the oracle, with random dy and random gamma, and central differences."""

from __future__ import annotations

import numpy as np
import pytest

import bounds
import cases


@pytest.mark.parametrize("row", cases.PLAIN_ROWS + cases.LARGE_ROWS, ids=str)
def test_row(row):
    bounds.check_problem(cases.Problem(row))


@pytest.mark.parametrize("bad", ["nan", "inf"])
@pytest.mark.parametrize("name", list(cases.NORMS))
def test_nan_stays_in_its_set(name, bad):
    row = cases.Row(name, ((4, 6, 7), 1), "float32", bad, gamma="sample", beta="channel")
    problem = cases.Problem(row)
    truth, (_, saved) = problem.truth, problem.forward()
    grads, want = problem.norm.backward(problem.dy, saved), truth.backward(problem.dy)
    for got, expected in ((grads.x, want.x), (grads.gamma, want.gamma), (grads.beta, want.beta)):
        assert np.array_equal(np.isnan(got), np.isnan(expected.astype(np.float64)))


@pytest.mark.parametrize(("masked", "activation"), [(False, None), (True, "gelu")])
@pytest.mark.parametrize("name", list(cases.NORMS))
def test_central_differences(name, masked, activation):
    row = cases.Row(name, ((3, 4, 5), 1), "float64", residual=masked, activation=activation)
    problem = cases.Problem(row)
    if masked:
        problem.options["mask"] = cases.seed_of(name).random((3, 5)) < 0.7
    _y, saved = problem.forward()
    grads = problem.norm.backward(problem.dy, saved)
    inputs = {"x": problem.x, "gamma": problem.gamma, "beta": problem.beta}
    inputs["residual"] = problem.options.pop("residual")

    def loss(**changed):
        given = inputs | changed
        args = given["x"], given["gamma"], given["beta"]
        y, _ = problem.norm.forward(*args, residual=given["residual"], **problem.options)
        return float((y * problem.dy).sum())

    for key, value in inputs.items():
        if value is None:
            continue
        direction = cases.seed_of(row, key).standard_normal(value.shape)
        h = 1e-5
        change = loss(**{key: value + h * direction}) - loss(**{key: value - h * direction})
        want = float((getattr(grads, key) * direction).sum())
        scale = float(np.abs(getattr(grads, key) * direction).sum())
        assert abs(change / (2 * h) - want) < 1e-7 * scale, key


def test_backward_twice_gives_the_same():
    problem = cases.Problem(cases.Row(activation="silu", residual=True))
    _, saved = problem.forward()
    first, second = (problem.norm.backward(problem.dy, saved) for _ in range(2))
    for name in ("x", "gamma", "beta", "residual"):
        assert np.array_equal(getattr(first, name), getattr(second, name))


def test_absent_inputs_have_no_gradient():
    problem = cases.Problem(cases.Row(gamma="none", beta="none"))
    _, saved = problem.forward()
    grads = problem.norm.backward(problem.dy, saved)
    assert grads.x.shape == problem.shape
    assert grads.gamma is None
    assert grads.beta is None
    assert grads.residual is None
