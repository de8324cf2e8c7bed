"""The shape of one call, as the numbers that a kernel reads from memory.

Memory is seen as (outer, rows, run): ``run`` contiguous elements, ``rows`` of them a stride apart,
``outer`` such blocks. Sets span ``set_outer`` blocks (the last set may have fewer) and
``set_lines`` neighbouring lines, a line being a row where sets lie along the run and a position of
the run where they lie across it.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass

import numpy as np

from normkit.kernels.cpu.intrinsics import fetch_add, read_integer
from normkit.kernels.cpu.jit import part


@dataclass(frozen=True)
class Strides:
    """Elements from one outer block, and from one row, to the next."""

    outer: int = 0
    row: int = 0


@dataclass(frozen=True)
class Geometry:
    """Everything about a call but its addresses. The order of the fields is the kernels' own."""

    outer: int
    rows: int
    run: int
    set_outer: int
    set_lines: int
    block_outer: int  # outer sets a task
    block_lines: int  # line sets a task
    gamma_outer: int  # elements of gamma from one outer block, and from one line, to the next
    gamma_line: int
    gamma_span: int  # neighbouring lines that share a gamma
    streamed: int  # results go past the cache
    tile_rows: int  # rows a task where sets are taken in two passes
    x: Strides
    y: Strides
    dy: Strides
    residual: Strides

    def packed(self) -> np.ndarray:
        """As one int64 array."""
        flat: list[int] = []
        for value in astuple(self):
            flat.extend(value if isinstance(value, tuple) else (value,))
        return np.array(flat, dtype=np.int64)


# Where each number lies in the packed array.
(OUTER, ROWS, RUN, SET_OUTER, SET_LINES, BLOCK_OUTER, BLOCK_LINES, GAMMA_OUTER, GAMMA_LINE,
 GAMMA_SPAN, STREAMED, TILE_ROWS, X_OUTER, X_ROW, Y_OUTER, Y_ROW, DY_OUTER, DY_ROW,
 RESIDUAL_OUTER, RESIDUAL_ROW) = range(20)  # fmt: skip


@part
def ceil_div(a, b):
    return (a + b - 1) // b


@part
def first_task(counters):
    """Threads draw tasks from a shared counter; a lone thread takes them in turn."""
    return fetch_add(counters, 0, 1) if counters else 0


@part
def finish_task(counters, task):
    """Count a task as done and draw the next."""
    if not counters:
        return task + 1
    fetch_add(counters, 1, 1)
    return fetch_add(counters, 0, 1)


@part
def get(geometry, field):
    return read_integer(geometry, field)


@part
def data_of(array):
    """Where a buffer begins, as a signed number like all addresses: each type means code more."""
    return np.intp(array.ctypes.data)


@part
def keep(array):
    """Keeps a buffer alive up to here: kernels hold addresses, which Numba does not count."""
    return array.size
