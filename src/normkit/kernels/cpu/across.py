"""Kernels for sets that lie across the contiguous run: channels-last tensors, dense layers.

The same six entry points as in :mod:`.along`. A line is a position of the run, a column: every
column has statistics of its own, neighbouring columns may share a set (group norm), and gamma
varies with the column, or with the row where the variant is crossed.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from normkit.kernels.cpu import geometry as geo
from normkit.kernels.cpu.along import gradient_line, is_far, remainder, set_moments, set_slope
from normkit.kernels.cpu.geometry import ceil_div, finish_task, first_task, get, keep
from normkit.kernels.cpu.intrinsics import (
    compute_size,
    is_crossed,
    itemsize,
    read_double,
    reader,
    to_compute,
    write_compute,
    write_double,
)
from normkit.kernels.cpu.runs import (
    TILE,
    affine_sums_across,
    emit_gradient,
    emit_normalized,
    gradient_sums_across,
    gradient_sums_across_two,
    sums_across,
)

_read_x = reader("x")

#: Rows whose mean serves as a column's pilot; of ordinary data it is never a deviation off.
_PILOT = 16


@njit(nogil=True)
def _place(v, geometry, base, field, outer, row, column):
    """Address of an element of the array whose strides lie at ``field``."""
    place = outer * get(geometry, field) + row * get(geometry, field + 1) + column
    return base + place * itemsize(v)


@njit(nogil=True)
def _sum_columns(
    v, geometry, x, outer0, outer1, row0, rows, column, width, center, pilots, firsts, seconds
):
    """Sums of each column over some rows of some outer blocks."""
    stride = get(geometry, geo.X_ROW) * itemsize(v)
    corner = _place(v, geometry, x, geo.X_OUTER, outer0, row0, column)
    first_rows = min(rows, _PILOT)
    for j in range(width):
        total = 0.0
        if center:
            for r in range(first_rows):
                total += np.float64(_read_x(v, corner + r * stride, j))
        pilots[j] = total / first_rows if math.isfinite(total) else 0.0
    count = np.float64((outer1 - outer0) * rows)
    # An outlier in the first rows makes a bad pilot; the sums around it make a good one.
    for _ in range(2):
        for j in range(width):
            firsts[j] = seconds[j] = 0.0
        for outer in range(outer0, outer1):
            corner = _place(v, geometry, x, geo.X_OUTER, outer, row0, column)
            sums_across(
                v, corner, stride, rows, width,
                pilots.ctypes.data, firsts.ctypes.data, seconds.ctypes.data,
            )  # fmt: skip
        far = False
        for j in range(width):
            if center and is_far(count, firsts[j], seconds[j]):
                far = True
                better = pilots[j] + firsts[j] / count
                pilots[j] = better if math.isfinite(better) else 0.0
        if not far:
            break


@njit(nogil=True)
def _pool_columns(count, span, center, pilots, firsts, seconds, column):
    """Mean and M2 of the set made of ``span`` columns from ``column`` on."""
    mean, m2 = 0.0, 0.0
    for j in range(column, column + span):
        pilots[j], seconds[j] = set_moments(count, pilots[j], firsts[j], seconds[j], center)
        mean += pilots[j] / span
        m2 += seconds[j]
    if span > 1:
        for j in range(column, column + span):
            m2 += count * (pilots[j] - mean) ** 2
    else:
        mean = pilots[column]
    return mean, m2


@njit(nogil=True)
def _fill(v, geometry, gamma, beta, outer, column, width, means, slopes, offsets, coefficients):
    """Mean, scale and shift of each column in the compute dtype, one array after the other."""
    step = width * compute_size(v)
    for j in range(width):
        rounded = to_compute(v, means[j])
        slope, shift = slopes[j], offsets[j] - remainder(means[j], rounded) * slopes[j]
        if not is_crossed(v):
            line = (column + j) // get(geometry, geo.GAMMA_SPAN) * get(geometry, geo.GAMMA_LINE)
            index = outer * get(geometry, geo.GAMMA_OUTER) + line
            g = read_double(gamma, index)
            slope, shift = slope * g, shift * g + read_double(beta, index)
        write_compute(v, coefficients, j, rounded)
        write_compute(v, coefficients + step, j, to_compute(v, slope))
        write_compute(v, coefficients + 2 * step, j, to_compute(v, shift))


@njit(nogil=True)
def _row_affine(v, geometry, gamma, beta, outer, row):
    """A row's gamma and beta, if they vary with the row."""
    if is_crossed(v):
        index = outer * get(geometry, geo.GAMMA_OUTER) + row * get(geometry, geo.GAMMA_LINE)
        return (
            to_compute(v, read_double(gamma, index)),
            to_compute(v, read_double(beta, index)),
        )
    return to_compute(v, 1.0), to_compute(v, 0.0)


@njit(nogil=True)
def _emit_rows(
    v,
    geometry,
    x,
    residual,
    y,
    gamma,
    beta,
    outer,
    row0,
    row1,
    column,
    width,
    coefficients,
    scratch,
):
    step = width * compute_size(v)
    whole = width == get(geometry, geo.RUN) and get(geometry, geo.Y_ROW) == width
    cursor = 0
    for row in range(row0, row1):
        g, b = _row_affine(v, geometry, gamma, beta, outer, row)
        cursor = emit_normalized(
            v,
            _place(v, geometry, x, geo.X_OUTER, outer, row, column),
            _place(v, geometry, residual, geo.RESIDUAL_OUTER, outer, row, column),
            _place(v, geometry, y, geo.Y_OUTER, outer, row, column),
            width, coefficients, coefficients + step, coefficients + 2 * step, g, b,
            get(geometry, geo.STREAMED), scratch, cursor, not whole or row + 1 == row1,
        )  # fmt: skip


@njit(nogil=True, error_model="numpy", cache=True)
def normalize(v, geometry, x, residual, y, gamma, beta, mean, m2, eps, center, scale, counters):
    """Moments and result, block of sets by block of sets. Writes mean and m2 a set."""
    span, run, rows = get(geometry, geo.SET_LINES), get(geometry, geo.RUN), get(geometry, geo.ROWS)
    outer_sets = ceil_div(get(geometry, geo.OUTER), get(geometry, geo.SET_OUTER))
    line_sets = run // span
    block, wide = get(geometry, geo.BLOCK_OUTER), get(geometry, geo.BLOCK_LINES)
    columns = ceil_div(line_sets, wide)
    tasks = ceil_div(outer_sets, block) * columns
    most = min(wide, line_sets) * span
    pilots, firsts, seconds, offsets = (
        np.empty(most),
        np.empty(most),
        np.empty(most),
        np.zeros(most),
    )
    coefficients = np.empty(3 * most * compute_size(v), np.uint8)
    scratch = np.empty(TILE * itemsize(v), np.uint8)
    task = first_task(counters)
    while task < tasks:
        start = task // columns * block
        set0 = task % columns * wide
        column = set0 * span
        width = min(wide, line_sets - set0) * span
        for k in range(start, min(start + block, outer_sets)):
            outer0 = k * get(geometry, geo.SET_OUTER)
            outer1 = min(outer0 + get(geometry, geo.SET_OUTER), get(geometry, geo.OUTER))
            count = np.float64((outer1 - outer0) * rows)
            _sum_columns(v, geometry, x, outer0, outer1, 0, rows, column, width, center,
                         pilots, firsts, seconds)  # fmt: skip
            for s in range(width // span):
                a, b = _pool_columns(count, span, center, pilots, firsts, seconds, s * span)
                write_double(mean, k * line_sets + set0 + s, a)
                write_double(m2, k * line_sets + set0 + s, b)
                slope = set_slope(b, count * span, eps, center, scale)
                for j in range(s * span, (s + 1) * span):
                    firsts[j], seconds[j] = a, slope
            for outer in range(outer0, outer1):
                if outer == outer0 or get(geometry, geo.GAMMA_OUTER):
                    _fill(v, geometry, gamma, beta, outer, column, width, firsts, seconds, offsets,
                          coefficients.ctypes.data)  # fmt: skip
                _emit_rows(
                    v, geometry, x, residual, y, gamma, beta, outer, 0, rows, column, width,
                    coefficients.ctypes.data, scratch.ctypes.data,
                )  # fmt: skip
        task = finish_task(counters, task)
    keep(pilots), keep(firsts), keep(seconds), keep(coefficients), keep(scratch)


@njit(nogil=True, error_model="numpy", cache=True)
def moments(v, geometry, x, mean, m2, center, counters):
    """Mean and m2 of every column within a tile of rows, a row of columns a tile."""
    run, rows, tile = get(geometry, geo.RUN), get(geometry, geo.ROWS), get(geometry, geo.TILE_ROWS)
    tiles = ceil_div(rows, tile)
    pilots, firsts, seconds = np.empty(run), np.empty(run), np.empty(run)
    task = first_task(counters)
    while task < get(geometry, geo.OUTER) * tiles:
        row = task % tiles * tile
        count = min(tile, rows - row)
        outer = task // tiles
        _sum_columns(v, geometry, x, outer, outer + 1, row, count, 0, run, center,
                     pilots, firsts, seconds)  # fmt: skip
        for j in range(run):
            a, b = set_moments(np.float64(count), pilots[j], firsts[j], seconds[j], center)
            write_double(mean, task * run + j, a)
            write_double(m2, task * run + j, b)
        task = finish_task(counters, task)
    keep(pilots), keep(firsts), keep(seconds)


@njit(nogil=True)
def _read_lines(base, index, width, into):
    for j in range(width):
        into[j] = read_double(base, index + j)


@njit(nogil=True, error_model="numpy", cache=True)
def apply(v, geometry, x, residual, y, gamma, beta, mean, slope, offset, counters):
    """The result from mean, slope and offset of every column of every outer block."""
    run, rows, tile = get(geometry, geo.RUN), get(geometry, geo.ROWS), get(geometry, geo.TILE_ROWS)
    tiles = ceil_div(rows, tile)
    tasks = get(geometry, geo.OUTER) * tiles
    means, slopes, offsets = np.empty(run), np.empty(run), np.empty(run)
    coefficients = np.empty(3 * run * compute_size(v), np.uint8)
    scratch = np.empty(TILE * itemsize(v), np.uint8)
    task = first_task(counters)
    while task < tasks:
        # Last tiles first: the moments pass has just left them in the cache.
        place = tasks - 1 - task
        outer, row = place // tiles, place % tiles * tile
        _read_lines(mean, outer * run, run, means)
        _read_lines(slope, outer * run, run, slopes)
        _read_lines(offset, outer * run, run, offsets)
        _fill(v, geometry, gamma, beta, outer, 0, run, means, slopes, offsets,
              coefficients.ctypes.data)  # fmt: skip
        _emit_rows(
            v, geometry, x, residual, y, gamma, beta, outer, row, min(row + tile, rows), 0, run,
            coefficients.ctypes.data, scratch.ctypes.data,
        )  # fmt: skip
        task = finish_task(counters, task)
    keep(coefficients), keep(scratch)


# --- backward -----------------------------------------------------------------------------------


@njit(nogil=True)
def _sum_rows(
    v, geometry, x, dy, residual, gamma, beta, outer, row0, row1, column, width, coefficients,
    means, slopes, offsets, firsts, seconds, dgamma, dbeta,
):  # fmt: skip
    """Set the columns' sums of dz and dz * (x - mean) over some rows of one outer block.

    Where gamma varies with the row, ``dgamma`` and ``dbeta`` (or 0) receive a number a row.
    """
    step = width * compute_size(v)
    for j in range(width):
        firsts[j] = seconds[j] = 0.0
    row = row0
    if not is_crossed(v):
        size = itemsize(v)
        while row + 2 <= row1:
            gradient_sums_across_two(
                v,
                _place(v, geometry, x, geo.X_OUTER, outer, row, column),
                _place(v, geometry, dy, geo.DY_OUTER, outer, row, column),
                _place(v, geometry, residual, geo.RESIDUAL_OUTER, outer, row, column),
                get(geometry, geo.X_ROW) * size, get(geometry, geo.DY_ROW) * size,
                get(geometry, geo.RESIDUAL_ROW) * size, width, means.ctypes.data,
                coefficients, coefficients + step, coefficients + 2 * step,
                firsts.ctypes.data, seconds.ctypes.data,
            )  # fmt: skip
            row += 2
    while row < row1:
        g, b = _row_affine(v, geometry, gamma, beta, outer, row)
        x_row = _place(v, geometry, x, geo.X_OUTER, outer, row, column)
        dy_row = _place(v, geometry, dy, geo.DY_OUTER, outer, row, column)
        residual_row = _place(v, geometry, residual, geo.RESIDUAL_OUTER, outer, row, column)
        gradient_sums_across(
            v, x_row, dy_row, residual_row, width, means.ctypes.data,
            coefficients, coefficients + step, coefficients + 2 * step, g, b,
            firsts.ctypes.data, seconds.ctypes.data,
        )  # fmt: skip
        if is_crossed(v) and dgamma != 0:
            to_beta, to_gamma = affine_sums_across(
                v, x_row, dy_row, residual_row, width, means.ctypes.data,
                coefficients, coefficients + step, coefficients + 2 * step, g, b,
                slopes.ctypes.data, offsets.ctypes.data,
            )  # fmt: skip
            write_double(dbeta, row, to_beta)
            write_double(dgamma, row, to_gamma)
        row += 1


@njit(nogil=True)
def _emit_gradient_rows(
    v, geometry, x, dy, residual, dx, dz_out, gamma, beta, outer, row0, row1, column, width,
    coefficients, gradients, curved, scratch,
):  # fmt: skip
    step = width * compute_size(v)
    whole = width == get(geometry, geo.RUN) and get(geometry, geo.Y_ROW) == width
    cursor = 0
    for row in range(row0, row1):
        g, b = _row_affine(v, geometry, gamma, beta, outer, row)
        cursor = emit_gradient(
            v,
            _place(v, geometry, x, geo.X_OUTER, outer, row, column),
            _place(v, geometry, dy, geo.DY_OUTER, outer, row, column),
            _place(v, geometry, residual, geo.RESIDUAL_OUTER, outer, row, column),
            _place(v, geometry, dx, geo.Y_OUTER, outer, row, column),
            _place(v, geometry, dz_out, geo.Y_OUTER, outer, row, column),
            width, coefficients, coefficients + step, coefficients + 2 * step, g, b,
            gradients, gradients + step, curved, get(geometry, geo.STREAMED), scratch, cursor,
            not whole or row + 1 == row1,
        )  # fmt: skip


@njit(nogil=True)
def _fill_gradient(v, means, linears, constants, width, gradients, curved):
    """``linear`` and ``constant`` of each column in the compute dtype."""
    step = width * compute_size(v)
    for j in range(width):
        constant = constants[j]
        if curved:
            constant -= linears[j] * remainder(means[j], to_compute(v, means[j]))
        write_compute(v, gradients, j, to_compute(v, linears[j]))
        write_compute(v, gradients + step, j, to_compute(v, constant))


@njit(nogil=True)
def _fold_sums(
    v, geometry, gamma, owner, outer, column, width, slopes, firsts, seconds, dzs, dzxs,
    dgamma, dbeta,
):  # fmt: skip
    """Add one outer block's columns to their sets' sums, times gamma, and to gamma's gradient."""
    for j in range(width):
        g = 1.0
        if not is_crossed(v):
            place = (column + j) // get(geometry, geo.GAMMA_SPAN)
            line = place * get(geometry, geo.GAMMA_LINE)
            g = read_double(gamma, outer * get(geometry, geo.GAMMA_OUTER) + line)
            if dgamma != 0:
                index = owner * (get(geometry, geo.RUN) // get(geometry, geo.GAMMA_SPAN)) + place
                write_double(dbeta, index, read_double(dbeta, index) + firsts[j])
                write_double(dgamma, index, read_double(dgamma, index) + seconds[j] * slopes[j])
        dzs[j] += g * firsts[j]
        dzxs[j] += g * seconds[j]


@njit(nogil=True, error_model="numpy", cache=True)
def backpropagate(
    v, geometry, x, dy, residual, dx, dz_out, gamma, beta, mean, m2, eps, center, scale,
    dgamma, dbeta, counters,
):  # fmt: skip
    """Sums and dx, block of sets by block of sets.

    ``dgamma`` and ``dbeta`` (zeros at first, or address 0 if not wanted) receive partial sums: a
    run of columns for each outer set, or for each sample where gamma has one for each; when
    crossed, a column of rows for each outer block and block of columns.
    """
    span, run, rows = get(geometry, geo.SET_LINES), get(geometry, geo.RUN), get(geometry, geo.ROWS)
    outer_sets = ceil_div(get(geometry, geo.OUTER), get(geometry, geo.SET_OUTER))
    line_sets = run // span
    block, wide = get(geometry, geo.BLOCK_OUTER), get(geometry, geo.BLOCK_LINES)
    columns = ceil_div(line_sets, wide)
    tasks = ceil_div(outer_sets, block) * columns
    most = min(wide, line_sets) * span
    means, slopes, offsets = np.empty(most), np.empty(most), np.zeros(most)
    firsts, seconds, dzs, dzxs = np.empty(most), np.empty(most), np.empty(most), np.empty(most)
    coefficients = np.empty(5 * most * compute_size(v), np.uint8)
    scratch = np.empty(2 * TILE * itemsize(v), np.uint8)
    task = first_task(counters)
    while task < tasks:
        start = task // columns * block
        set0 = task % columns * wide
        column = set0 * span
        width = min(wide, line_sets - set0) * span
        gradients = coefficients.ctypes.data + 3 * width * compute_size(v)
        for k in range(start, min(start + block, outer_sets)):
            outer0 = k * get(geometry, geo.SET_OUTER)
            outer1 = min(outer0 + get(geometry, geo.SET_OUTER), get(geometry, geo.OUTER))
            count = np.float64((outer1 - outer0) * rows * span)
            for j in range(width):
                index = k * line_sets + set0 + j // span
                means[j] = read_double(mean, index)
                slopes[j] = set_slope(read_double(m2, index), count, eps, center, scale)
                dzs[j] = dzxs[j] = 0.0
            for outer in range(outer0, outer1):
                owner = outer if get(geometry, geo.GAMMA_OUTER) else k
                share = (outer * columns + task % columns) * rows * 8
                if not is_crossed(v) or dgamma == 0:
                    share = 0
                _fill(v, geometry, gamma, beta, outer, column, width, means, slopes, offsets,
                      coefficients.ctypes.data)  # fmt: skip
                _sum_rows(
                    v, geometry, x, dy, residual, gamma, beta, outer, 0, rows, column, width,
                    coefficients.ctypes.data, means, slopes, offsets, firsts, seconds,
                    dgamma + share, dbeta + share,
                )  # fmt: skip
                _fold_sums(v, geometry, gamma, owner, outer, column, width, slopes, firsts, seconds,
                           dzs, dzxs, dgamma, dbeta)  # fmt: skip
            for s in range(width // span):
                dz, dzx = 0.0, 0.0
                for j in range(s * span, (s + 1) * span):
                    dz, dzx = dz + dzs[j], dzx + dzxs[j]
                var = read_double(m2, k * line_sets + set0 + s) / count
                linear, constant = gradient_line(
                    slopes[s * span], var, eps, count, dz, dzx,
                    np.float64(center), np.float64(scale),
                )  # fmt: skip
                for j in range(s * span, (s + 1) * span):
                    dzs[j], dzxs[j] = linear, constant
            _fill_gradient(v, means, dzs, dzxs, width, gradients, scale)
            for outer in range(outer0, outer1):
                if get(geometry, geo.GAMMA_OUTER):
                    _fill(v, geometry, gamma, beta, outer, column, width, means, slopes, offsets,
                          coefficients.ctypes.data)  # fmt: skip
                _emit_gradient_rows(
                    v, geometry, x, dy, residual, dx, dz_out, gamma, beta, outer, 0, rows, column,
                    width, coefficients.ctypes.data, gradients, scale, scratch.ctypes.data,
                )  # fmt: skip
        task = finish_task(counters, task)
    keep(means), keep(slopes), keep(offsets), keep(firsts), keep(seconds)
    keep(coefficients), keep(scratch)


@njit(nogil=True, error_model="numpy", cache=True)
def gradient_sums(
    v, geometry, x, dy, residual, gamma, beta, mean, slope, offset, dz, dzx, dgamma, dbeta, counters
):
    """Sum of dz and dz * (x - mean) of every column within a tile of rows.

    When crossed, dz comes times gamma, and ``dgamma`` and ``dbeta`` (or address 0) receive a number
    for each row of each outer block.
    """
    run, rows, tile = get(geometry, geo.RUN), get(geometry, geo.ROWS), get(geometry, geo.TILE_ROWS)
    tiles = ceil_div(rows, tile)
    means, slopes, offsets = np.empty(run), np.empty(run), np.empty(run)
    firsts, seconds = np.empty(run), np.empty(run)
    coefficients = np.empty(3 * run * compute_size(v), np.uint8)
    task = first_task(counters)
    while task < get(geometry, geo.OUTER) * tiles:
        outer, row = task // tiles, task % tiles * tile
        _read_lines(mean, outer * run, run, means)
        _read_lines(slope, outer * run, run, slopes)
        _read_lines(offset, outer * run, run, offsets)
        _fill(v, geometry, gamma, beta, outer, 0, run, means, slopes, offsets,
              coefficients.ctypes.data)  # fmt: skip
        share = outer * rows * 8 if is_crossed(v) and dgamma != 0 else 0
        _sum_rows(
            v, geometry, x, dy, residual, gamma, beta, outer, row, min(row + tile, rows), 0, run,
            coefficients.ctypes.data, means, slopes, offsets, firsts, seconds,
            dgamma + share, dbeta + share,
        )  # fmt: skip
        for j in range(run):
            write_double(dz, task * run + j, firsts[j])
            write_double(dzx, task * run + j, seconds[j])
        task = finish_task(counters, task)
    keep(means), keep(slopes), keep(offsets), keep(firsts), keep(seconds), keep(coefficients)


@njit(nogil=True, error_model="numpy", cache=True)
def gradient_apply(
    v, geometry, x, dy, residual, dx, dz_out, gamma, beta, mean, slope, offset, linear, constant,
    curved, counters,
):  # fmt: skip
    """dx from the coefficients of every column of every outer block."""
    run, rows, tile = get(geometry, geo.RUN), get(geometry, geo.ROWS), get(geometry, geo.TILE_ROWS)
    tiles = ceil_div(rows, tile)
    tasks = get(geometry, geo.OUTER) * tiles
    means, slopes, offsets = np.empty(run), np.empty(run), np.empty(run)
    linears, constants = np.empty(run), np.empty(run)
    coefficients = np.empty(5 * run * compute_size(v), np.uint8)
    gradients = coefficients.ctypes.data + 3 * run * compute_size(v)
    scratch = np.empty(2 * TILE * itemsize(v), np.uint8)
    task = first_task(counters)
    while task < tasks:
        # Last tiles first: the sums pass has just left them in the cache.
        place = tasks - 1 - task
        outer, row = place // tiles, place % tiles * tile
        _read_lines(mean, outer * run, run, means)
        _read_lines(slope, outer * run, run, slopes)
        _read_lines(offset, outer * run, run, offsets)
        _read_lines(linear, outer * run, run, linears)
        _read_lines(constant, outer * run, run, constants)
        _fill(v, geometry, gamma, beta, outer, 0, run, means, slopes, offsets,
              coefficients.ctypes.data)  # fmt: skip
        _fill_gradient(v, means, linears, constants, run, gradients, curved)
        _emit_gradient_rows(
            v, geometry, x, dy, residual, dx, dz_out, gamma, beta, outer, row,
            min(row + tile, rows), 0, run, coefficients.ctypes.data, gradients, curved,
            scratch.ctypes.data,
        )  # fmt: skip
        task = finish_task(counters, task)
    keep(coefficients), keep(scratch)
