"""The distribution of values by channel, and how surely it is known."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from normkit.moments import Moments

__all__ = ["Spread"]

Tensor = torch.Tensor


@dataclass(frozen=True, eq=False)
class Spread:
    """Statistics by channel that know how uncertain they are.

    The elements of one image are no independent draws; samples are. So what an average over all
    elements may be off by is told from how far the samples lie apart.

    Args:
        elements: moments of all elements, (C,), float64.
        samples: independent draws behind them.
        mean_scatter: variance between the samples of their means, (C,).
        var_scatter: variance between the samples of their mean squared deviations, (C,).
    """

    elements: Moments
    samples: int
    mean_scatter: Tensor
    var_scatter: Tensor
