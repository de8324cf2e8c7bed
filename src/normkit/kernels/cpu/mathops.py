"""``ops`` for the compiled kernels: elementary functions whose loops vectorize.

libm's ``exp`` is a call an element. For float32 and narrower results these evaluate polynomials in
float64, branch-free, with a relative error below 1e-11; float64 results use libm itself.
The erfc polynomial is a Chebyshev fit of log(exp(x^2) erfc(x) / t), t = 1 / (1 + x / 2), on
x >= 0 (largest relative error 1.2e-12), rewritten in powers of 2 t - 1.
"""

from __future__ import annotations

import math
from typing import Any

from numba.extending import overload, overload_method, register_jitable

from normkit.epilogues import find_activation
from normkit.kernels.cpu.intrinsics import Variant, power_of_two
from normkit.kernels.cpu.jit import INLINED, inlined

_LOG2_E = 1.4426950408889634
_LN2_HIGH, _LN2_LOW = 0.6931471803691238, 1.9082149292705877e-10
_ROUND = 6755399441055744.0  # adding and subtracting 1.5 * 2**52 rounds to a whole number
_SQRT_HALF = 0.7071067811865476


# No reassociation here: it would fold the rounding trick away.
@inlined(fastmath={"contract"})
def _fast_exp(x):
    x = 709.0 if x > 709.0 else x
    x = -708.0 if x < -708.0 else x
    n = (x * _LOG2_E + _ROUND) - _ROUND
    r = (x - n * _LN2_HIGH) - n * _LN2_LOW
    p = 2.505210838544172e-08
    p = p * r + 2.755731922398589e-07
    p = p * r + 2.7557319223985893e-06
    p = p * r + 2.48015873015873e-05
    p = p * r + 0.0001984126984126984
    p = p * r + 0.001388888888888889
    p = p * r + 0.008333333333333333
    p = p * r + 0.041666666666666664
    p = p * r + 0.16666666666666666
    p = p * r + 0.5
    p = p * r + 1.0
    p = p * r + 1.0
    return p * power_of_two(n)


@inlined(fastmath={"contract"})
def _fast_erfc_positive(x):
    t = 1.0 / (1.0 + 0.5 * x)
    s = 2.0 * t - 1.0
    p = -9.025517118030167e-07
    p = p * s + 1.5687764951100847e-07
    p = p * s + 7.222541634692981e-06
    p = p * s - 4.39188303491533e-06
    p = p * s - 2.8380769892526578e-05
    p = p * s + 3.5859172062175566e-05
    p = p * s + 7.004266995762137e-05
    p = p * s - 0.0001766712121690025
    p = p * s - 9.31205688442328e-05
    p = p * s + 0.0006745333351239995
    p = p * s - 0.00014641402083097427
    p = p * s - 0.0023459977357010962
    p = p * s + 0.001758959516828556
    p = p * s + 0.008824960629300866
    p = p * s - 0.009872691406762155
    p = p * s - 0.04689561143888135
    p = p * s + 0.047343306903988656
    p = p * s + 0.672643223997183
    p = p * s - 0.6717940840570036
    return t * _fast_exp(p - x * x)


@inlined(fastmath={"contract"})
def _fast_erfc(x):
    half = _fast_erfc_positive(abs(x))
    return 2.0 - half if x < 0.0 else half


@inlined(fastmath={"contract"})
def _fast_erf(x):
    square = x * x
    series = 1.0 / 216.0 - square / 1320.0
    series = 1.0 - square * (1 / 3 - square * (0.1 - square * (1 / 42 - square * series)))
    near = 1.1283791670955126 * x * series
    far = 1.0 - _fast_erfc_positive(abs(x))
    far = -far if x < 0.0 else far
    return near if abs(x) < 0.1 else far


@inlined(fastmath={"contract"})
def _fast_tanh(x):
    square = x * x
    near = x * (1.0 - square * (1 / 3 - square * (2 / 15 - square * (17 / 315))))
    far = 1.0 - 2.0 / (_fast_exp(2.0 * x) + 1.0)
    return near if abs(x) < 0.02 else far


def _exact_normal_cdf(x):
    return 0.5 * math.erfc(-_SQRT_HALF * x)


@inlined(fastmath={"contract"})
def _fast_normal_cdf(x):
    return 0.5 * _fast_erfc(-_SQRT_HALF * x)


@inlined(fastmath={"contract"})
def _fast_sigmoid(x):
    return 1.0 / (1.0 + _fast_exp(-x))


def _exact_sigmoid(x):
    return 1.0 / (1.0 + math.exp(-x))


def _method(name: str, fast: Any, exact: Any) -> None:
    """``ops.name(z)`` inside a kernel: exact where the results are float64."""
    exact = register_jitable(**INLINED)(exact)

    @overload_method(Variant, name)
    def choose(ops, z):
        function = exact if ops.dtype == "float64" else fast
        return lambda ops, z: function(z)


_method("exp", _fast_exp, lambda z: math.exp(z))
_method("tanh", _fast_tanh, lambda z: math.tanh(z))
_method("erf", _fast_erf, lambda z: math.erf(z))
_method("sigmoid", _fast_sigmoid, _exact_sigmoid)
_method("normal_cdf", _fast_normal_cdf, _exact_normal_cdf)


@overload_method(Variant, "where")
def _where(ops, condition, yes, no):
    return lambda ops, condition, yes, no: yes if condition else no


@overload_method(Variant, "maximum")
def _maximum(ops, a, b):
    return lambda ops, a, b: b if a < b else a  # NaN in a stays


@overload_method(Variant, "minimum")
def _minimum(ops, a, b):
    return lambda ops, a, b: b if a > b else a


def activate(variant, z):
    """The variant's activation of z, a float64."""
    raise RuntimeError("only for compiled code")


def activation_slope(variant, z):
    """The derivative of the variant's activation at z."""
    raise RuntimeError("only for compiled code")


def activate_input(variant, z):
    """The variant's input activation of z, a float64."""
    raise RuntimeError("only for compiled code")


def input_slope(variant, z):
    """The derivative of the variant's input activation at z."""
    raise RuntimeError("only for compiled code")


def _formula(which: str, field: str) -> Any:
    def choose(variant, z):
        activation = find_activation(getattr(variant, which) or None)
        if activation is None:
            return lambda variant, z: z
        formula = register_jitable(**INLINED)(getattr(activation, field))
        return lambda variant, z: formula(z, variant)

    return choose


overload(activate, jit_options=INLINED)(_formula("activation", "value"))
overload(activation_slope, jit_options=INLINED)(_formula("activation", "slope"))
overload(activate_input, jit_options=INLINED)(_formula("input_activation", "value"))
overload(input_slope, jit_options=INLINED)(_formula("input_activation", "slope"))
