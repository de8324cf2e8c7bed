"""What lies between two passes over a set, compiled: the formulas are those of
:mod:`normkit.moments` and :mod:`normkit.coefficients`."""

from __future__ import annotations

import math

import numpy as np

from normkit.coefficients import gradient_line as _gradient_line
from normkit.coefficients import inverse_std as _inverse_std
from normkit.kernels.cpu.jit import part
from normkit.moments import from_sums as _from_sums

from_sums, inverse_std, gradient_line = (
    part(error_model="numpy")(function) for function in (_from_sums, _inverse_std, _gradient_line)
)


@part
def is_far(count, first, second):
    """Whether the pilot lies so far from the mean (a deviation) that digits were lost."""
    return first * first > 0.5 * count * second


@part
def set_moments(count, pilot, first, second, center):
    """Mean and M2 of a set; an uncentred norm's mean is zero and its M2 the sum of squares."""
    if center:
        return from_sums(count, pilot, first, second)
    return 0.0, second


@part
def set_slope(m2, count, eps, center, scale):
    """:func:`normkit.coefficients.set_slope` of one set that is not empty."""
    if center and count < 2.0:
        return 0.0
    return inverse_std(m2 / count, eps) if scale else 1.0


@part
def remainder(mean, rounded):
    """What rounding the mean to the compute dtype left behind, for the additive coefficient."""
    rest = mean - np.float64(rounded)
    return rest if math.isfinite(rest) else 0.0
