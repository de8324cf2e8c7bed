"""Batch norm's computational graph, every intermediate value and every intermediate gradient.

Forward in nine steps, backward through them one at a time by the chain rule (Ioffe & Szegedy 2015,
section 3, taken apart). For understanding and for checking: arrays as large as x are kept for every
step. The closed form that the kernels use is derived from it in the documentation.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from normkit.errors import DTypeError, NormError
from normkit.kernels.call import Array, Call

__all__ = ["Step", "Trace"]


@dataclass(frozen=True, eq=False)
class Step:
    """One node of the graph: its name, formula, value and the loss's gradient by that value."""

    name: str
    formula: str
    value: Array
    gradient: Array


@dataclass(frozen=True, eq=False)
class Trace:
    """The graph's nine values, their gradients (``d_`` and the name), and those of the inputs.

    Statistics have the shape of the norm's statistics, everything else that of x; all float64.
    Iterating gives the nine :class:`Step`, in the order of the forward pass.
    """

    mean: Array
    centered: Array
    squared: Array
    var: Array
    std: Array
    inverse: Array
    normalized: Array
    scaled: Array
    out: Array
    d_mean: Array
    d_centered: Array
    d_squared: Array
    d_var: Array
    d_std: Array
    d_inverse: Array
    d_normalized: Array
    d_scaled: Array
    d_out: Array
    dx: Array
    d_gamma: Array
    d_beta: Array

    def __iter__(self) -> Iterator[Step]:
        for name, formula in _FORMULAS.items():
            yield Step(name, formula, getattr(self, name), getattr(self, f"d_{name}"))


_FORMULAS = {
    "mean": "sum(x) / m",
    "centered": "x - mean",
    "squared": "centered ** 2",
    "var": "sum(squared) / m",
    "std": "sqrt(var + eps)",
    "inverse": "1 / std",
    "normalized": "centered * inverse",
    "scaled": "gamma * normalized",
    "out": "scaled + beta",
}


class _Sets:
    """Sums over sets and back, for one call, in float64."""

    def __init__(self, call: Call) -> None:
        self.call, self.layout = call, call.layout
        self.count = np.maximum(call.layout.set_counts(), 1.0)[:, None, None]

    def cube(self, values: Any) -> Array:
        return self.layout.to_cube(np, np.asarray(values, dtype=np.float64))

    def shaped(self, cube: Array) -> Array:
        return self.layout.from_cube(np, np.broadcast_to(cube, self._size()))

    def _size(self) -> tuple[int, int, int]:
        return (self.layout.n, self.layout.c, self.layout.l)

    def statistic(self, grid: Array) -> Array:
        return grid.reshape(self.layout.statistics_shape)

    def total(self, cube: Array) -> Array:
        return self.layout.gather(np, cube)

    def spread(self, grid: Array) -> Array:
        return self.layout.spread(np, grid)

    def affine(self, values: Any, default: float) -> Array:
        if values is None:
            return np.full((1, 1, 1), default)
        kind = self.layout.affine_kind(tuple(values.shape), "gamma or beta")
        return self.layout.affine_to_cube(np, np.asarray(values, dtype=np.float64), kind)

    def affine_gradient(self, cube: Array, values: Any) -> Array:
        if values is None:
            return None
        kind = self.layout.affine_kind(tuple(values.shape), "gamma or beta")
        return self.layout.affine_from_cube(np, cube, kind)


def trace_call(call: Call, dy: Array) -> Trace:
    """The trace of a checked call."""
    if not (call.center and call.scale):
        raise NormError(
            "Only norms that centre and scale have the nine steps",
            received=f"center={call.center}, scale={call.scale}",
            expected="both True",
            remedy="Trace normkit.BatchNorm() or another centred norm.",
        )
    if not isinstance(call.x, np.ndarray):
        raise DTypeError(
            "trace() takes NumPy arrays",
            received=type(call.x).__name__,
            expected="numpy.ndarray",
            remedy="Convert x first; the trace is float64 whatever x is.",
        )
    sets = _Sets(call)
    x, gamma, beta = sets.cube(call.x), sets.affine(call.gamma, 1.0), sets.affine(call.beta, 0.0)
    # Forward, step by step.
    mean = sets.total(x) / sets.count
    centered = x - sets.spread(mean)
    squared = centered**2
    var = sets.total(squared) / sets.count
    std = np.sqrt(var + call.eps)
    inverse = 1.0 / std
    normalized = centered * sets.spread(inverse)
    scaled = gamma * normalized
    out = scaled + beta
    # Backward: each line multiplies by one step's own derivative; a value used twice adds both.
    d_out = sets.cube(dy)
    d_scaled = d_out
    d_normalized = d_scaled * gamma
    d_inverse = sets.total(d_normalized * centered)
    d_std = -d_inverse / std**2
    d_var = d_std * 0.5 / std
    d_squared = sets.spread(d_var / sets.count) * np.ones_like(x)
    d_centered = d_normalized * sets.spread(inverse) + d_squared * 2.0 * centered
    d_mean = -sets.total(d_centered)
    dx = d_centered + sets.spread(d_mean / sets.count)
    return Trace(
        mean=sets.statistic(mean),
        centered=sets.shaped(centered),
        squared=sets.shaped(squared),
        var=sets.statistic(var),
        std=sets.statistic(std),
        inverse=sets.statistic(inverse),
        normalized=sets.shaped(normalized),
        scaled=sets.shaped(scaled),
        out=sets.shaped(out),
        d_mean=sets.statistic(d_mean),
        d_centered=sets.shaped(d_centered),
        d_squared=sets.shaped(d_squared),
        d_var=sets.statistic(d_var),
        d_std=sets.statistic(d_std),
        d_inverse=sets.statistic(d_inverse),
        d_normalized=sets.shaped(d_normalized),
        d_scaled=sets.shaped(d_scaled),
        d_out=sets.shaped(d_out),
        dx=sets.shaped(dx),
        d_gamma=sets.affine_gradient(d_out * normalized, call.gamma),
        d_beta=sets.affine_gradient(d_out, call.beta),
    )
