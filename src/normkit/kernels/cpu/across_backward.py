"""Backward kernels for sets that lie across the contiguous run; see :mod:`.across`."""

from __future__ import annotations

import numpy as np

from normkit.kernels.cpu import geometry as geo
from normkit.kernels.cpu.across import address_of, fill, read_lines, row_gamma
from normkit.kernels.cpu.geometry import ceil_div, data_of, finish_task, first_task, get, keep
from normkit.kernels.cpu.intrinsics import (
    bare,
    compute_size,
    is_crossed,
    itemsize,
    read_double,
    to_compute,
    write_compute,
    write_double,
)
from normkit.kernels.cpu.jit import kernel, part
from normkit.kernels.cpu.runs import (
    TILE,
    affine_sums_across,
    emit_gradient,
    gradient_sums_across,
    gradient_sums_across_two,
)
from normkit.kernels.cpu.sets import gradient_line, remainder, set_slope


@part
def _sum_rows(
    v, geometry, x, dy, residual, gamma, beta, outer, row0, row1, column, width, coefficients,
    means, slopes, offsets, firsts, seconds, dgamma, dbeta,
):  # fmt: skip
    """Set the columns' sums of dz and dz * (x - mean) over some rows of one outer block.

    Where gamma varies with the row, ``dgamma`` and ``dbeta`` (or 0) receive a number a row.
    """
    plain = bare(v)
    step = width * compute_size(v)
    for j in range(width):
        firsts[j] = seconds[j] = 0.0
    row = row0
    if not is_crossed(v):
        size = itemsize(v)
        while row + 2 <= row1:
            gradient_sums_across_two(
                v,
                address_of(plain, geometry, x, geo.X_OUTER, outer, row, column),
                address_of(plain, geometry, dy, geo.DY_OUTER, outer, row, column),
                address_of(plain, geometry, residual, geo.RESIDUAL_OUTER, outer, row, column),
                get(geometry, geo.X_ROW) * size, get(geometry, geo.DY_ROW) * size,
                get(geometry, geo.RESIDUAL_ROW) * size, width, data_of(means),
                coefficients, coefficients + step, coefficients + 2 * step,
                data_of(firsts), data_of(seconds),
            )  # fmt: skip
            row += 2
    while row < row1:
        g, b = row_gamma(plain, geometry, gamma, beta, outer, row)
        x_row = address_of(plain, geometry, x, geo.X_OUTER, outer, row, column)
        dy_row = address_of(plain, geometry, dy, geo.DY_OUTER, outer, row, column)
        residual_row = address_of(plain, geometry, residual, geo.RESIDUAL_OUTER, outer, row, column)
        gradient_sums_across(
            v, x_row, dy_row, residual_row, width, data_of(means),
            coefficients, coefficients + step, coefficients + 2 * step, g, b,
            data_of(firsts), data_of(seconds),
        )  # fmt: skip
        if is_crossed(v) and dgamma != 0:
            to_beta, to_gamma = affine_sums_across(
                v, x_row, dy_row, residual_row, width, data_of(means),
                coefficients, coefficients + step, coefficients + 2 * step, g, b,
                data_of(slopes), data_of(offsets),
            )  # fmt: skip
            write_double(dbeta, row, to_beta)
            write_double(dgamma, row, to_gamma)
        row += 1


@part
def _emit_gradient_rows(
    v, geometry, x, dy, residual, dx, dz_out, gamma, beta, outer, row0, row1, column, width,
    coefficients, gradients, curved, scratch,
):  # fmt: skip
    plain = bare(v)
    step = width * compute_size(v)
    whole = width == get(geometry, geo.RUN) and get(geometry, geo.Y_ROW) == width
    cursor = np.intp(0)
    for row in range(row0, row1):
        g, b = row_gamma(plain, geometry, gamma, beta, outer, row)
        cursor = emit_gradient(
            v,
            address_of(plain, geometry, x, geo.X_OUTER, outer, row, column),
            address_of(plain, geometry, dy, geo.DY_OUTER, outer, row, column),
            address_of(plain, geometry, residual, geo.RESIDUAL_OUTER, outer, row, column),
            address_of(plain, geometry, dx, geo.Y_OUTER, outer, row, column),
            address_of(plain, geometry, dz_out, geo.Y_OUTER, outer, row, column),
            width, coefficients, coefficients + step, coefficients + 2 * step, g, b,
            gradients, gradients + step, curved, get(geometry, geo.STREAMED), scratch, cursor,
            not whole or row + 1 == row1,
        )  # fmt: skip


@part
def _fill_gradient(v, means, linears, constants, width, gradients, curved):
    """``linear`` and ``constant`` of each column in the compute dtype."""
    step = width * compute_size(v)
    for j in range(width):
        constant = constants[j]
        if curved:
            constant -= linears[j] * remainder(means[j], to_compute(v, means[j]))
        write_compute(v, gradients, j, to_compute(v, linears[j]))
        write_compute(v, gradients + step, j, to_compute(v, constant))


@part
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


@kernel
def backpropagate(
    v, geometry, x, dy, residual, dx, dz_out, gamma, beta, mean, m2, eps, center, scale,
    dgamma, dbeta, counters,
):  # fmt: skip
    """Sums and dx, block of sets by block of sets.

    ``dgamma`` and ``dbeta`` (zeros at first, or address 0 if not wanted) receive partial sums: a
    run of columns for each outer set, or for each sample where gamma has one for each; when
    crossed, a column of rows for each outer block and block of columns.
    """
    plain = bare(v)
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
        gradients = data_of(coefficients) + 3 * width * compute_size(v)
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
                fill(plain, geometry, gamma, beta, outer, column, width, means, slopes, offsets,
                      data_of(coefficients))  # fmt: skip
                _sum_rows(
                    v, geometry, x, dy, residual, gamma, beta, outer, 0, rows, column, width,
                    data_of(coefficients), means, slopes, offsets, firsts, seconds,
                    dgamma + share, dbeta + share,
                )  # fmt: skip
                _fold_sums(plain, geometry, gamma, owner, outer, column, width, slopes, firsts,
                           seconds, dzs, dzxs, dgamma, dbeta)  # fmt: skip
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
            _fill_gradient(plain, means, dzs, dzxs, width, gradients, scale)
            for outer in range(outer0, outer1):
                if get(geometry, geo.GAMMA_OUTER):
                    fill(plain, geometry, gamma, beta, outer, column, width, means, slopes, offsets,
                          data_of(coefficients))  # fmt: skip
                _emit_gradient_rows(
                    v, geometry, x, dy, residual, dx, dz_out, gamma, beta, outer, 0, rows, column,
                    width, data_of(coefficients), gradients, scale, data_of(scratch),
                )  # fmt: skip
        task = finish_task(counters, task)
    keep(means), keep(slopes), keep(offsets), keep(firsts), keep(seconds)
    keep(coefficients), keep(scratch)


@kernel
def gradient_sums(
    v, geometry, x, dy, residual, gamma, beta, mean, slope, offset, dz, dzx, dgamma, dbeta, counters
):
    """Sum of dz and dz * (x - mean) of every column within a tile of rows.

    When crossed, dz comes times gamma, and ``dgamma`` and ``dbeta`` (or address 0) receive a number
    for each row of each outer block.
    """
    plain = bare(v)
    run, rows, tile = get(geometry, geo.RUN), get(geometry, geo.ROWS), get(geometry, geo.TILE_ROWS)
    tiles = ceil_div(rows, tile)
    means, slopes, offsets = np.empty(run), np.empty(run), np.empty(run)
    firsts, seconds = np.empty(run), np.empty(run)
    coefficients = np.empty(3 * run * compute_size(v), np.uint8)
    task = first_task(counters)
    while task < get(geometry, geo.OUTER) * tiles:
        outer, row = task // tiles, task % tiles * tile
        read_lines(mean, outer * run, run, means)
        read_lines(slope, outer * run, run, slopes)
        read_lines(offset, outer * run, run, offsets)
        fill(plain, geometry, gamma, beta, outer, 0, run, means, slopes, offsets,
              data_of(coefficients))  # fmt: skip
        share = outer * rows * 8 if is_crossed(v) and dgamma != 0 else 0
        _sum_rows(
            v, geometry, x, dy, residual, gamma, beta, outer, row, min(row + tile, rows), 0, run,
            data_of(coefficients), means, slopes, offsets, firsts, seconds,
            dgamma + share, dbeta + share,
        )  # fmt: skip
        for j in range(run):
            write_double(dz, task * run + j, firsts[j])
            write_double(dzx, task * run + j, seconds[j])
        task = finish_task(counters, task)
    keep(means), keep(slopes), keep(offsets), keep(firsts), keep(seconds), keep(coefficients)


@kernel
def gradient_apply(
    v, geometry, x, dy, residual, dx, dz_out, gamma, beta, mean, slope, offset, linear, constant,
    curved, counters,
):  # fmt: skip
    """dx from the coefficients of every column of every outer block."""
    plain = bare(v)
    run, rows, tile = get(geometry, geo.RUN), get(geometry, geo.ROWS), get(geometry, geo.TILE_ROWS)
    tiles = ceil_div(rows, tile)
    tasks = get(geometry, geo.OUTER) * tiles
    means, slopes, offsets = np.empty(run), np.empty(run), np.empty(run)
    linears, constants = np.empty(run), np.empty(run)
    coefficients = np.empty(5 * run * compute_size(v), np.uint8)
    gradients = data_of(coefficients) + 3 * run * compute_size(v)
    scratch = np.empty(2 * TILE * itemsize(v), np.uint8)
    task = first_task(counters)
    while task < tasks:
        # Last tiles first: the sums pass has just left them in the cache.
        place = tasks - 1 - task
        outer, row = place // tiles, place % tiles * tile
        read_lines(mean, outer * run, run, means)
        read_lines(slope, outer * run, run, slopes)
        read_lines(offset, outer * run, run, offsets)
        read_lines(linear, outer * run, run, linears)
        read_lines(constant, outer * run, run, constants)
        fill(plain, geometry, gamma, beta, outer, 0, run, means, slopes, offsets,
              data_of(coefficients))  # fmt: skip
        _fill_gradient(plain, means, linears, constants, run, gradients, curved)
        _emit_gradient_rows(
            v, geometry, x, dy, residual, dx, dz_out, gamma, beta, outer, row,
            min(row + tile, rows), 0, run, data_of(coefficients), gradients, curved,
            data_of(scratch),
        )  # fmt: skip
        task = finish_task(counters, task)
    keep(coefficients), keep(scratch)
