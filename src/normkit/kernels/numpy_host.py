"""NumPy arrays as the compiled kernels see them."""

from __future__ import annotations

from typing import Any

import numpy as np

from normkit.kernels import memory

_labels: dict[Any, str] = {}


def dtype_label(dtype: Any) -> str:
    """``float32`` for NumPy's, PyTorch's or JAX's dtype of that name."""
    # A plain dictionary, because PyTorch's compiler traces through it.
    label = _labels.get(dtype)
    if label is None:
        label = _labels[dtype] = str(dtype).rsplit(".", 1)[-1]
    return label


class NumpyHost:
    """:class:`normkit.kernels.cpu.backend.Host` for ``numpy.ndarray``."""

    def address(self, array: Any) -> int:
        return array.ctypes.data

    def strides(self, array: Any) -> tuple[int, ...]:
        size = array.itemsize
        return tuple([stride // size for stride in array.strides])

    def dtype(self, array: Any) -> str:
        return dtype_label(array.dtype)

    def empty(self, like: Any, strides: tuple[int, ...]) -> Any:
        return memory.empty(like.shape, like.dtype, strides)

    def copy(self, array: Any, strides: tuple[int, ...]) -> Any:
        fresh = memory.empty(array.shape, array.dtype, strides)
        fresh[...] = array
        return fresh

    def overlaps(self, a: Any, b: Any) -> bool:
        return np.may_share_memory(a, b)

    def assign(self, target: Any, values: Any) -> None:
        target[...] = values

    def parameter(self, values: Any) -> Any:
        return values

    def parameter_gradient(self, gradient: Any, parameter: Any) -> Any:
        return gradient.astype(parameter.dtype, copy=False)


def well_formed(array: Any) -> Any:
    """The array itself; a copy where bytes are swapped or misaligned, or strides odd."""
    flags = array.flags
    if flags.c_contiguous and flags.aligned and array.dtype.isnative:
        return array
    size = array.itemsize
    if (
        flags.aligned
        and array.dtype.isnative
        and not any(stride % size for stride in array.strides)
    ):
        return array
    return np.array(array, dtype=array.dtype.newbyteorder("="), order="K", copy=True)
