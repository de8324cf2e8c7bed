"""Deep residual networks learn without norms when their branches start at zero."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 - its usual name

from normkit.lab.claim import Axes

Tensor = torch.Tensor
WIDTH, BLOCKS, RATES = 64, 50, (0.1, 0.01, 0.001)
VARIANCE = Axes("At the start", "blocks", "mean square of the outputs, by the first", log_y=True)
CURVES = Axes("Learning", "training steps", "test images right (share)", y_range=(0, 1.02))


class Branch(nn.Module):
    """ReLU, Linear, ReLU, Linear, with a scalar to add in front of each and one to multiply."""

    def __init__(self, first: nn.Module, last: nn.Module, factor: float) -> None:
        super().__init__()
        self.first, self.last = first, last
        self.offsets = nn.Parameter(torch.zeros(4))
        self.factor = nn.Parameter(torch.tensor(factor))

    def forward(self, x: Tensor) -> Tensor:
        """What is added to the skip path."""
        o = self.offsets
        x = self.first(F.relu(x + o[0]) + o[1])
        return self.last(F.relu(x + o[2]) + o[3]) * self.factor
