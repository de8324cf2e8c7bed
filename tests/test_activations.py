"""Every activation's value and slope: the oracle's against Python's math, ours against the oracle.

With the statistics given as mean 0 and variance 1 and eps = 0 the norm hands x on as it is, so
y is the activation of x and dx its slope times dy.
"""

from __future__ import annotations

import math

import numpy as np
import pytest

import bounds
import cases
import normkit as nk
import oracle

BARE, SETS = nk.BatchNorm(eps=0.0), oracle.Sets(eps=0.0)
GIVEN = (np.zeros(1), np.ones(1))
NAMES = [name for name in oracle.ACTIVATIONS if name]


def sigmoid(z):
    return 1 / (1 + math.exp(-z)) if z > 0 else math.exp(z) / (1 + math.exp(z))


PLAIN = {
    "relu": lambda z: max(z, 0.0),
    "leaky_relu": lambda z: z if z > 0 else 0.01 * z,
    "silu": lambda z: z * sigmoid(z),
    "gelu": lambda z: z * 0.5 * math.erfc(-z / math.sqrt(2)),
    "gelu_tanh": lambda z: z * sigmoid(2 * math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)),
    "sigmoid": sigmoid,
    "tanh": math.tanh,
    "hardswish": lambda z: z * min(max(z + 3, 0), 6) / 6,
}
POINTS = np.concatenate([np.linspace(-12, 12, 97) + 0.003, [1e-6, -1e-6, 1e-3, -20, 20, -30, 30]])


@pytest.mark.parametrize("name", NAMES)
def test_the_oracle_against_python(name):
    activation, plain = oracle.ACTIVATIONS[name], PLAIN[name]
    z = POINTS.astype(np.longdouble)
    want = np.array([plain(float(p)) for p in z])
    np.testing.assert_allclose(activation.value(z).astype(float), want, rtol=1e-12, atol=1e-17)
    h = np.longdouble(1e-6)
    slope = (activation.value(z + h) - activation.value(z - h)) / (2 * h)
    smooth = np.all([np.abs(z - kink) > 2 * h for kink in activation.kinks] or [z == z], axis=0)
    error = np.abs(activation.slope(z) - slope)[smooth]
    assert error.max() < 1e-10


def grid(dtype):
    z = np.concatenate([POINTS, np.linspace(-40, 40, 801) + 0.0007, [1e4, -1e4, 300.0, -300.0]])
    return z.astype(dtype)[:, None]


@pytest.mark.parametrize("dtype", cases.DTYPES)
@pytest.mark.parametrize("name", NAMES)
def test_compiled(name, dtype):
    x = grid(cases.dtype_of(dtype))
    truth = oracle.Oracle(SETS, x, activation=name, statistics=GIVEN)
    dy = cases.values("normal", x.shape, x.dtype, cases.seed_of(name))
    dy = cases.quiet_kinks(truth, dy)
    y, saved = BARE.forward(x, activation=name, statistics=GIVEN)
    bounds.check_forward(truth, y, None, x.dtype)
    bounds.check_backward(truth, dy, BARE.backward(dy, saved), {"x": x})


@pytest.mark.parametrize("library", ["torch", "jax"])
@pytest.mark.parametrize("name", NAMES)
def test_portable(name, library):
    xp = pytest.importorskip(
        {"torch": "torch", "jax": "jax.numpy"}[library], reason=f"{library} is not installed"
    )
    x = grid(np.float32)
    truth = oracle.Oracle(SETS, x, activation=name, statistics=GIVEN)
    dy = cases.values("normal", x.shape, x.dtype, cases.seed_of(name))
    dy = cases.quiet_kinks(truth, dy)
    given = tuple(xp.asarray(a.astype(np.float32)) for a in GIVEN)
    y, saved = BARE.forward(xp.asarray(x), activation=name, statistics=given)
    options = {"unit": 2.0**-24, "flush": library == "jax"}
    bounds.check_forward(truth, np.asarray(y), None, x.dtype, **options)
    grads = BARE.backward(xp.asarray(dy), saved)
    bounds.check_backward(truth, dy, grads, {"x": x}, **options)


@pytest.mark.parametrize("name", ["relu", "leaky_relu", "hardswish"])
def test_slopes_at_the_kink_are_the_left_ones(name):
    kink = -3.0 if name == "hardswish" else 0.0
    x = np.full((1, 1), kink)
    _, saved = BARE.forward(x, activation=name, statistics=GIVEN)
    left = {"relu": 0.0, "leaky_relu": 0.01, "hardswish": 0.0}[name]
    assert BARE.backward(np.ones((1, 1)), saved).x[0, 0] == left


@pytest.mark.parametrize("name", NAMES)
def test_nan_goes_through(name):
    x = np.array([[np.nan], [1.0]])
    y, _ = BARE.forward(x, activation=name, statistics=GIVEN)
    assert np.isnan(y[0, 0])
    assert np.isfinite(y[1, 0])


SOFTSIGN = nk.Activation(
    "softsign_of_the_tests",
    value=lambda z, ops: z / (1 + ops.maximum(z, -z)),
    slope=lambda z, ops: 1 / (1 + ops.maximum(z, -z)) ** 2,
)
WAVE = nk.Activation(  # every function of ops that a definition may use
    "wave_of_the_tests",
    value=lambda z, ops: ops.where(z > 0, ops.tanh(z), ops.erf(z)) + ops.exp(ops.minimum(z, 0.0)),
    slope=lambda z, ops: ops.where(
        z > 0, 1 - ops.tanh(z) ** 2, 1.1283791670955126 * ops.exp(-z * z) + ops.exp(z)
    ),
)


def softsign(z):
    return z / (1 + np.abs(z)), 1 / (1 + np.abs(z)) ** 2


def wave(z):
    low = np.minimum(z, 0)
    erf = np.vectorize(math.erf)(low)
    value = np.where(z > 0, np.tanh(z), erf) + np.exp(low)
    below = 2 / math.sqrt(math.pi) * np.exp(-low * low) + np.exp(low)
    return value, np.where(z > 0, 1 - np.tanh(z) ** 2, below)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("activation", "plain"), [(SOFTSIGN, softsign), (WAVE, wave)])
@pytest.mark.parametrize("library", ["numpy", "torch", "jax"])
def test_an_activation_of_the_users(activation, plain, dtype, library):
    nk.register_activation(activation)
    nk.register_activation(activation)  # again, as a reloaded module does
    if library != "numpy":
        module = {"torch": "torch", "jax": "jax.numpy"}[library]
        xp = pytest.importorskip(module, reason=f"{library} is not installed")
        if library == "jax" and dtype == "float64":
            pytest.skip("JAX has no float64 by default")
    else:
        xp = np
    x = (np.linspace(-6, 6, 241) + 0.001).astype(dtype)[:, None]
    given = tuple(xp.asarray(a.astype(dtype)) for a in GIVEN)
    y, saved = BARE.forward(xp.asarray(x), activation=activation.name, statistics=given)
    dx = BARE.backward(xp.asarray(np.ones_like(x)), saved).x
    tolerance = 2e-6 if dtype == "float32" else 1e-14
    value, slope = plain(x.astype(np.float64))
    np.testing.assert_allclose(np.asarray(y), value, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(np.asarray(dx), slope, rtol=tolerance, atol=tolerance)


def test_a_taken_name_is_refused():
    with pytest.raises(ValueError, match="relu"):
        nk.register_activation(nk.Activation("relu", lambda z, _: -z, lambda z, _: 0 * z - 1))
