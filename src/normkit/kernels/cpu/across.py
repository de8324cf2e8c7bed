"""Kernels for sets that lie across the contiguous run: channels-last tensors, dense layers.

The same six entry points as in :mod:`.along`. A line is a position of the run, a column: every
column has statistics of its own, neighbouring columns may share a set (group norm), and gamma
varies with the column, or with the row where the variant is crossed.
"""

from __future__ import annotations

import math

import numpy as np

from normkit.kernels.cpu import geometry as geo
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
    emit_normalized,
    read_input,
    sums_across,
)
from normkit.kernels.cpu.sets import is_far, remainder, set_moments, set_slope

#: Rows whose mean serves as a column's pilot; of ordinary data it is never a deviation off.
_PILOT = 16
#: Rows summed before their sums are added up: long chains of additions lose digits.
_PART = 512


@part
def address_of(v, geometry, base, field, outer, row, column):
    """Address of an element of the array whose strides lie at ``field``."""
    place = outer * get(geometry, field) + row * get(geometry, field + 1) + column
    return base + place * itemsize(v)


@part
def _sum_columns(
    v, geometry, x, outer0, outer1, row0, rows, column, width, center, pilots, firsts, seconds
):
    """Sums of each column over some rows of some outer blocks."""
    stride = get(geometry, geo.X_ROW) * itemsize(v)
    corner = address_of(v, geometry, x, geo.X_OUTER, outer0, row0, column)
    first_rows = min(rows, _PILOT)
    for j in range(width):
        total = 0.0
        if center:
            for r in range(first_rows):
                total += np.float64(read_input(v, corner + r * stride, j))
        pilots[j] = total / first_rows if math.isfinite(total) else 0.0
    count = np.float64((outer1 - outer0) * rows)
    # An outlier in the first rows makes a bad pilot; the sums around it make a good one.
    part_firsts, part_seconds = np.empty(width), np.empty(width)
    for attempt in range(2):
        for j in range(width):
            firsts[j] = seconds[j] = 0.0
        for outer in range(outer0, outer1):
            for row in range(row0, row0 + rows, _PART):
                for j in range(width):
                    part_firsts[j] = part_seconds[j] = 0.0
                sums_across(
                    v, address_of(v, geometry, x, geo.X_OUTER, outer, row, column), stride,
                    min(_PART, row0 + rows - row), width, data_of(pilots),
                    data_of(part_firsts), data_of(part_seconds),
                )  # fmt: skip
                for j in range(width):
                    firsts[j] += part_firsts[j]
                    seconds[j] += part_seconds[j]
        far = False
        for j in range(width):
            if center and attempt == 0 and is_far(count, firsts[j], seconds[j]):
                far = True
                better = pilots[j] + firsts[j] / count
                pilots[j] = better if math.isfinite(better) else 0.0
        if not far:
            break
    keep(part_firsts), keep(part_seconds)


@part
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


@part
def fill(v, geometry, gamma, beta, outer, column, width, means, slopes, offsets, coefficients):
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


@part
def row_gamma(v, geometry, gamma, beta, outer, row):
    """A row's gamma and beta, if they vary with the row."""
    if is_crossed(v):
        index = outer * get(geometry, geo.GAMMA_OUTER) + row * get(geometry, geo.GAMMA_LINE)
        return (
            to_compute(v, read_double(gamma, index)),
            to_compute(v, read_double(beta, index)),
        )
    return to_compute(v, 1.0), to_compute(v, 0.0)


@part
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
    plain = bare(v)
    step = width * compute_size(v)
    whole = width == get(geometry, geo.RUN) and get(geometry, geo.Y_ROW) == width
    cursor = np.intp(0)
    for row in range(row0, row1):
        g, b = row_gamma(plain, geometry, gamma, beta, outer, row)
        cursor = emit_normalized(
            v,
            address_of(plain, geometry, x, geo.X_OUTER, outer, row, column),
            address_of(plain, geometry, residual, geo.RESIDUAL_OUTER, outer, row, column),
            address_of(plain, geometry, y, geo.Y_OUTER, outer, row, column),
            width, coefficients, coefficients + step, coefficients + 2 * step, g, b,
            get(geometry, geo.STREAMED), scratch, cursor, not whole or row + 1 == row1,
        )  # fmt: skip


@kernel
def normalize(v, geometry, x, residual, y, gamma, beta, mean, m2, eps, center, scale, counters):
    """Moments and result, block of sets by block of sets. Writes mean and m2 a set."""
    plain = bare(v)
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
            _sum_columns(plain, geometry, x, outer0, outer1, 0, rows, column, width, center,
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
                    fill(
                        plain, geometry, gamma, beta, outer, column, width, firsts, seconds,
                        offsets, data_of(coefficients),
                    )  # fmt: skip
                _emit_rows(
                    v, geometry, x, residual, y, gamma, beta, outer, 0, rows, column, width,
                    data_of(coefficients), data_of(scratch),
                )  # fmt: skip
        task = finish_task(counters, task)
    keep(pilots), keep(firsts), keep(seconds), keep(coefficients), keep(scratch)


@kernel
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


@part
def read_lines(base, index, width, into):
    for j in range(width):
        into[j] = read_double(base, index + j)


@kernel
def apply(v, geometry, x, residual, y, gamma, beta, mean, slope, offset, counters):
    """The result from mean, slope and offset of every column of every outer block."""
    plain = bare(v)
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
        read_lines(mean, outer * run, run, means)
        read_lines(slope, outer * run, run, slopes)
        read_lines(offset, outer * run, run, offsets)
        fill(plain, geometry, gamma, beta, outer, 0, run, means, slopes, offsets,
              data_of(coefficients))  # fmt: skip
        _emit_rows(
            v, geometry, x, residual, y, gamma, beta, outer, row, min(row + tile, rows), 0, run,
            data_of(coefficients), data_of(scratch),
        )  # fmt: skip
        task = finish_task(counters, task)
    keep(coefficients), keep(scratch)
