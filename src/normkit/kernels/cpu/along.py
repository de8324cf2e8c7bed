"""Kernels for sets that lie along the contiguous run: rows of a channels-first tensor, tokens.

``normalize`` and, in :mod:`.along_backward`, ``backpropagate`` take blocks of sets, small
enough for the cache, so memory is read once. ``moments``, ``apply``, ``gradient_sums`` and
``gradient_apply`` are the same work in halves, for sets that are too large or whose statistics come
from elsewhere.

A line is a row. Its statistics are numbers; gamma is a number too, unless the variant is crossed.
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
    write_double,
)
from normkit.kernels.cpu.jit import kernel, part
from normkit.kernels.cpu.runs import (
    TILE,
    emit_normalized,
    read_input,
    sums_along,
)
from normkit.kernels.cpu.sets import is_far, remainder, set_moments, set_slope

#: Elements whose mean serves as pilot; enough that one outlier among them does no harm.
_PILOT = 64


@part
def pilot_of(v, x, n):
    """Mean of a run's first elements; 0 if that is not finite."""
    count = min(n, _PILOT)
    total = 0.0
    for i in range(count):
        total += np.float64(read_input(v, x, i))
    pilot = total / count
    return pilot if math.isfinite(pilot) else 0.0


@part
def _sum_block(
    v, geometry, x, outer0, outer1, line0, lines, count, pilots, firsts, seconds, center
):
    """Sums of the sets of one block, which starts at set ``line0`` and holds ``lines`` of them."""
    n, span = get(geometry, geo.RUN), get(geometry, geo.SET_LINES)
    stride = get(geometry, geo.X_ROW) * itemsize(v)
    if stride == n * itemsize(v):  # the rows of a set follow each other: one long run
        stride, n, span = stride * span, n * span, 1
    start = line0 * get(geometry, geo.SET_LINES)
    for s in range(lines):
        row = row_address(v, geometry, x, geo.X_OUTER, outer0, start) + s * span * stride
        pilots[s] = pilot_of(v, row, n) if center else 0.0
    # An outlier among the first elements makes a bad pilot; the sums around it make a good one.
    for attempt in range(2):
        for s in range(lines):
            firsts[s] = seconds[s] = 0.0
        for outer in range(outer0, outer1):
            row = row_address(v, geometry, x, geo.X_OUTER, outer, start)
            for s in range(lines):
                for _ in range(span):
                    first, second = sums_along(v, row, n, pilots[s])
                    firsts[s] += first
                    seconds[s] += second
                    row += stride
        far = False
        for s in range(lines):
            if center and attempt == 0 and is_far(count, firsts[s], seconds[s]):
                far = True
                better = pilots[s] + firsts[s] / count
                pilots[s] = better if math.isfinite(better) else 0.0
        if not far:
            break


@part
def row_address(v, geometry, base, field, outer, row):
    """Address of a row of the array whose strides lie at ``field``."""
    place = outer * get(geometry, field) + row * get(geometry, field + 1)
    return base + place * itemsize(v)


@part
def line_numbers(v, geometry, gamma, beta, outer, row, mean, slope, offset):
    """gamma, beta, mean, scale and shift as the loops take them."""
    index = outer * get(geometry, geo.GAMMA_OUTER) + row * get(geometry, geo.GAMMA_LINE)
    rounded = to_compute(v, mean)
    shift = offset - remainder(mean, rounded) * slope
    if is_crossed(v):
        gamma += index * compute_size(v)
        beta += index * compute_size(v)
    else:
        g = read_double(gamma, index)
        slope, shift = slope * g, shift * g + read_double(beta, index)
    return gamma, beta, rounded, to_compute(v, slope), to_compute(v, shift)


@part
def _emit_row(
    v, geometry, x, residual, y, gamma, beta, outer, row, mean, slope, offset, scratch, cursor, last
):
    """Normalize one row, given its set's mean, slope and offset."""
    plain = bare(v)
    gamma, beta, rounded, factor, shift = line_numbers(
        plain, geometry, gamma, beta, outer, row, mean, slope, offset
    )
    return emit_normalized(
        v,
        row_address(plain, geometry, x, geo.X_OUTER, outer, row),
        row_address(plain, geometry, residual, geo.RESIDUAL_OUTER, outer, row),
        row_address(plain, geometry, y, geo.Y_OUTER, outer, row),
        get(geometry, geo.RUN), rounded, factor, shift, gamma, beta, get(geometry, geo.STREAMED),
        scratch, cursor, last or get(geometry, geo.Y_ROW) != get(geometry, geo.RUN),
    )  # fmt: skip


@kernel
def normalize(v, geometry, x, residual, y, gamma, beta, mean, m2, eps, center, scale, counters):
    """Moments and result, block of sets by block of sets. Writes mean and m2 a set."""
    plain = bare(v)
    span, lines = get(geometry, geo.SET_LINES), get(geometry, geo.ROWS)
    outer_sets = ceil_div(get(geometry, geo.OUTER), get(geometry, geo.SET_OUTER))
    line_sets = lines // span
    block, wide = get(geometry, geo.BLOCK_OUTER), get(geometry, geo.BLOCK_LINES)
    columns = ceil_div(line_sets, wide)
    tasks = ceil_div(outer_sets, block) * columns
    pilots, firsts, seconds = np.empty(wide), np.empty(wide), np.empty(wide)
    scratch = np.empty(TILE * itemsize(v), np.uint8)
    task = first_task(counters)
    while task < tasks:
        start = task // columns * block
        set0 = task % columns * wide
        count = min(wide, line_sets - set0)
        for k in range(start, min(start + block, outer_sets)):
            outer0 = k * get(geometry, geo.SET_OUTER)
            outer1 = min(outer0 + get(geometry, geo.SET_OUTER), get(geometry, geo.OUTER))
            elements = np.float64((outer1 - outer0) * span * get(geometry, geo.RUN))
            _sum_block(
                plain,
                geometry,
                x,
                outer0,
                outer1,
                set0,
                count,
                elements,
                pilots,
                firsts,
                seconds,
                center,
            )
            for s in range(count):
                index = k * line_sets + set0 + s
                a, b = set_moments(elements, pilots[s], firsts[s], seconds[s], center)
                write_double(mean, index, a)
                write_double(m2, index, b)
                firsts[s], seconds[s] = a, set_slope(b, elements, eps, center, scale)
            for outer in range(outer0, outer1):
                cursor = np.intp(0)
                for s in range(count):
                    for r in range(span):
                        cursor = _emit_row(
                            v, geometry, x, residual, y, gamma, beta, outer, (set0 + s) * span + r,
                            firsts[s], seconds[s], 0.0, data_of(scratch), cursor,
                            s == count - 1 and r == span - 1,
                        )  # fmt: skip
        task = finish_task(counters, task)
    keep(scratch)


@kernel
def moments(v, geometry, x, mean, m2, center, counters):
    """Mean and m2 of every row."""
    rows, n, tile = get(geometry, geo.ROWS), get(geometry, geo.RUN), get(geometry, geo.TILE_ROWS)
    total = get(geometry, geo.OUTER) * rows
    task = first_task(counters)
    while task < ceil_div(total, tile):
        for line in range(task * tile, min((task + 1) * tile, total)):
            place = line // rows * get(geometry, geo.X_OUTER)
            row = x + (place + line % rows * get(geometry, geo.X_ROW)) * itemsize(v)
            pilot = pilot_of(v, row, n) if center else 0.0
            first, second = sums_along(v, row, n, pilot)
            if center and is_far(np.float64(n), first, second) and math.isfinite(first):
                pilot += first / n
                first, second = sums_along(v, row, n, pilot)
            a, b = set_moments(np.float64(n), pilot, first, second, center)
            write_double(mean, line, a)
            write_double(m2, line, b)
        task = finish_task(counters, task)


@kernel
def apply(v, geometry, x, residual, y, gamma, beta, mean, slope, offset, counters):
    """The result from mean, slope and offset of every row."""
    rows, tile = get(geometry, geo.ROWS), get(geometry, geo.TILE_ROWS)
    total = get(geometry, geo.OUTER) * rows
    scratch = np.empty(TILE * itemsize(v), np.uint8)
    task = first_task(counters)
    while task < ceil_div(total, tile):
        end = min((task + 1) * tile, total)
        cursor = np.intp(0)
        for line in range(task * tile, end):
            cursor = _emit_row(
                v, geometry, x, residual, y, gamma, beta, line // rows, line % rows,
                read_double(mean, line), read_double(slope, line), read_double(offset, line),
                data_of(scratch), cursor, line + 1 == end or (line + 1) % rows == 0,
            )  # fmt: skip
        task = finish_task(counters, task)
    keep(scratch)
