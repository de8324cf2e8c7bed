"""Networks with skip connections."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from normkit.lab.data import Data
from normkit.lab.kit.networks import Flat, Norm, norm_layer, start

__all__ = ["Block", "Residual"]

Tensor = torch.Tensor


class Block(nn.Module):
    """The identity plus a branch."""

    def __init__(self, branch: nn.Module) -> None:
        super().__init__()
        self.branch = branch

    def forward(self, x: Tensor) -> Tensor:
        """The skip path and what the branch adds to it."""
        return x + self.branch(x)


@dataclass(frozen=True)
class Residual:
    """A Linear whose outputs vary as its inputs do, blocks, and a Linear to the classes.

    The branch of a block is norm, ReLU and Linear from He weights.
    """

    width: int = 512
    blocks: int = 50
    norm: Norm = "batch"

    def build(self, data: Data, seed: int) -> nn.Sequential:
        """The network for these images; one seed draws the same weights whatever the norm."""
        generator = torch.Generator().manual_seed(seed)
        stem = start(nn.Linear(data.features, self.width), data.features**-0.5, generator)
        blocks = [Block(self._branch(generator)) for _ in range(self.blocks)]
        head = start(nn.Linear(self.width, data.classes), "he", generator)
        return nn.Sequential(Flat(), stem, *blocks, head)

    def _branch(self, generator: torch.Generator) -> nn.Module:
        linear = start(nn.Linear(self.width, self.width), "he", generator)
        return nn.Sequential(norm_layer(self.norm, self.width), nn.ReLU(), linear)
