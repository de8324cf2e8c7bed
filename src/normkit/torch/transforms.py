"""Whether PyTorch is looking through a call: tracing, mapping or differentiating it by operators.

The compiled kernels are opaque to these; :mod:`normkit.torch.calls` then computes the same by
PyTorch's own operators. The only home of PyTorch's private names for its modes.
"""

from __future__ import annotations

import torch
from torch.autograd import forward_ad

__all__ = [
    "is_batched",
    "is_mapped",
    "is_recomputation",
    "is_recorded",
    "is_transformed",
    "snapshot",
]

_functorch_level = torch._C._functorch.maybe_current_level
_dispatch_modes = torch._C._len_torch_dispatch_stack
_is_batched = torch._C._functorch.is_batchedtensor
_is_old_batched = torch._C._functorch.is_legacy_batchedtensor  # of is_grads_batched=True
_graph_task = torch._C._current_graph_task_id


def is_transformed() -> bool:
    """Whether torch.compile, torch.export, torch.func, forward AD or a dispatch mode is at work."""
    return (
        torch.compiler.is_compiling()
        or is_mapped()
        or forward_ad._current_level >= 0
        or _dispatch_modes() > 0
        or torch._C._is_tracing()
    )


def is_recorded() -> bool:
    """Whether torch.jit.trace, or an ONNX export by it, notes operators: sizes become constants."""
    return torch.jit.is_tracing()  # type: ignore[attr-defined]


def is_mapped() -> bool:
    """Whether torch.func looks through, where a tensor's memory format cannot be asked for."""
    return _functorch_level() is not None


def is_batched(tensor: torch.Tensor) -> bool:
    """Whether a tensor stands for many, which lie nowhere as one: a gradient under vmap."""
    return is_mapped() or _is_batched(tensor) or _is_old_batched(tensor)


def is_recomputation() -> bool:
    """Whether this forward runs inside a backward pass, as activation checkpointing does it.

    Such a forward sees a batch for the second time and must not count it again.
    """
    return not torch.compiler.is_compiling() and _graph_task() != -1


def snapshot(values: torch.Tensor) -> torch.Tensor:
    """A copy of a buffer as it is now, for forward and backward, though the buffer moves between.

    A compiler would rather copy again in backward, from what the buffer holds by then, and give
    wrong gradients silently (pytorch/pytorch#197039). It keeps results of a sum, so here is one.
    """
    if not torch.compiler.is_compiling():
        return values.clone()
    return values.unsqueeze(0).cumsum(0, dtype=values.dtype).squeeze(0)
