"""NumPy arrays as the compiled kernels see them."""

from __future__ import annotations

from typing import Any

import numpy as np

from normkit.kernels import memory


class NumpyHost:
    """:class:`normkit.kernels.cpu.backend.Host` for ``numpy.ndarray``."""

    def address(self, array: Any) -> int:
        return array.ctypes.data

    def strides(self, array: Any) -> tuple[int, ...]:
        size = array.itemsize
        return tuple([stride // size for stride in array.strides])

    def dtype(self, array: Any) -> str:
        return array.dtype.name

    def empty(self, like: Any, strides: tuple[int, ...]) -> Any:
        return memory.empty(like.shape, like.dtype, strides)

    def copy(self, array: Any, strides: tuple[int, ...]) -> Any:
        fresh = memory.empty(array.shape, array.dtype, strides)
        fresh[...] = array
        return fresh

    def assign(self, target: Any, values: Any) -> None:
        target[...] = values

    def parameter(self, values: Any) -> Any:
        return values

    def parameter_gradient(self, gradient: Any, parameter: Any) -> Any:
        return gradient.astype(parameter.dtype, copy=False)


def well_formed(array: Any) -> Any:
    """The array itself, or a copy where bytes are swapped, misaligned or strides no whole numbers."""
    size = array.itemsize
    if (
        array.flags.aligned
        and array.dtype.isnative
        and not any(stride % size for stride in array.strides)
    ):
        return array
    return np.array(array, dtype=array.dtype.newbyteorder("="), order="K", copy=True)
