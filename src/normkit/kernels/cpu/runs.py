"""Loops over contiguous elements: the only compiled code that touches every element.

A *run* is a stretch of contiguous elements. Where sets lie *along* it, the run has one mean and one
scale, which arrive as numbers; where sets lie *across* it, every position has its own, and they
arrive as addresses. The loops are the same.

The value normalized is  z = (x - mean) * scale + shift,  followed, when gamma varies inside the set
(the variant is *crossed*), by  z * gamma + beta.  The subtraction comes first: at a mean of
10^4 standard deviations x * scale + shift would cancel all digits, while x - mean is exact there.
Its gradient is  dx = scale * dz + linear * (x - mean) + constant,  dz times gamma when crossed.
"""

from __future__ import annotations

import numpy as np
from numba import types
from numba.extending import overload

from normkit.kernels.cpu import intrinsics as low
from normkit.kernels.cpu.intrinsics import (
    compute_size,
    has_activation,
    has_input_activation,
    has_residual,
    is_crossed,
    itemsize,
    to_compute,
)
from normkit.kernels.cpu.jit import inlined, part
from normkit.kernels.cpu.mathops import activate, activate_input, activation_slope, input_slope

# Sums may be reordered to fill vector registers (always in the same way, so results repeat);
# in the other loops only a * b + c may fuse.
_SUM = {"reassoc", "contract", "nsz"}
_MAP = {"contract"}
_PART = 16384

_raw, _dy, _residual = low.reader("x"), low.reader("dy"), low.reader("residual")
_gamma, _beta = low.compute_reader("gamma"), low.compute_reader("beta")
_mean, _scale, _shift = (low.compute_reader(role) for role in ("mean", "scale", "shift"))
_linear, _constant = low.compute_reader("linear"), low.compute_reader("constant")
_write, _write_second = low.writer("target"), low.writer("target2")
_first, _add_first = low.double_reader("first"), low.double_writer("first")
_second, _add_second = low.double_reader("second"), low.double_writer("second")
_pilot = low.double_reader("pilot")


@inlined(fastmath=_MAP)
def read_input(v, x, i):
    """What is normalized: x, or its activation."""
    value = _raw(v, x, i)
    if has_input_activation(v):
        value = to_compute(v, activate_input(v, np.float64(value)))
    return value


_x = read_input


@inlined(fastmath=_MAP)
def _through_input(v, x, i, gradient):
    """The gradient of x from that of what is normalized."""
    if has_input_activation(v):
        slope = input_slope(v, np.float64(_raw(v, x, i)))
        gradient = to_compute(v, np.float64(gradient) * slope)
    return gradient


@inlined(fastmath=_MAP)
def _standardized(v, x, residual, i, mean, scale, shift, gamma, beta):
    """The value in front of the activation."""
    z = (_x(v, x, i) - _mean(v, mean, i)) * _scale(v, scale, i) + _shift(v, shift, i)
    if is_crossed(v):
        z = z * _gamma(v, gamma, i) + _beta(v, beta, i)
    if has_residual(v):
        z = z + _residual(v, residual, i)
    return z


@inlined(fastmath=_MAP)
def _dz(v, x, dy, residual, i, mean, scale, shift, gamma, beta):
    """The gradient in front of the activation."""
    dz = _dy(v, dy, i)
    if has_activation(v):
        z = _standardized(v, x, residual, i, mean, scale, shift, gamma, beta)
        dz = to_compute(v, np.float64(dz) * activation_slope(v, np.float64(z)))
    return dz


@part(fastmath=_MAP)
def normalize(v, x, residual, y, n, mean, scale, shift, gamma, beta):
    for i in range(n):
        z = _standardized(v, x, residual, i, mean, scale, shift, gamma, beta)
        if has_activation(v):
            z = to_compute(v, activate(v, np.float64(z)))
        _write(v, y, i, z)


@part(fastmath=_MAP)
def gradient(
    v, x, dy, residual, dx, dz_out, n, mean, scale, shift, gamma, beta, linear, constant, curved
):
    """``curved`` says whether there is a way through the variance; if not, x does not matter."""
    if curved:
        for i in range(n):
            dz = _dz(v, x, dy, residual, i, mean, scale, shift, gamma, beta)
            if has_residual(v) and has_activation(v):
                _write_second(v, dz_out, i, dz)
            if is_crossed(v):
                dz = dz * _gamma(v, gamma, i)
            centered = _x(v, x, i) - _mean(v, mean, i)
            rest = centered * _linear(v, linear, i) + _constant(v, constant, i)
            _write(v, dx, i, _through_input(v, x, i, dz * _scale(v, scale, i) + rest))
    else:
        for i in range(n):
            dz = _dz(v, x, dy, residual, i, mean, scale, shift, gamma, beta)
            if has_residual(v) and has_activation(v):
                _write_second(v, dz_out, i, dz)
            if is_crossed(v):
                dz = dz * _gamma(v, gamma, i)
            rest = _constant(v, constant, i)
            _write(v, dx, i, _through_input(v, x, i, dz * _scale(v, scale, i) + rest))


# --- sums over sets along the run: a run adds to one pair of sums -------------------------------


@part(fastmath=_SUM)
def sums_along(v, x, n, pilot):
    """Sum of x - pilot and of its square, in float64.

    Around a pilot within the data's range the sums lose nothing to cancellation.
    """
    first, second = 0.0, 0.0
    # In parts: long chains of additions lose digits.
    for start in range(0, n, _PART):
        part_first, part_second = 0.0, 0.0
        for i in range(start, min(start + _PART, n)):
            d = np.float64(_x(v, x, i)) - pilot
            part_first += d
            part_second += d * d
        first += part_first
        second += part_second
    return first, second


@part(fastmath=_SUM)
def gradient_sums_along(v, x, dy, residual, n, center, mean, scale, shift, gamma, beta):
    """Sum of dz and of dz * (x - center), dz times gamma when crossed."""
    first, second = 0.0, 0.0
    for i in range(n):
        dz = np.float64(_dz(v, x, dy, residual, i, mean, scale, shift, gamma, beta))
        if is_crossed(v):
            dz = dz * np.float64(_gamma(v, gamma, i))
        first += dz
        second += dz * (np.float64(_x(v, x, i)) - center)
    return first, second


@part(fastmath=_MAP)
def affine_sums_along(
    v, x, dy, residual, n, center, mean, scale, shift, gamma, beta, slope, offset, dbeta, dgamma
):
    """Add dz to dbeta and dz * x_hat to dgamma, element by element."""
    for i in range(n):
        dz = np.float64(_dz(v, x, dy, residual, i, mean, scale, shift, gamma, beta))
        x_hat = (np.float64(_x(v, x, i)) - center) * slope + offset
        _add_first(dbeta, i, _first(dbeta, i) + dz)
        _add_second(dgamma, i, _second(dgamma, i) + dz * x_hat)


# --- sums over sets across the run: every position of the run has a pair of sums ----------------


@part(fastmath=_SUM)
def _sums_across_four(v, x, stride, n, pilot, first, second):
    x1, x2, x3 = x + stride, x + 2 * stride, x + 3 * stride
    for i in range(n):
        p = _pilot(pilot, i)
        d0, d1 = np.float64(_x(v, x, i)) - p, np.float64(_x(v, x1, i)) - p
        d2, d3 = np.float64(_x(v, x2, i)) - p, np.float64(_x(v, x3, i)) - p
        _add_first(first, i, _first(first, i) + ((d0 + d1) + (d2 + d3)))
        squares = (d0 * d0 + d1 * d1) + (d2 * d2 + d3 * d3)
        _add_second(second, i, _second(second, i) + squares)


@part(fastmath=_SUM)
def _sums_across_one(v, x, n, pilot, first, second):
    for i in range(n):
        d = np.float64(_x(v, x, i)) - _pilot(pilot, i)
        _add_first(first, i, _first(first, i) + d)
        _add_second(second, i, _second(second, i) + d * d)


@part
def sums_across(v, x, stride, rows, n, pilot, first, second):
    """Add x - pilot and its square of every row to the sums of its columns."""
    row = 0
    # Four rows a sweep: the sums travel through the cache once for four elements.
    while row + 4 <= rows:
        _sums_across_four(v, x + row * stride, stride, n, pilot, first, second)
        row += 4
    while row < rows:
        _sums_across_one(v, x + row * stride, n, pilot, first, second)
        row += 1


@part(fastmath=_SUM)
def gradient_sums_across(
    v, x, dy, residual, n, pilot, mean, scale, shift, gamma, beta, first, second
):
    """Add dz and dz * (x - pilot) to the sums of their columns, dz times gamma when crossed."""
    for i in range(n):
        dz = np.float64(_dz(v, x, dy, residual, i, mean, scale, shift, gamma, beta))
        if is_crossed(v):
            dz = dz * np.float64(_gamma(v, gamma, i))
        centered = np.float64(_x(v, x, i)) - _pilot(pilot, i)
        _add_first(first, i, _first(first, i) + dz)
        _add_second(second, i, _second(second, i) + dz * centered)


@part(fastmath=_SUM)
def gradient_sums_across_two(
    v, x, dy, residual, x_stride, dy_stride, residual_stride, n, pilot, mean, scale, shift,
    first, second,
):  # fmt: skip
    """The same for two rows at once, of a variant that is not crossed."""
    x1, dy1, residual1 = x + x_stride, dy + dy_stride, residual + residual_stride
    unit = to_compute(v, 1.0)  # for gamma and beta, which are in scale and shift
    for i in range(n):
        a = np.float64(_dz(v, x, dy, residual, i, mean, scale, shift, unit, unit))
        b = np.float64(_dz(v, x1, dy1, residual1, i, mean, scale, shift, unit, unit))
        p = _pilot(pilot, i)
        products = a * (np.float64(_x(v, x, i)) - p) + b * (np.float64(_x(v, x1, i)) - p)
        _add_first(first, i, _first(first, i) + (a + b))
        _add_second(second, i, _second(second, i) + products)


@part(fastmath=_SUM)
def affine_sums_across(
    v, x, dy, residual, n, pilot, mean, scale, shift, gamma, beta, slope, offset
):
    """Sum of dz and of dz * x_hat over a row whose gamma and beta are its own."""
    dbeta, dgamma = 0.0, 0.0
    for i in range(n):
        dz = np.float64(_dz(v, x, dy, residual, i, mean, scale, shift, gamma, beta))
        x_hat = (np.float64(_x(v, x, i)) - _pilot(pilot, i)) * _first(slope, i) + _second(offset, i)
        dbeta += dz
        dgamma += dz * x_hat
    return dbeta, dgamma


# --- results past the cache ---------------------------------------------------------------------

#: Elements of a scratch buffer: a tile stays in the first-level cache until it is copied out.
TILE = 2048


@part
def flush(target, scratch, size):
    """Move ``size`` bytes from scratch to memory, whole cache lines past the cache."""
    head = min(-target % low.CACHE_LINE, size)
    body = (size - head) // low.CACHE_LINE * low.CACHE_LINE
    low.copy_bytes(target, scratch, head)
    low.stream_lines(target + head, scratch + head, body)
    rest = head + body
    low.copy_bytes(target + rest, scratch + rest, size - rest)


def advance(v, value, count):
    """The address ``count`` compute-dtype elements on; a number stays."""
    raise RuntimeError("only for compiled code")


@overload(advance)
def _advance(v, value, count):
    if isinstance(value, types.Float):
        return lambda v, value, count: value
    return lambda v, value, count: value + count * compute_size(v)


@part
def emit_normalized(
    v, x, residual, y, n, mean, scale, shift, gamma, beta, streamed, scratch, cursor, last
):
    """Normalize a run into memory, directly or through scratch.

    Runs that continue each other in memory share the scratch buffer: ``cursor`` says how much of it
    is filled, and ``last`` that the next run does not continue this one. It starts as np.intp(0):
    to Numba a literal 0 is of another type, for which all of this would be compiled again.
    """
    if not streamed:
        normalize(v, x, residual, y, n, mean, scale, shift, gamma, beta)
        return 0
    size = itemsize(v)
    done = 0
    while done < n:
        count = min(n - done, TILE - cursor)
        normalize(
            v, x + done * size, residual + done * size, scratch + cursor * size, count,
            advance(v, mean, done), advance(v, scale, done), advance(v, shift, done),
            advance(v, gamma, done), advance(v, beta, done),
        )  # fmt: skip
        cursor, done = cursor + count, done + count
        if cursor == TILE or (last and done == n):
            flush(y + (done - cursor) * size, scratch, cursor * size)
            cursor = 0
    return cursor


@part
def emit_gradient(
    v, x, dy, residual, dx, dz_out, n, mean, scale, shift, gamma, beta, linear, constant, curved,
    streamed, scratch, cursor, last,
):  # fmt: skip
    """Like :func:`emit_normalized` for dx and, behind an activation, the residual's gradient."""
    if not streamed:
        gradient(
            v, x, dy, residual, dx, dz_out, n, mean, scale, shift, gamma, beta, linear, constant,
            curved,
        )  # fmt: skip
        return 0
    size = itemsize(v)
    second = scratch + TILE * size
    done = 0
    while done < n:
        count = min(n - done, TILE - cursor)
        gradient(
            v, x + done * size, dy + done * size, residual + done * size,
            scratch + cursor * size, second + cursor * size, count,
            advance(v, mean, done), advance(v, scale, done), advance(v, shift, done),
            advance(v, gamma, done), advance(v, beta, done),
            advance(v, linear, done), advance(v, constant, done), curved,
        )  # fmt: skip
        cursor, done = cursor + count, done + count
        if cursor == TILE or (last and done == n):
            behind = (done - cursor) * size
            flush(dx + behind, scratch, cursor * size)
            if has_residual(v) and has_activation(v):
                flush(dz_out + behind, second, cursor * size)
            cursor = 0
    return cursor
