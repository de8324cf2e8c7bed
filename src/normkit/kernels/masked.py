"""Masked calls on the compiled kernels, which know no masks.

A mask matters in two places only: which elements the moments count, and which of them the gradient
reaches through the statistics. These two are done by the portable backend and by a choice between
two gradients; the rest is the compiled kernels'.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from normkit.coefficients import set_slope
from normkit.kernels.call import Array, Backend, Call, backpropagate_in_halves
from normkit.kernels.portable import PortableBackend

__all__ = ["MaskedBackend"]


class MaskedBackend:
    """:class:`normkit.kernels.call.Backend` for masked calls; statistics are in NumPy's float64."""

    name = "compiled, masks portable"

    def __init__(self, compiled: Backend, portable: PortableBackend) -> None:
        self.compiled, self.portable = compiled, portable

    def namespace(self) -> Any:
        return np

    def statistics_dtype(self, call: Call) -> Any:
        return self.compiled.statistics_dtype(call)

    def constant(self, values: Array) -> Array:
        return values

    def counts(self, call: Call) -> Any:
        return np.asarray(self.portable.counts(call), dtype=np.float64)

    def moments(self, call: Call) -> tuple[Array, Array]:
        mean, m2 = self.portable.moments(call)
        return np.asarray(mean, dtype=np.float64), np.asarray(m2, dtype=np.float64)

    def normalize(self, call: Call, out: Array) -> tuple[Array, Array, Array]:
        mean, m2 = self.moments(call)
        slope = set_slope(np, self.counts(call), m2, call.eps, call.center, call.scale)
        return self.apply(call, mean, slope, np.zeros_like(slope), out), mean, m2

    def apply(self, call: Call, mean: Array, slope: Array, offset: Array, out: Array) -> Array:
        return self.compiled.apply(_bare(call), mean, slope, offset, out)

    def backpropagate(
        self, call: Call, dy: Array, mean: Array, m2: Array
    ) -> tuple[Array, Array, Array, Array]:
        return backpropagate_in_halves(self, call, dy, mean, m2)

    def gradient_sums(
        self, call: Call, dy: Array, mean: Array, slope: Array, offset: Array
    ) -> tuple[Array, Array, Array, Array]:
        return self.compiled.gradient_sums(_bare(call), dy, mean, slope, offset)

    def gradient_apply(
        self, call: Call, dy: Array, coefficients: tuple[Array, Array, Array, Array, Array]
    ) -> tuple[Array, Array]:
        bare, (mean, slope, offset, _, constant) = _bare(call), coefficients
        inside, dresidual = self.compiled.gradient_apply(bare, dy, coefficients)
        # The statistics do not depend on what the mask leaves out.
        alone = (mean, slope, offset, None, np.zeros_like(constant))
        outside, _ = self.compiled.gradient_apply(bare, dy, alone)
        layout, xp = call.layout, self.portable.xp
        mask = xp.broadcast_to(call.mask, (layout.n, layout.c, layout.l))
        return xp.where(layout.from_cube(xp, mask), inside, outside), dresidual


def _bare(call: Call) -> Call:
    return replace(call, mask=None, prepared=None)
