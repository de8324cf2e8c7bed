"""Passes over x for any array library that follows the array API standard.

Plain expressions on whole arrays: differentiable by the library's own means, traceable, on whatever
device x is. Statistics are taken in two passes, in float64 on NumPy and in float32 (float64 for
float64) elsewhere, where accelerators are fast at it.
"""

from __future__ import annotations

import importlib
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from normkit.coefficients import set_slope
from normkit.kernels.call import Array, Call, backpropagate_in_halves

__all__ = ["ArrayOps", "PortableBackend"]


@dataclass(frozen=True)
class ArrayOps:
    """``ops`` of activations (see :mod:`normkit.epilogues`) on whole arrays."""

    xp: Any
    dtype: Any  # of z
    special: Any  # where erf and erfc are

    def exp(self, z: Array) -> Array:
        return self.xp.exp(z)

    def tanh(self, z: Array) -> Array:
        return self.xp.tanh(z)

    def sigmoid(self, z: Array) -> Array:
        # exp of something never positive, so that nothing overflows.
        e = self.xp.exp(-self.xp.abs(z))
        return self.xp.where(z < 0, e, self.xp.ones_like(e)) / (1.0 + e)

    def erf(self, z: Array) -> Array:
        return self.special.erf(z)

    def normal_cdf(self, z: Array) -> Array:
        return 0.5 * self.special.erfc(z * -0.7071067811865476)

    def where(self, condition: Array, yes: Any, no: Any) -> Array:
        return self.xp.where(condition, self._array(yes, condition), self._array(no, condition))

    def maximum(self, a: Any, b: Any) -> Array:
        return self.xp.maximum(self._array(a, b), self._array(b, a))

    def minimum(self, a: Any, b: Any) -> Array:
        return self.xp.minimum(self._array(a, b), self._array(b, a))

    def _array(self, value: Any, like: Array) -> Array:
        """A number as an array of another's shape."""
        if hasattr(value, "dtype"):
            return value
        return self.xp.full_like(like, value, dtype=self.dtype)


def _special(xp: Any) -> Any:
    # An array of the library exists, so it is imported already.
    for library, module in _SPECIAL.items():
        if library in xp.__name__:
            return importlib.import_module(module)
    return _MathSpecial


_SPECIAL = {"torch": "torch.special", "jax": "jax.scipy.special", "cupy": "cupyx.scipy.special"}


class _MathSpecial:
    """erf for NumPy, which has none of its own."""

    erf = staticmethod(np.vectorize(math.erf, otypes=[np.float64]))
    erfc = staticmethod(np.vectorize(math.erfc, otypes=[np.float64]))


class PortableBackend:
    """:class:`normkit.kernels.call.Backend` on top of one array namespace."""

    name = "portable"

    def __init__(self, xp: Any) -> None:
        self.xp = xp
        self.special = _special(xp)
        self.numpy = xp.__name__.endswith("numpy") and "jax" not in xp.__name__

    def namespace(self) -> Any:
        return self.xp

    # --- helpers --------------------------------------------------------------------------------

    def _ops(self, call: Call) -> ArrayOps:
        return ArrayOps(self.xp, self._work(call.x), self.special)

    def statistics_dtype(self, call: Call) -> Any:
        return self._work(call.x)

    def constant(self, values: Array) -> Array:
        if "torch" in self.xp.__name__:
            return values.detach()
        if "jax" in self.xp.__name__:  # imported already, by whoever made the array
            return importlib.import_module("jax.lax").stop_gradient(values)
        return values

    def _work(self, x: Array) -> Any:
        wide = self.numpy or str(x.dtype).endswith("float64")
        return self.xp.float64 if wide else self.xp.float32

    def _cube(self, call: Call, values: Array) -> Array:
        wide = self.xp.astype(values, self._work(call.x)) if not self.numpy else values.astype("f8")
        layout = call.layout
        if layout.channels_last:
            return self.xp.reshape(wide, (layout.n, layout.l, layout.c))
        return layout.to_cube(self.xp, wide)

    def _turned(self, call: Call, values: Array) -> Array:
        """Between (N, C, L) and the order of the cube: channels that come last stay there.

        Compilers do not always see through a transposition of all elements.
        """
        return self.xp.permute_dims(values, (0, 2, 1)) if call.layout.channels_last else values

    def _gather(self, call: Call, values: Array) -> Array:
        if call.layout.channels_last and call.layout.whole_positions:
            values = self.xp.sum(values, axis=1, keepdims=True)
        return call.layout.gather(self.xp, self._turned(call, values))

    def _spread(self, call: Call, grid: Array) -> Array:
        return self._turned(call, call.layout.spread(self.xp, grid))

    def _input(self, call: Call) -> Array:
        """What is normalized: x, or its activation."""
        cube = self._cube(call, call.x)
        if call.input_activation is None:
            return cube
        return call.input_activation.value(cube, self._ops(call))

    def _result(self, call: Call, cube: Array, out: Array = None) -> Array:
        layout = call.layout
        if layout.channels_last:
            values = self.xp.reshape(cube, layout.shape)
        else:
            values = layout.from_cube(self.xp, cube)
        dtype = call.x.dtype
        values = values.astype(dtype) if self.numpy else self.xp.astype(values, dtype)
        if out is None:
            return values
        out[...] = values
        return out

    def _affine(self, call: Call, values: Array) -> Array:
        if values is None:
            return None
        work = self._work(call.x)
        values = values.astype(work) if self.numpy else self.xp.astype(values, work)
        return self._turned(call, call.layout.affine_to_cube(self.xp, values, _kind(call, values)))

    def _affine_gradient(self, call: Call, cube: Array, values: Array) -> Array:
        cube = self._turned(call, cube)
        gradient = call.layout.affine_from_cube(self.xp, cube, _kind(call, values))
        return (
            gradient.astype(values.dtype) if self.numpy else self.xp.astype(gradient, values.dtype)
        )

    def counts(self, call: Call) -> Any:
        layout, xp = call.layout, self.xp
        if call.mask is not None:
            cube = xp.broadcast_to(call.mask, (layout.n, layout.c, layout.l))
            return layout.gather(xp, xp.astype(cube, self._work(call.x)))
        if layout.even:
            return float(layout.set_size)
        counts = layout.set_counts()
        # asarray of a host list: shapes only, no data of the user's
        array = xp.asarray(counts, dtype=self._work(call.x), device=getattr(call.x, "device", None))
        return xp.reshape(array, (-1, 1, 1))

    def _valid(self, call: Call, cube: Array) -> Array:
        """Zero for the elements that do not count."""
        if call.mask is None:
            return cube
        # One zero for all: a whole array of them would cost another pass over memory.
        mask = self._turned(call, call.mask)
        return self.xp.where(mask, cube, self.xp.zeros_like(cube[:1, :1, :1]))

    # --- forward --------------------------------------------------------------------------------

    def moments(self, call: Call) -> tuple[Array, Array]:
        xp = self.xp
        cube = self._input(call)
        count = self.counts(call)
        safe = count + (count < 1)
        if not call.center:
            valid = self._valid(call, cube)
            m2 = self._gather(call, valid * valid)
            return xp.zeros_like(m2), m2
        mean = self._gather(call, self._valid(call, cube)) / safe
        apart = self._valid(call, cube - self._spread(call, mean))
        rest = self._gather(call, apart) / safe  # what rounding left in the mean
        m2 = self._gather(call, apart * apart) - count * rest * rest
        rest = xp.where(xp.isfinite(rest), rest, xp.zeros_like(rest))  # an infinite mean stays
        return mean + rest, xp.where(m2 < 0, xp.zeros_like(m2), m2)

    def normalize(self, call: Call, out: Array) -> tuple[Array, Array, Array]:
        mean, m2 = self.moments(call)
        slope = set_slope(
            self.xp, self._counts_array(call, m2), m2, call.eps, call.center, call.scale
        )
        return self.apply(call, mean, slope, self.xp.zeros_like(slope), out), mean, m2

    def _counts_array(self, call: Call, like: Array) -> Array:
        count = self.counts(call)
        return self.xp.full_like(like, count) if isinstance(count, float) else count

    # Where a channel of a sample has one slope, and one gamma, these are multiplied once for all of
    # its positions, and sums are taken over the positions first: compilers do not always move
    # factors out of loops. (benchmarks.jax_formula times the whole beside the plain formula.)

    def _in_lines(self, call: Call) -> bool:
        return call.layout.whole_positions and "element" not in _kinds(call)

    def _line_axes(self, call: Call) -> tuple[int, ...]:
        """Axes of the cube along which slope and gamma are the same."""
        layout = call.layout
        positions = 1 if layout.channels_last else 2
        alike = layout.all_samples and "sample" not in _kinds(call)
        return (0, positions) if alike else (positions,)

    def _apart(self, call: Call, mean: Array) -> Array:
        return self._input(call) - self._spread(call, mean)

    def _scale(self, call: Call, values: Array, slope: Array) -> Array:
        """values times slope and gamma."""
        gamma, slope = self._affine(call, call.gamma), self._spread(call, slope)
        if gamma is None:
            return values * slope
        return values * (slope * gamma) if self._in_lines(call) else values * slope * gamma

    def _before_activation(self, call: Call, apart: Array, slope: Array, offset: Array) -> Array:
        gamma, beta = self._affine(call, call.gamma), self._affine(call, call.beta)
        offset = self._spread(call, offset)
        if self._in_lines(call):
            offset = offset if gamma is None else offset * gamma
            z = self._scale(call, apart, slope) + (offset if beta is None else offset + beta)
        else:
            z = apart * self._spread(call, slope) + offset
            z = z if gamma is None else z * gamma
            z = z if beta is None else z + beta
        return z if call.residual is None else z + self._cube(call, call.residual)

    def apply(self, call: Call, mean: Array, slope: Array, offset: Array, out: Array) -> Array:
        z = self._before_activation(call, self._apart(call, mean), slope, offset)
        if call.activation is not None:
            z = call.activation.value(z, self._ops(call))
        return self._result(call, z, out)

    # --- backward -------------------------------------------------------------------------------

    def _dz(self, call: Call, dy: Array, apart: Array, slope: Array, offset: Array) -> Array:
        dz = self._cube(call, dy)
        if call.activation is None:
            return dz
        z = self._before_activation(call, apart, slope, offset)
        return dz * call.activation.slope(z, self._ops(call))

    def backpropagate(
        self, call: Call, dy: Array, mean: Array, m2: Array
    ) -> tuple[Array, Array, Array, Array]:
        return backpropagate_in_halves(self, call, dy, mean, m2)

    def gradient_sums(
        self, call: Call, dy: Array, mean: Array, slope: Array, offset: Array
    ) -> tuple[Array, Array, Array, Array]:
        apart = self._apart(call, mean)
        dz = self._dz(call, dy, apart, slope, offset)
        gamma, xp = self._affine(call, call.gamma), self.xp
        dzx = dz * apart
        if self._in_lines(call):
            across = self._line_axes(call)
            dz, dzx = (xp.sum(values, axis=across, keepdims=True) for values in (dz, dzx))
        dgamma = dbeta = None
        if gamma is not None:
            by_slope = dzx * self._spread(call, slope) + dz * self._spread(call, offset)
            dgamma = self._affine_gradient(call, by_slope, call.gamma)
        if call.beta is not None:
            dbeta = self._affine_gradient(call, dz, call.beta)
        if gamma is not None:
            dz, dzx = dz * gamma, dzx * gamma
        return self._gather(call, dz), self._gather(call, dzx), dgamma, dbeta

    def gradient_apply(
        self, call: Call, dy: Array, coefficients: tuple[Array, Array, Array, Array, Array]
    ) -> tuple[Array, Array]:
        mean, slope, offset, linear, constant = coefficients
        apart = self._apart(call, mean)
        dz = self._dz(call, dy, apart, slope, offset)
        through = self._spread(call, constant)
        if linear is not None:
            through = apart * self._spread(call, linear) + through
        dx = self._scale(call, dz, slope) + self._valid(call, through)
        if call.input_activation is not None:
            dx = dx * call.input_activation.slope(self._cube(call, call.x), self._ops(call))
        if call.residual is None:
            return self._result(call, dx), None
        return self._result(call, dx), dy if call.activation is None else self._result(call, dz)


def _kinds(call: Call) -> list[str]:
    return [_kind(call, values) for values in (call.gamma, call.beta) if values is not None]


def _kind(call: Call, values: Array) -> str:
    return call.layout.affine_kind(tuple(values.shape), "gamma or beta")
