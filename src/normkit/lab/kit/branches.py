"""Deep residual networks whose branches start in ways that stand in for norms."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 - its usual name

from normkit.lab.data import Data
from normkit.lab.kit.networks import Flat, start
from normkit.lab.kit.skips import Block
from normkit.torch import BatchNorm1d

__all__ = ["Branch", "Branches", "Start"]

Tensor = torch.Tensor
#: What a branch has, to keep a deep network's activations in bounds.
Start = Literal["Fixup", "SkipInit", "batch norm", "neither"]


class Branch(nn.Module):
    """ReLU, Linear, ReLU, Linear, with a learned scalar to add in front of each, and a factor."""

    def __init__(self, first: nn.Module, last: nn.Module, factor: float = 1.0) -> None:
        super().__init__()
        self.first, self.last = first, last
        self.offsets = nn.Parameter(torch.zeros(4))
        self.factor = nn.Parameter(torch.tensor(factor))

    def forward(self, x: Tensor) -> Tensor:
        """What is added to the skip path."""
        offsets = self.offsets
        x = self.first(F.relu(x + offsets[0]) + offsets[1])
        return self.last(F.relu(x + offsets[2]) + offsets[3]) * self.factor


@dataclass(frozen=True)
class Branches:
    """Linear, blocks with branches of two layers, ReLU, Linear; all from He weights.

    Args:
        start: Fixup scales the first weight of each branch by blocks^(-1/2), which is
            L^(-1/(2m - 2)) for branches of m = 2 layers, and has the last ones and the head at
            zero (Zhang et al. 2019); SkipInit has a factor on the branch that starts at zero (De &
            Smith 2020); batch norm is in front of both ReLUs.
    """

    start: Start
    width: int = 64
    blocks: int = 50

    def build(self, data: Data, seed: int) -> nn.Sequential:
        """The network for these images; one seed draws the same weights whatever the start."""
        generator = torch.Generator().manual_seed(seed)
        stem = _he(data.features, self.width, generator, bias=True)
        blocks = [Block(self._branch(generator)) for _ in range(self.blocks)]
        head = _he(self.width, data.classes, generator, bias=True)
        if self.start == "Fixup":
            nn.init.zeros_(head.weight)
        return nn.Sequential(Flat(), stem, *blocks, nn.ReLU(), head)

    def _branch(self, generator: torch.Generator) -> nn.Module:
        first, last = (_he(self.width, self.width, generator) for _ in range(2))
        if self.start == "batch norm":
            norms = BatchNorm1d(self.width), BatchNorm1d(self.width)
            return nn.Sequential(norms[0], nn.ReLU(), first, norms[1], nn.ReLU(), last)
        if self.start == "Fixup":
            with torch.no_grad():
                first.weight *= self.blocks**-0.5
                last.weight.zero_()
        return Branch(first, last, factor=0.0 if self.start == "SkipInit" else 1.0)


def _he(inputs: int, outputs: int, generator: torch.Generator, bias: bool = False) -> nn.Linear:
    layer = nn.Linear(inputs, outputs, bias)
    start(layer, "he", generator)
    return layer
