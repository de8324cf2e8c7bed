"""Every activation's value and slope: the oracle's against Python's math, ours against the oracle.

Batch norm of zeros is zero, so what goes into the activation is the residual, as it is: y is its
activation, and the residual's gradient the slope times dy.
"""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
from numba import njit

import bounds
import cases
import normkit as nk
import oracle
from normkit.epilogues import find_activation
from normkit.kernels.cpu import along_backward, compiled, intrinsics

BARE = nk.BatchNorm()
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


def check(name, x, to=np.asarray, **bound):
    """y and the residual's gradient on x, computed on arrays that `to` makes."""
    zeros = np.zeros_like(x)
    truth = oracle.Oracle(oracle.Sets(), zeros, residual=x, activation=name)
    dy = cases.values("normal", x.shape, x.dtype, cases.seed_of(name))
    dy = cases.quiet_kinks(truth, dy)
    y, saved = BARE.forward(to(zeros), residual=to(x), activation=name)
    bounds.check_forward(truth, np.asarray(y), None, x.dtype, **bound)
    grads = BARE.backward(to(dy), saved)
    got = bounds.Grads(np.asarray(grads.x), residual=np.asarray(grads.residual))
    bounds.check_backward(truth, dy, got, {"x": x}, **bound)


# float32 stands for the narrower dtypes: activations are evaluated in float64 for all of them.
# In float64 these two use every elementary function that there is.
COMPILED = [(name, "float32") for name in NAMES]
COMPILED += [(name, "float64") for name in ("gelu", "tanh")]


@pytest.mark.parametrize(("name", "dtype"), COMPILED)
def test_compiled(name, dtype):
    check(name, grid(dtype))


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("library", ["torch", "jax"])
@pytest.mark.parametrize("name", NAMES)
def test_portable(name, library, dtype):
    module = {"torch": "torch", "jax": "jax.numpy"}[library]
    xp = pytest.importorskip(module, reason=f"{library} is not installed")
    check(name, grid(dtype), xp.asarray, unit=2.0**-24, flush=library == "jax")


@pytest.mark.parametrize("name", NAMES)
def test_portable_numpy(name):
    """A mask that counts everything leaves NumPy arrays to the portable kernels."""
    for dtype in ("float32", "float64"):
        x = grid(dtype)
        y, saved = BARE.forward(
            np.zeros_like(x), residual=x, activation=name, mask=np.ones(len(x), bool)
        )
        truth = oracle.Oracle(oracle.Sets(), np.zeros_like(x), residual=x, activation=name)
        bounds.check_forward(truth, y, saved.statistics, x.dtype)


@pytest.mark.parametrize("name", ["relu", "leaky_relu", "hardswish"])
def test_slopes_at_the_lower_kink_are_the_left_ones(name):
    kink = -3.0 if name == "hardswish" else 0.0
    x = np.full((2, 1), kink, np.float32)
    _, saved = BARE.forward(np.zeros_like(x), residual=x, activation=name)
    left = np.float32({"relu": 0.0, "leaky_relu": 0.01, "hardswish": 0.0}[name])
    assert np.all(BARE.backward(np.ones_like(x), saved).residual == left)


@pytest.mark.parametrize("name", NAMES)
def test_nan_goes_through(name):
    x = np.array([[np.nan], [1.0]], np.float32)
    y, _ = BARE.forward(np.zeros_like(x), residual=x, activation=name)
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


@pytest.mark.parametrize(
    ("activation", "plain", "dtype"), [(SOFTSIGN, softsign, "float64"), (WAVE, wave, "float32")]
)
@pytest.mark.parametrize("library", ["numpy", "torch", "jax"])
def test_an_activation_of_the_users(activation, plain, dtype, library):
    nk.register_activation(activation)
    nk.register_activation(activation)  # again, as a reloaded module does
    module = {"numpy": "numpy", "torch": "torch", "jax": "jax.numpy"}[library]
    xp = pytest.importorskip(module, reason=f"{library} is not installed")
    dtype = "float32" if library == "jax" else dtype  # it has no float64 by default
    x = (np.linspace(-6, 6, 241) + 0.001).astype(dtype)[:, None]
    y, saved = BARE.forward(
        xp.asarray(np.zeros_like(x)), residual=xp.asarray(x), activation=activation.name
    )
    slope_of = BARE.backward(xp.asarray(np.ones_like(x)), saved).residual
    tolerance = 2e-6 if dtype == "float32" else 1e-14
    value, slope = plain(x.astype(np.float64))
    np.testing.assert_allclose(np.asarray(y), value, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(np.asarray(slope_of), slope, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("activation", [find_activation("gelu"), WAVE], ids=["gelu", "wave"])
def test_loops_call_no_functions(activation):
    """With a call left in them they fill no vector registers, and take several times as long."""
    nk.register_activation(activation)
    variant = intrinsics.Variant("float32", activation.name, False, False, activation.digest)
    signature = variant, *compiled._SIGNATURES["backpropagate"]
    fresh = njit(along_backward.backpropagate.py_func)  # one from the cache shows no code
    fresh.compile(signature)
    code = fresh.inspect_llvm(signature)
    called = re.findall(r'call [^\n]*@"?(\w+)', code)
    assert any("backpropagate" in name for name in called)  # by its wrapper: names are found
    elementwise = "epilogues", "mathops", "test_activations", "_dz", "_standardized", "read_input"
    assert [name for name in called if any(part in name for part in elementwise)] == []


def test_a_taken_name_is_refused():
    with pytest.raises(ValueError, match="relu"):
        nk.register_activation(nk.Activation("relu", lambda z, _: -z, lambda z, _: 0 * z - 1))
