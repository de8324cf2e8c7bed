"""Numba's decorator as the kernels use it: for entry points, and for the parts they are made of."""

from __future__ import annotations

from functools import partial

from numba import njit

__all__ = ["INLINED", "inlined", "kernel", "part"]

#: For functions that only kernels call: what would let Python and C call them is not compiled.
part = partial(njit, nogil=True, no_cpython_wrapper=True, no_cfunc_wrapper=True)

#: For what loops do with one element: LLVM fills vector registers only where no call is left, and
#: leaves one to a function that it finds too long.
INLINED = {"forceinline": True}
inlined = partial(part, **INLINED)


def kernel(function):
    """A compiled entry point, kept on disk where there is a folder to write to."""
    options = {"nogil": True, "error_model": "numpy", "no_cfunc_wrapper": True}
    try:
        return njit(cache=True, **options)(function)
    except RuntimeError:  # no place for a cache: compile anew in every process
        return njit(**options)(function)
