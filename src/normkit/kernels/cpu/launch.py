"""Calls of the compiled kernels: addresses in, statistics and gradients out.

A :class:`Launcher` belongs to one kind of call (layout, memory order, dtype, options).
Arrays of statistics have the layout's grid shape (sample sets, channel sets, position sets) here;
gradients of gamma and beta come in the shape of their kind.
"""

from __future__ import annotations

from functools import cached_property, lru_cache
from typing import Any

import numpy as np

from normkit.kernels.call import quiet
from normkit.kernels.cpu.access import Access, Refusal, Request, access_for
from normkit.kernels.cpu.compiled import entry_point
from normkit.kernels.threads import run_tasks
from normkit.layout import Layout
from normkit.moments import merge_along

Array = Any
_ONE, _ZERO = np.ones(1), np.zeros(1)


def address(array: Array) -> int:
    """Where a NumPy array's first element lies; 0 for none."""
    return 0 if array is None else array.ctypes.data


def _sum_spans(values: Array, span: int) -> Array:
    """Sum neighbouring lines that share a gamma."""
    return values if span == 1 else values.reshape(values.shape[0], -1, span).sum(axis=2)


class Launcher:
    """Runs one kind of call.

    Addresses of large arrays are passed as numbers and kept alive by their callers.
    """

    def __init__(
        self, request: Request, access: Access, dtype: str, activation: str | None,
        input_activation: str | None,
    ) -> None:  # fmt: skip
        self.layout: Layout = request.layout
        self.access = access
        self.affine = request.affine
        self.dtype, self.activation, self.input_activation = dtype, activation, input_activation
        self.residual = request.residual is not None
        self.output_strides = request.y
        self.geometry = access.geometry.packed()
        self._geometry = self.geometry.ctypes.data
        counts = np.array(self.layout.set_counts(), dtype=np.float64)[:, None, None]
        self.counts: Any = float(counts[0, 0, 0]) if self.layout.even else counts

    def _kernel(self, name: str, plain: bool = False) -> Any:
        activation, residual = (None, False) if plain else (self.activation, self.residual)
        crossed = self.access.crossed and not plain
        return entry_point(
            self.access.path, name, self.dtype, activation, residual, crossed,
            self.input_activation,
        )  # fmt: skip

    def _run(self, kernel: Any, arguments: tuple[Any, ...], tasks: int, keep: Any) -> None:
        run_tasks(
            kernel, (None, self._geometry, *arguments), tasks, (self, keep), self.access.threaded
        )

    # --- gamma and beta -------------------------------------------------------------------------

    @cached_property
    def _vectors(self) -> bool:
        """Whether kernels take gamma as a vector in the compute dtype."""
        return self.access.crossed and self.access.path == "along"

    def affine_arrays(self, gamma: Array, beta: Array) -> tuple[Array, Array]:
        """gamma and beta as the kernels read them; ones and zeros where absent."""
        return self._affine_array(gamma, _ONE), self._affine_array(beta, _ZERO)

    def _affine_array(self, values: Array, default: Array) -> Array:
        dtype = np.float32 if self._vectors and self.dtype != "float64" else np.float64
        if values is None:
            if self.affine is None:
                return default
            shape = self.layout.affine_shape(self.affine)
            return np.full(shape[0] * self.access.folded if self.access.folded > 1 else shape,
                           default[0], dtype)  # fmt: skip
        values = self.layout.widen_affine(np, values, self.affine or "channel")
        if self.access.folded > 1:
            values = np.tile(values, self.access.folded)
        return np.ascontiguousarray(values, dtype=dtype)

    # --- lines ----------------------------------------------------------------------------------

    def lines(self, grid: Array) -> Array:
        """Statistics of the sets, one for each of the kernel's lines, contiguous float64."""
        layout = self.layout
        if self.access.lines == "cube":
            spread = layout.spread(np, grid)
            grid = np.broadcast_to(spread[:, :, 0], (layout.n, layout.c))
        elif self.access.lines == "joined":
            grid = np.repeat(grid[:, :, 0], layout.set_channels, axis=1)
            grid = np.tile(grid, (1, self.access.folded))
        elif self.access.lines == "flat":
            grid = np.repeat(grid[:, :, 0], layout.set_channels * layout.l, axis=1)
        return np.ascontiguousarray(grid, dtype=np.float64)

    def gather_lines(self, values: Array) -> Array:
        """Sum of the lines' values over each set."""
        layout = self.layout
        if self.access.lines == "cube":
            return layout.gather(np, values.reshape(layout.n, layout.c, 1))
        if self.access.lines == "joined":
            fold = self.access.folded
            shape = (layout.sample_sets, fold, layout.channel_sets, layout.set_channels)
            return values.reshape(shape).sum(axis=(1, 3))[:, :, None]
        if self.access.lines == "flat":
            return values.reshape(*layout.grid, -1).sum(axis=3)
        return values.reshape(layout.grid)

    def _spread_lines(self, grid: Array, shape: tuple[int, ...]) -> Array:
        return self.lines(grid).reshape(shape)

    def _tiles(self) -> tuple[tuple[int, ...], Array]:
        """Shape of the half kernels' partial results, and elements behind each along the tiles."""
        geometry = self.access.geometry
        if self.access.path == "along":
            return (geometry.outer, geometry.rows), float(geometry.run)
        tiles = -(-geometry.rows // geometry.tile_rows)
        counts = np.full((1, tiles, 1), float(geometry.tile_rows))
        counts[0, -1, 0] = geometry.rows - (tiles - 1) * geometry.tile_rows
        return (geometry.outer, tiles, geometry.run), counts

    # --- forward --------------------------------------------------------------------------------

    def normalize(
        self, x: int, residual: int, y: int, gamma: Array, beta: Array,
        eps: float, center: bool, scale: bool, keep: Any,
    ) -> tuple[Array, Array]:  # fmt: skip
        """Result into ``y``; returns mean and m2 on the grid. Only where access is fused."""
        gamma, beta = self.affine_arrays(gamma, beta)
        statistics = np.empty((2, *self.layout.grid))
        mean = statistics.ctypes.data
        self._run(
            self._kernel("normalize"),
            (x, residual, y, gamma.ctypes.data, beta.ctypes.data, mean,
             mean + statistics.nbytes // 2, eps, center, scale),
            self.access.tasks, (keep, gamma, beta, statistics),
        )  # fmt: skip
        return statistics[0], statistics[1]

    @quiet
    def moments(self, x: int, center: bool, keep: Any) -> tuple[Array, Array]:
        """Mean and m2 on the grid."""
        shape, counts = self._tiles()
        mean, m2 = np.empty(shape), np.empty(shape)
        self._run(
            self._kernel("moments", plain=True), (x, address(mean), address(m2), center),
            self.access.half_tasks, (keep, mean, m2),
        )  # fmt: skip
        if self.access.path == "across":
            total = float(self.access.geometry.rows)
            mean, m2 = merge_along(np, counts, mean, m2, 1, total)
            counts = total
        if self.access.lines == "sets":
            return mean.reshape(self.layout.grid), m2.reshape(self.layout.grid)
        pooled = self.gather_lines(mean * counts) / self.counts
        apart = mean - self._spread_lines(pooled, mean.shape)
        return pooled, self.gather_lines(m2 + counts * apart * apart)

    def apply(
        self, x: int, residual: int, y: int, gamma: Array, beta: Array,
        mean: Array, slope: Array, offset: Array, keep: Any,
    ) -> None:  # fmt: skip
        """Result into ``y`` from the sets' mean, slope and offset."""
        gamma, beta = self.affine_arrays(gamma, beta)
        lines = [self.lines(grid) for grid in (mean, slope, offset)]
        self._run(
            self._kernel("apply"),
            (x, residual, y, gamma.ctypes.data, beta.ctypes.data, *map(address, lines)),
            self.access.half_tasks, (keep, gamma, beta, lines),
        )  # fmt: skip

    # --- backward -------------------------------------------------------------------------------

    def _shares(self, count: int) -> tuple[Array, Array]:
        """Zeros for the partial gradients of gamma and beta."""
        geometry = self.access.geometry
        if self.access.crossed:
            across = geometry.rows if self.access.path == "across" else geometry.run
            shape: tuple[int, ...] = (count, across)
        else:
            lines = geometry.rows if self.access.path == "along" else geometry.run
            lines //= geometry.gamma_span
            owners = (
                geometry.outer if geometry.gamma_outer else -(-geometry.outer // geometry.set_outer)
            )
            shape = (owners, lines)
        both = np.zeros((2, *shape))
        return both[0], both[1]

    def _affine_gradient(self, shares: Array) -> Array:
        """Partial gradients summed into the shape of gamma's kind."""
        layout = self.layout
        if self.affine == "sample":
            return shares.reshape(layout.n, -1, layout.c).sum(axis=1)
        shares = shares.reshape(-1, shares.shape[-1] // self.access.folded)
        total = shares.sum(axis=0) if shares.shape[0] > 1 else shares[0]
        return total.reshape(layout.element_shape) if self.affine == "element" else total

    def backpropagate(
        self, x: int, dy: int, residual: int, dx: int, dz: int, gamma: Array, beta: Array,
        mean: Array, m2: Array, eps: float, center: bool, scale: bool, keep: Any,
    ) -> tuple[Array, Array]:  # fmt: skip
        """dx into ``dx``, the residual's gradient into ``dz``; returns those of gamma and beta."""
        wanted = self.affine is not None
        gamma, beta = self.affine_arrays(gamma, beta)
        dgamma, dbeta = self._shares(self.access.shares) if wanted else (None, None)
        self._run(
            self._kernel("backpropagate"),
            (x, dy, residual, dx, dz, gamma.ctypes.data, beta.ctypes.data, address(mean),
             address(m2), eps, center, scale, address(dgamma), address(dbeta)),
            self.access.tasks, (keep, gamma, beta, mean, m2, dgamma, dbeta),
        )  # fmt: skip
        if not wanted:
            return None, None
        return self._affine_gradient(dgamma), self._affine_gradient(dbeta)

    @quiet
    def gradient_sums(
        self, x: int, dy: int, residual: int, gamma: Array, beta: Array,
        mean: Array, slope: Array, offset: Array, keep: Any,
    ) -> tuple[Array, Array, Array, Array]:  # fmt: skip
        """Sums of gamma*dz and gamma*dz*(x - mean) on the grid; gradients of gamma and beta."""
        gamma, beta = self.affine_arrays(gamma, beta)
        lines = [self.lines(grid) for grid in (mean, slope, offset)]
        shape, _ = self._tiles()
        dz, dzx = np.empty(shape), np.empty(shape)
        crossed = self.access.crossed
        dgamma, dbeta = self._shares(self.access.half_shares) if crossed else (None, None)
        self._run(
            self._kernel("gradient_sums"),
            (x, dy, residual, gamma.ctypes.data, beta.ctypes.data, *map(address, lines),
             address(dz), address(dzx), address(dgamma), address(dbeta)),
            self.access.half_tasks, (keep, gamma, beta, lines, dz, dzx, dgamma, dbeta),
        )  # fmt: skip
        if self.access.path == "across":
            dz, dzx = dz.sum(axis=1), dzx.sum(axis=1)
        if crossed:
            dgamma, dbeta = self._affine_gradient(dgamma), self._affine_gradient(dbeta)
        elif self.affine is not None:
            slopes, offsets = (line.reshape(dz.shape) for line in lines[1:])
            span = self.access.geometry.gamma_span
            dgamma = self._affine_gradient(_sum_spans(dzx * slopes + dz * offsets, span))
            dbeta = self._affine_gradient(_sum_spans(dz, span))
            gamma = np.repeat(gamma, span, axis=-1)
            weights = np.broadcast_to(gamma if gamma.ndim == 2 else gamma[None, :], dz.shape)
            dz, dzx = dz * weights, dzx * weights
        return self.gather_lines(dz), self.gather_lines(dzx), dgamma, dbeta

    def gradient_apply(
        self, x: int, dy: int, residual: int, dx: int, dz: int, gamma: Array, beta: Array,
        coefficients: tuple[Array, ...], keep: Any,
    ) -> None:  # fmt: skip
        """dx into ``dx`` from the sets' mean, slope, offset, linear (or None) and constant."""
        gamma, beta = self.affine_arrays(gamma, beta)
        curved = coefficients[3] is not None
        mean, slope, offset, linear, constant = coefficients
        given = (mean, slope, offset, linear if curved else np.zeros_like(constant), constant)
        lines = [self.lines(grid) for grid in given]
        self._run(
            self._kernel("gradient_apply"),
            (x, dy, residual, dx, dz, gamma.ctypes.data, beta.ctypes.data, *map(address, lines),
             curved),
            self.access.half_tasks, (keep, gamma, beta, lines),
        )  # fmt: skip


@lru_cache(maxsize=1024)
def launcher(
    request: Request, dtype: str, activation: str | None, input_activation: str | None
) -> Launcher | Refusal:
    """The launcher of a request, or why the compiled kernels do not take it."""
    access = access_for(request)
    if isinstance(access, Refusal):
        return access
    return Launcher(request, access, dtype, activation, input_activation)
