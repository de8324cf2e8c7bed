"""The portable kernels on PyTorch tensors and JAX arrays: the same results, under jit and grad."""

from __future__ import annotations

import numpy as np
import pytest

import bounds
import cases
import normkit as nk
import oracle

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
jax = pytest.importorskip("jax", reason="JAX is not installed")
jnp = jax.numpy

ROWS = cases.pairwise(
    norm=tuple(cases.NORMS),
    shape=(((5, 6), 1), ((3, 4, 5, 7), 1), ((3, 5, 7, 4), -1), ((6, 5, 4), 0), ((2, 4, 700), 1)),
    dtype=cases.DTYPES,
    values=("normal", "offset", "outlier", "constant"),
    gamma=("channel", "none", "sample", "element"),
    beta=("channel", "none"),
    mask=("none", "positions", "full", "lengths", "empties"),
    residual=(False, True),
    activation=(None, "relu", "gelu", "hardswish", "silu"),
)


def to_torch(a):
    if a is None or np.asarray(a).dtype.kind in "bi":
        return a if a is None else torch.from_numpy(np.array(a))
    if str(a.dtype) == "bfloat16":
        return torch.from_numpy(np.array(a, np.float32)).to(torch.bfloat16)
    return torch.from_numpy(np.array(a))


def from_torch(a, dtype):
    if a is None:
        return None
    assert isinstance(a, torch.Tensor)
    assert str(a.dtype) == f"torch.{dtype}"
    return a.detach().to(torch.float64).numpy().astype(dtype)


def to_jax(a):
    return None if a is None else jnp.asarray(np.ascontiguousarray(a))


def from_jax(a, dtype):
    if a is None:
        return None
    assert isinstance(a, jax.Array)
    assert a.dtype == dtype
    return np.asarray(a)


def options_for(problem, to):
    return {
        k: v if isinstance(v, (int, str)) or v is None else to(v)
        for k, v in problem.options.items()
    }


def unit_of(statistics):
    return 2.0**-24 if "float32" in str(statistics.mean.dtype) else 2.0**-53


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_torch(row):
    problem = cases.Problem(row)
    truth = problem.truth
    x, gamma, beta, dy = map(to_torch, (problem.x, problem.gamma, problem.beta, problem.dy))
    y, saved = problem.norm.forward(x, gamma, beta, **options_for(problem, to_torch))
    grads = problem.norm.backward(dy, saved)
    unit, dtype = unit_of(saved.statistics), problem.x.dtype
    statistics = nk.Moments(
        *(np.asarray(getattr(saved.statistics, n)) for n in ("count", "mean", "m2"))
    )
    bounds.check_forward(truth, from_torch(y, dtype), statistics, dtype, unit)
    got = bounds.Grads(
        *(from_torch(getattr(grads, n), dtype) for n in ("x", "gamma", "beta", "residual"))
    )
    bounds.check_backward(truth, problem.dy, got, bounds.likes(problem), unit)


@pytest.mark.parametrize("row", [r for r in ROWS if r.dtype != "float64"][::2], ids=str)
def test_jax_under_jit_and_grad(row):
    problem = cases.Problem(row)
    truth, norm = problem.truth, problem.norm
    given = {"x": problem.x, "gamma": problem.gamma, "beta": problem.beta}
    given["residual"] = problem.options["residual"]
    given = {k: to_jax(v) for k, v in given.items() if v is not None}
    options = {k: v for k, v in options_for(problem, to_jax).items() if k != "residual"}
    dy = to_jax(problem.dy)

    def loss(given):
        y, _ = norm.forward(**given, **options)
        return (y * dy).astype(jnp.float32).sum(), y

    def by_hand(given):
        y, saved = norm.forward(**given, **options)
        grads = norm.backward(dy, saved)
        return y, {k: getattr(grads, k) for k in given}

    dtype = problem.x.dtype
    loose = {"unit": 2.0**-24, "flush": True}
    y, own = jax.jit(by_hand)(given)
    bounds.check_forward(truth, from_jax(y, dtype), None, dtype, **loose)
    own = bounds.Grads(**{k: from_jax(v, dtype) for k, v in own.items()})
    bounds.check_backward(truth, problem.dy, own, bounds.likes(problem), **loose)
    if row.dtype != "float32":
        return  # autodiff accumulates in the arrays' own dtype there
    (_, y), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(given)
    bounds.check_forward(truth, from_jax(y, dtype), None, dtype, **loose)
    want = truth.backward(problem.dy)
    for name, got in grads.items():
        expected = np.asarray(getattr(want, name), np.float64)
        scale = np.abs(np.asarray(getattr(own, name), np.float64)).max() + np.abs(problem.dy).max()
        if row.values == "normal":
            assert np.abs(np.asarray(got) - expected).max() < 1e-4 * scale, name


def test_jax_statistics_and_empty_batch():
    x = jnp.asarray(np.random.default_rng(0).standard_normal((6, 3, 4)), jnp.float32)
    _, saved = nk.BatchNorm().forward(x)
    np.testing.assert_allclose(saved.statistics.var, np.asarray(x).var((0, 2)), rtol=1e-5)
    y, saved = nk.BatchNorm().forward(x[:0])
    assert y.shape == (0, 3, 4)
    assert not np.any(saved.statistics.mean)
    assert not np.any(nk.BatchNorm().backward(y, saved).x)


def test_torch_autograd_flows_through_the_portable_forward():
    problem = cases.Problem(cases.Row("group", ((3, 4, 5), 1), "float64", activation="silu"))
    leaves = [to_torch(a).requires_grad_() for a in (problem.x, problem.gamma, problem.beta)]
    y, _ = problem.norm.forward(*leaves, activation="silu")
    y.backward(to_torch(problem.dy))
    want = problem.truth.backward(problem.dy)
    for leaf, expected in zip(leaves, (want.x, want.gamma, want.beta), strict=True):
        np.testing.assert_allclose(leaf.grad.numpy(), expected.astype(float), rtol=1e-9, atol=1e-12)


def test_results_stay_on_the_device_and_in_the_library():
    x = torch.ones((4, 3), device="meta")
    y, _ = nk.BatchNorm().forward(x)  # a tensor without memory: any copy to the host would raise
    assert y.device.type == "meta"
    assert y.shape == (4, 3)


@pytest.mark.parametrize("given", ["statistics", "renorm"])
@pytest.mark.parametrize("to", [to_torch, to_jax])
def test_given_statistics_and_renorm(to, given):
    problem = cases.Problem(cases.Row("batch", ((4, 6, 7), 1), gamma="sample", activation="silu"))
    rng = cases.seed_of(given)
    mean, var = (a.astype(np.float32) for a in (rng.standard_normal(6), rng.uniform(0.5, 2, 6)))
    if given == "statistics":
        options, ours = {"statistics": (mean, var)}, {"statistics": (to(mean), to(var))}
    else:
        options = {"renorm": {"mean": mean, "var": var, "r_max": 1.3, "d_max": 0.4}}
        ours = {"renorm": nk.Renorm(to(mean), to(var), r_max=1.3, d_max=0.4)}
    truth = oracle.Oracle(
        problem.sets, problem.x, problem.gamma, problem.beta, **problem.options, **options
    )
    x, gamma, beta, dy = map(to, (problem.x, problem.gamma, problem.beta, problem.dy))
    y, saved = problem.norm.forward(x, gamma, beta, activation="silu", **ours)
    loose = {"unit": 2.0**-24, "flush": True}
    bounds.check_forward(truth, np.asarray(y), None, problem.x.dtype, **loose)
    grads = problem.norm.backward(dy, saved)
    got = bounds.Grads(np.asarray(grads.x), np.asarray(grads.gamma), np.asarray(grads.beta))
    bounds.check_backward(truth, problem.dy, got, bounds.likes(problem), **loose)


@pytest.mark.parametrize("to", [to_torch, to_jax])
def test_halves(to):
    problem = cases.Problem(cases.Row("batch", ((4, 6, 7), 1), residual=True, activation="relu"))
    truth, norm = problem.truth, problem.norm
    x, gamma, beta, dy = map(to, (problem.x, problem.gamma, problem.beta, problem.dy))
    moments = norm.moments(x[:1]).merge(norm.moments(x[1:]))
    y, saved = norm.apply(
        x, moments, gamma, beta, residual=to(problem.options["residual"]), activation="relu"
    )
    grads = norm.gradient_apply(dy, saved, norm.gradient_sums(dy, saved))
    loose = {"unit": 2.0**-24, "flush": True}
    bounds.check_forward(truth, np.asarray(y), None, problem.x.dtype, **loose)
    names = ("x", "gamma", "beta", "residual")
    got = bounds.Grads(*(np.asarray(getattr(grads, name)) for name in names))
    bounds.check_backward(truth, problem.dy, got, bounds.likes(problem), **loose)


@pytest.mark.parametrize("to", [to_torch, to_jax])
def test_the_portable_kernels_are_chosen(to):
    text = nk.explain_backend(to(np.ones((4, 3), np.float32)), nk.BatchNorm())
    assert "portable" in text.lower()
