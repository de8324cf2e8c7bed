"""Backward kernels for sets that lie along the contiguous run; see :mod:`.along`."""

from __future__ import annotations

import numpy as np

from normkit.kernels.cpu import geometry as geo
from normkit.kernels.cpu.along import line_numbers, row_address
from normkit.kernels.cpu.geometry import ceil_div, data_of, finish_task, first_task, get, keep
from normkit.kernels.cpu.intrinsics import (
    bare,
    is_crossed,
    itemsize,
    read_double,
    to_compute,
    write_double,
)
from normkit.kernels.cpu.jit import kernel, part
from normkit.kernels.cpu.runs import TILE, affine_sums_along, emit_gradient, gradient_sums_along
from normkit.kernels.cpu.sets import gradient_line, remainder, set_slope


@part
def _row_sums(
    v, geometry, x, dy, residual, gamma, beta, outer, row, mean, slope, offset, dbeta, dgamma
):
    """Sum of dz and dz * (x - mean) over one row.

    Where gamma varies inside the row its gradient is added up here, element by element.
    """
    plain = bare(v)
    n = get(geometry, geo.RUN)
    x = row_address(plain, geometry, x, geo.X_OUTER, outer, row)
    dy = row_address(plain, geometry, dy, geo.DY_OUTER, outer, row)
    residual = row_address(plain, geometry, residual, geo.RESIDUAL_OUTER, outer, row)
    gamma, beta, rounded, factor, shift = line_numbers(
        plain, geometry, gamma, beta, outer, row, mean, slope, offset
    )
    if is_crossed(v) and dgamma != 0:
        affine_sums_along(
            v, x, dy, residual, n, mean, rounded, factor, shift, gamma, beta, slope, offset,
            dbeta, dgamma,
        )  # fmt: skip
    return gradient_sums_along(v, x, dy, residual, n, mean, rounded, factor, shift, gamma, beta)


@part
def _emit_gradient_row(
    v, geometry, x, dy, residual, dx, dz_out, gamma, beta, outer, row, mean, slope, offset,
    linear, constant, curved, scratch, cursor, last,
):  # fmt: skip
    plain = bare(v)
    gamma, beta, rounded, factor, shift = line_numbers(
        plain, geometry, gamma, beta, outer, row, mean, slope, offset
    )
    if curved:
        constant -= linear * remainder(mean, rounded)
    return emit_gradient(
        v,
        row_address(plain, geometry, x, geo.X_OUTER, outer, row),
        row_address(plain, geometry, dy, geo.DY_OUTER, outer, row),
        row_address(plain, geometry, residual, geo.RESIDUAL_OUTER, outer, row),
        row_address(plain, geometry, dx, geo.Y_OUTER, outer, row),
        row_address(plain, geometry, dz_out, geo.Y_OUTER, outer, row),
        get(geometry, geo.RUN), rounded, factor, shift, gamma, beta,
        to_compute(v, linear), to_compute(v, constant), curved, get(geometry, geo.STREAMED),
        scratch, cursor, last or get(geometry, geo.Y_ROW) != get(geometry, geo.RUN),
    )  # fmt: skip


@part
def _gamma_number(v, geometry, gamma, outer, row):
    """The row's gamma; 1 where it varies inside the row and is in the sums already."""
    if is_crossed(v):
        return 1.0
    return read_double(
        gamma, outer * get(geometry, geo.GAMMA_OUTER) + row * get(geometry, geo.GAMMA_LINE)
    )


@part
def _add(base, index, value):
    write_double(base, index, read_double(base, index) + value)


@kernel
def backpropagate(
    v, geometry, x, dy, residual, dx, dz_out, gamma, beta, mean, m2, eps, center, scale,
    dgamma, dbeta, counters,
):  # fmt: skip
    """Sums and dx, block of sets by block of sets.

    ``dgamma`` and ``dbeta`` (zeros at first, or address 0 if not wanted) receive partial sums: a
    row of lines for each outer set, or for each sample where gamma has one for each; when crossed,
    a run of elements for each task.
    """
    plain = bare(v)
    span, rows, n = get(geometry, geo.SET_LINES), get(geometry, geo.ROWS), get(geometry, geo.RUN)
    outer_sets = ceil_div(get(geometry, geo.OUTER), get(geometry, geo.SET_OUTER))
    line_sets = rows // span
    block, wide = get(geometry, geo.BLOCK_OUTER), get(geometry, geo.BLOCK_LINES)
    columns = ceil_div(line_sets, wide)
    tasks = ceil_div(outer_sets, block) * columns
    means, slopes, dzs, dzxs = np.empty(wide), np.empty(wide), np.empty(wide), np.empty(wide)
    scratch = np.empty(2 * TILE * itemsize(v), np.uint8)
    task = first_task(counters)
    while task < tasks:
        start = task // columns * block
        set0 = task % columns * wide
        count = min(wide, line_sets - set0)
        share = task * n * 8 if is_crossed(v) and dgamma != 0 else 0
        for k in range(start, min(start + block, outer_sets)):
            outer0 = k * get(geometry, geo.SET_OUTER)
            outer1 = min(outer0 + get(geometry, geo.SET_OUTER), get(geometry, geo.OUTER))
            elements = np.float64((outer1 - outer0) * span * n)
            for s in range(count):
                index = k * line_sets + set0 + s
                means[s] = read_double(mean, index)
                slopes[s] = set_slope(read_double(m2, index), elements, eps, center, scale)
                dzs[s] = dzxs[s] = 0.0
            for outer in range(outer0, outer1):
                owner = outer if get(geometry, geo.GAMMA_OUTER) else k
                for s in range(count):
                    for r in range(span):
                        row = (set0 + s) * span + r
                        first, second = _row_sums(
                            v, geometry, x, dy, residual, gamma, beta, outer, row, means[s],
                            slopes[s], 0.0, dbeta + share, dgamma + share,
                        )  # fmt: skip
                        if dgamma != 0 and not is_crossed(v):
                            _add(dbeta, owner * rows + row, first)
                            _add(dgamma, owner * rows + row, second * slopes[s])
                        g = _gamma_number(plain, geometry, gamma, outer, row)
                        dzs[s] += g * first
                        dzxs[s] += g * second
            for s in range(count):
                var = read_double(m2, k * line_sets + set0 + s) / elements
                dzs[s], dzxs[s] = gradient_line(
                    slopes[s],
                    var,
                    eps,
                    elements,
                    dzs[s],
                    dzxs[s],
                    np.float64(center),
                    np.float64(scale),
                )
            for outer in range(outer0, outer1):
                cursor = np.intp(0)
                for s in range(count):
                    for r in range(span):
                        cursor = _emit_gradient_row(
                            v, geometry, x, dy, residual, dx, dz_out, gamma, beta, outer,
                            (set0 + s) * span + r, means[s], slopes[s], 0.0, dzs[s], dzxs[s],
                            scale, data_of(scratch), cursor, s == count - 1 and r == span - 1,
                        )  # fmt: skip
        task = finish_task(counters, task)
    keep(scratch)


@kernel
def gradient_sums(
    v, geometry, x, dy, residual, gamma, beta, mean, slope, offset, dz, dzx, dgamma, dbeta, counters
):
    """Sum of dz and dz * (x - mean) of every row, into ``dz`` and ``dzx``.

    When crossed, dz comes times gamma, and ``dgamma`` and ``dbeta`` (zeros at first, or address 0)
    receive a run of elements for each task.
    """
    rows, tile = get(geometry, geo.ROWS), get(geometry, geo.TILE_ROWS)
    total = get(geometry, geo.OUTER) * rows
    task = first_task(counters)
    while task < ceil_div(total, tile):
        share = task * get(geometry, geo.RUN) * 8 if is_crossed(v) and dgamma != 0 else 0
        for line in range(task * tile, min((task + 1) * tile, total)):
            first, second = _row_sums(
                v, geometry, x, dy, residual, gamma, beta, line // rows, line % rows,
                read_double(mean, line), read_double(slope, line), read_double(offset, line),
                dbeta + share, dgamma + share,
            )  # fmt: skip
            write_double(dz, line, first)
            write_double(dzx, line, second)
        task = finish_task(counters, task)


@kernel
def gradient_apply(
    v, geometry, x, dy, residual, dx, dz_out, gamma, beta, mean, slope, offset, linear, constant,
    curved, counters,
):  # fmt: skip
    """dx from the coefficients of every row."""
    rows, tile = get(geometry, geo.ROWS), get(geometry, geo.TILE_ROWS)
    total = get(geometry, geo.OUTER) * rows
    scratch = np.empty(2 * TILE * itemsize(v), np.uint8)
    task = first_task(counters)
    while task < ceil_div(total, tile):
        end = min((task + 1) * tile, total)
        cursor = np.intp(0)
        for line in range(task * tile, end):
            cursor = _emit_gradient_row(
                v, geometry, x, dy, residual, dx, dz_out, gamma, beta, line // rows, line % rows,
                read_double(mean, line), read_double(slope, line), read_double(offset, line),
                read_double(linear, line), read_double(constant, line), curved,
                data_of(scratch), cursor, line + 1 == end or (line + 1) % rows == 0,
            )  # fmt: skip
        task = finish_task(counters, task)
    keep(scratch)
