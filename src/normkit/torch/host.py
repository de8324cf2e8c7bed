"""PyTorch's CPU tensors as the compiled kernels see them: no copies, bfloat16 included."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from normkit.kernels import memory

#: Below this, PyTorch's own allocator is quicker than the pool.
_POOLED = 1 << 20


class TorchHost:
    """:class:`normkit.kernels.cpu.backend.Host` for strided CPU tensors."""

    def address(self, array: Any) -> int:
        return array.data_ptr()

    def strides(self, array: Any) -> tuple[int, ...]:
        return array.stride()

    def dtype(self, array: Any) -> str:
        return _NAMES[array.dtype]

    def empty(self, like: Any, strides: tuple[int, ...]) -> Any:
        size = like.numel() * like.element_size()
        if size < _POOLED:
            return torch.empty_strided(like.shape, strides, dtype=like.dtype)
        raw = torch.from_numpy(memory.buffer(size)).untyped_storage()
        # Not a view of raw: autograd forbids changing a custom function's views in place.
        return torch.empty(0, dtype=like.dtype).set_(raw, 0, like.shape, strides)

    def overlaps(self, a: Any, b: Any) -> bool:
        return bool(a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr())

    def copy(self, array: Any, strides: tuple[int, ...]) -> Any:
        fresh = self.empty(array, strides)
        fresh.copy_(array)
        return fresh

    def assign(self, target: Any, values: Any) -> None:
        target.copy_(values)

    def parameter(self, values: Any) -> Any:
        if values.dtype in (torch.float32, torch.float64):
            return values.detach().numpy()
        return values.detach().to(torch.float32).numpy()

    def parameter_gradient(self, gradient: Any, parameter: Any) -> Any:
        return torch.from_numpy(np.ascontiguousarray(gradient)).to(parameter.dtype)


_NAMES = {
    torch.float16: "float16",
    torch.bfloat16: "bfloat16",
    torch.float32: "float32",
    torch.float64: "float64",
}
