"""The factor that makes up for what an activation does to the variance."""

from __future__ import annotations

import math
from functools import lru_cache
from types import SimpleNamespace

import numpy as np

from normkit.epilogues import Activation, find_activation
from normkit.errors import OptionError

__all__ = ["activation_gain"]


def activation_gain(activation: str | None) -> float:
    """1 / √Var[f(z)] for z from N(0, 1): what brings activations back to unit variance.

    Brock et al. 2021, "Characterizing signal propagation to close the performance gap in
    unnormalized ResNets", section 4. √(2 / (1 − 1/π)) for ReLU. Integrated numerically, so
    activations of your own that :func:`normkit.register_activation` knows have one too.

    Args:
        activation: its name; None is the identity.

    Raises:
        OptionError: no such name; or the activation is constant.

    >>> round(activation_gain("relu"), 6), round(activation_gain(None), 6)
    (1.712859, 1.0)
    """
    known = find_activation(activation)
    return 1.0 if known is None else _gain_of(known)


#: What activations are written in (see :mod:`normkit.epilogues`), here for one array of float64.
_OPS = SimpleNamespace(
    exp=np.exp,
    tanh=np.tanh,
    sigmoid=lambda z: 0.5 + 0.5 * np.tanh(0.5 * z),
    erf=np.vectorize(math.erf, otypes=[np.float64]),
    normal_cdf=np.vectorize(lambda z: 0.5 * math.erfc(-z / math.sqrt(2.0)), otypes=[np.float64]),
    where=np.where,
    maximum=np.maximum,
    minimum=np.minimum,
)


@lru_cache(maxsize=64)
def _gain_of(activation: Activation) -> float:
    # Simpson's rule. The density is below 1e-31 outside; the kinks of the usual activations, at
    # whole numbers, lie between two panels, so that they cost no accuracy.
    panels, end = 12 * 512, 12.0
    z = np.linspace(-end, end, 2 * panels + 1)
    rule = np.ones_like(z)
    rule[1:-1:2], rule[2:-1:2] = 4.0, 2.0
    rule *= np.exp(-0.5 * z * z) * (end / panels / 3.0 / math.sqrt(2.0 * math.pi))
    values = np.asarray(activation.value(z, _OPS), np.float64)
    mean = np.sum(rule * values)
    var = float(np.sum(rule * (values - mean) ** 2))
    if not 1e-12 < var < math.inf:
        raise OptionError(
            f"Activation {activation.name!r} has no gain",
            received=f"a variance of {var:.3g} under a standard normal input",
            expected="a finite one above 0",
            remedy="Pass gamma= as a number.",
        )
    return 1.0 / math.sqrt(var)
