"""Memory: outputs of norm and activation recomputed in backward instead of kept.

In conv -> norm -> relu -> conv, PyTorch keeps the first convolution's output for the norm and the
relu's output for the second convolution. The second follows from the first by one pass over memory,
so within :func:`lean_memory` only the first is kept: whoever wants to save the output of a norm
layer (with its activation, as in :class:`normkit.torch.NormAct`) saves a promise to recompute it.
Works with any activation and any weights, because nothing is inverted.
"""

from __future__ import annotations

import threading
import weakref
from typing import Any

import torch

from normkit.torch.calls import Repeat, can_repeat, check_version

__all__ = ["is_lean", "lean_memory", "offered"]

Tensor = torch.Tensor


class _Local(threading.local):
    """Each thread has its own contexts, as PyTorch's hooks are each thread's own."""

    def __init__(self) -> None:
        self.active: list[lean_memory] = []


_local = _Local()


class _Promise:
    """The output of a norm's node, computed again when asked for."""

    __slots__ = ("repeat", "shape", "strides")

    def __init__(self, repeat: Repeat, like: Tensor) -> None:
        self.repeat, self.shape, self.strides = repeat, like.shape, like.stride()

    def keep(self) -> Tensor:
        return self.repeat.output().as_strided(self.shape, self.strides)


class lean_memory:  # noqa: N801 - a context manager, used like a function
    """Within this context, keep no output of a norm layer for backward that can be recomputed.

    Around the forward pass only; gradients are the same, to the rounding of one recomputation.

    >>> import torch, normkit.torch as nt
    >>> net = torch.nn.Sequential(nt.NormAct(nt.BatchNorm2d(3)), torch.nn.Conv2d(3, 4, 3))
    >>> with nt.lean_memory():
    ...     loss = net(torch.randn(2, 3, 8, 8, requires_grad=True)).sum()
    >>> loss.backward()
    """

    def __init__(self) -> None:
        self._offers: dict[int, tuple[Any, int, Any]] = {}

    def __enter__(self) -> lean_memory:
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, _unpack)
        self._hooks.__enter__()
        _local.active.append(self)
        return self

    def __exit__(self, *error: Any) -> None:
        _local.active.remove(self)
        self._hooks.__exit__(*error)
        self._offers.clear()

    def offer(self, y: Tensor) -> None:
        """Remember that y can be computed again by the node that made it."""
        address = y.data_ptr()
        self._offers[address] = (weakref.ref(y), y._version, Repeat(y.grad_fn))

    def _pack(self, tensor: Tensor) -> Any:
        found = self._offers.get(tensor.data_ptr())
        if found is None:
            return tensor, tensor._version
        y, version, repeat = found
        alive = y()
        # Another tensor may have moved into the memory, or y may have been changed in place.
        same = (
            alive is not None
            and alive.data_ptr() == tensor.data_ptr()
            and tensor._version == version
            and tensor.dtype == alive.dtype
            and _same_elements(tensor, alive)
        )
        return _Promise(repeat, tensor) if same else (tensor, tensor._version)


def _unpack(packed: Any) -> Tensor:
    if isinstance(packed, _Promise):
        return packed.keep()
    check_version(*packed)  # where hooks are at work, PyTorch does not look
    return packed[0]


def _same_elements(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors at one address are the same stretch of memory, perhaps reshaped."""
    if a.shape == b.shape and a.stride() == b.stride():
        return True
    return a.numel() == b.numel() and a.is_contiguous() and b.is_contiguous()


def is_lean() -> bool:
    """Whether a lean context is active in this thread."""
    return not torch.compiler.is_compiling() and bool(_local.active)


def offered(y: Tensor) -> Tensor:
    """y, having been offered to the active lean context, if there is one."""
    if not torch.compiler.is_compiling() and _local.active and can_repeat(y.grad_fn):
        _local.active[-1].offer(y)
    return y
