"""A pool of large buffers.

Most of the time that a large result costs is the kernel's page faults on fresh memory. A freed
result's pages come back here and serve the next one. Blocks go back when the last array that uses
one dies, from whatever thread; all bookkeeping is single atomic operations of the interpreter, so
neither a lock nor a fork can leave it half done.
"""

from __future__ import annotations

import os
from collections import deque
from functools import lru_cache
from typing import Any

import numpy as np

from normkit.errors import OptionError

__all__ = ["cache_size", "empty", "empty_cache", "set_cache_limit"]

#: Below this the allocator itself is quick; NumPy asks for huge pages from 4 MiB on.
_SMALLEST = 1 << 20
_GRANULE = 1 << 16
_ALIGNMENT = 64
_DESCENDING = (5, 4, 3, 2, 1)


def _default_limit() -> int:
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        memory = 4 << 30
    return min(1 << 30, memory // 8)


_limit = _default_limit()
_free: dict[int, deque[np.ndarray]] = {}


class _Lease:
    """Owns a block while any array uses it, then hands it back."""

    __slots__ = ("__array_interface__", "__weakref__", "block")

    def __init__(self, block: np.ndarray) -> None:
        self.block = block
        self.__array_interface__: dict[str, Any] = {
            "shape": block.shape,
            "typestr": "|u1",
            "data": (block.ctypes.data, False),
            "version": 3,
        }

    def __del__(self) -> None:
        # The module's names may be gone when the interpreter shuts down.
        block = getattr(self, "block", None)
        if block is not None and _free is not None and cache_size is not None:
            _give_back(block)


def _give_back(block: np.ndarray) -> None:
    size = block.nbytes
    if size > _limit:
        return
    while cache_size() + size > _limit and _evict(size):
        pass
    if cache_size() + size <= _limit:
        _free.setdefault(size, deque()).append(block)


def _evict(size: int) -> bool:
    """Drop a block of another size, the longest unused size first; whether there was one."""
    for other in list(_free):
        if other != size:
            _pop(other)
            return True
    return False


def _pop(size: int) -> np.ndarray | None:
    blocks = _free.get(size)
    try:
        block = blocks.pop() if blocks is not None else None
    except IndexError:
        block = None
    if not blocks:
        _free.pop(size, None)
    return block


def _take(size: int) -> np.ndarray:
    block = _pop(size)
    return np.empty(size, np.uint8) if block is None else block


def buffer(nbytes: int) -> np.ndarray:
    """Uninitialized bytes, aligned to a cache line."""
    if nbytes < _SMALLEST:
        raw = np.empty(nbytes + _ALIGNMENT, np.uint8)
    else:
        size = -(-(nbytes + _ALIGNMENT) // _GRANULE) * _GRANULE
        raw = np.asarray(_Lease(_take(size)))
    start = -raw.ctypes.data % _ALIGNMENT
    return raw[start : start + nbytes]


@lru_cache(maxsize=1024)
def dense_strides(shape: tuple[int, ...], like: tuple[int, ...]) -> tuple[int, ...]:
    """Strides, in elements, of a dense array whose axes lie in memory in the order of ``like``.

    These are ``like`` itself if it is dense: libraries read the memory format off the strides of
    axes of length 1, too.
    """
    order = sorted(range(len(shape)), key=lambda a: (-abs(like[a]) if shape[a] > 1 else 0, a))
    strides = [1] * len(shape)
    step = 1
    for axis in reversed(order):
        strides[axis] = step
        step *= max(shape[axis], 1)
    if all(s == 1 or a == b for s, a, b in zip(shape, strides, like, strict=True)):
        return like
    return tuple(strides)


def empty(shape: tuple[int, ...], dtype: np.dtype[Any], strides: tuple[int, ...]) -> np.ndarray:
    """An uninitialized array with the given strides in elements, from the pool if large."""
    count = 1
    for size in shape:
        count *= size
    size = dtype.itemsize
    if count * size < _SMALLEST and strides == dense_strides(shape, _DESCENDING[: len(shape)]):
        return np.empty(shape, dtype)
    raw = buffer(count * size)
    return np.ndarray(shape, dtype, raw, strides=tuple([s * size for s in strides]))


def cache_size() -> int:
    """Bytes that the pool holds, unused."""
    return sum(size * len(blocks) for size, blocks in list(_free.items()))


def empty_cache() -> None:
    """Hand all unused blocks back to the operating system."""
    _free.clear()


def set_cache_limit(nbytes: int) -> None:
    """Keep at most this many unused bytes; 0 keeps none.

    Raises:
        OptionError: not a whole number of at least 0.
    """
    global _limit
    if not isinstance(nbytes, int) or isinstance(nbytes, bool) or nbytes < 0:
        raise OptionError(
            "The pool cannot have this limit",
            received=repr(nbytes),
            expected="bytes, a whole number of at least 0",
            remedy="set_cache_limit(0) switches the pool off.",
        )
    _limit = nbytes
    if cache_size() > nbytes:
        empty_cache()
