"""What a backward pass keeps in memory, and a batch norm that keeps less."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 - its usual name

__all__ = ["EPS", "SLOPE", "InPlaceNorm", "Kept"]

Tensor = torch.Tensor
SLOPE, EPS = 0.01, 1e-5


@dataclass(eq=False)
class Kept:
    """What a forward pass keeps for backward: each storage once, of parameters none."""

    network: nn.Module
    sizes: dict[int, int] = field(default_factory=dict)

    def pack(self, tensor: Tensor) -> Tensor:
        """Count it."""
        storage = tensor.untyped_storage()
        self.sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    @property
    def bytes(self) -> int:
        """In all."""
        for parameter in self.network.parameters():
            self.sizes.pop(parameter.untyped_storage().data_ptr(), None)
        return sum(self.sizes.values())


class InPlace(torch.autograd.Function):
    """Batch norm and leaky ReLU whose backward pass knows nothing but their output.

    The leaky ReLU is undone by its slope, gamma and beta by theirs: so neither may be zero.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
        """Batch statistics; one gamma and beta a channel."""
        axes = (0, 2, 3)
        var, mean = torch.var_mean(x, axes, correction=0, keepdim=True)
        scale = (var + EPS).rsqrt()
        y = F.leaky_relu((x - mean) * scale * _maps(gamma) + _maps(beta), SLOPE)
        ctx.save_for_backward(y, gamma, beta, scale)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Of x, gamma and beta."""
        y, gamma, beta, scale = ctx.saved_tensors
        axes = (0, 2, 3)
        g = torch.where(y > 0, grads[0], SLOPE * grads[0])
        x_hat = (torch.where(y > 0, y, y / SLOPE) - _maps(beta)) / _maps(gamma)
        centred = g - g.mean(axes, keepdim=True) - x_hat * (g * x_hat).mean(axes, keepdim=True)
        return _maps(gamma) * scale * centred, (g * x_hat).sum(axes), g.sum(axes)


def _maps(values: Tensor) -> Tensor:
    return values.reshape(-1, 1, 1)


class InPlaceNorm(nn.Module):
    """The same as a layer."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Normalized by the batch, and activated."""
        return InPlace.apply(x, self.weight, self.bias)
