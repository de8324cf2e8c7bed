"""How far two sets of statistics lie apart, and how far they may by chance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from normkit.models.measuring.spread import Spread

__all__ = ["Drift", "between", "divergence", "from_running"]

Tensor = torch.Tensor


@dataclass(frozen=True, eq=False)
class Drift:
    """By channel, (C,) each, in float64.

    Args:
        divergence: KL of the new normal distribution from the old one; 0.02 is a mean that is off
            by 0.2 standard deviations, or a variance that is off by a quarter. Both variances have
            eps added, as in the norm: below it nothing matters.
        chance: the divergence to be expected of samples from one distribution.
        mean_shift: (new - old mean) / old standard deviation.
        ratio: new / old variance.
    """

    divergence: Tensor
    chance: Tensor
    mean_shift: Tensor
    ratio: Tensor


def divergence(shift: Tensor, ratio: Tensor) -> Tensor:
    """KL of a normal distribution from an old one.

    Args:
        shift: of the mean, in old standard deviations.
        ratio: new variance / old variance.
    """
    return 0.5 * (ratio - 1 - ratio.log() + shift.square())


def from_running(
    mean: Tensor, var: Tensor, seen: Spread, eps: float | None, behind: float
) -> Drift:
    """What was seen against running statistics that rest on about ``behind`` samples."""
    return _drift(mean.double(), var.double(), seen, eps, 1.0 / seen.samples + 1.0 / behind)


def between(old: Spread, new: Spread, eps: float | None) -> Drift:
    """What was seen in one place against what was seen in another."""
    share = 1.0 / old.samples + 1.0 / new.samples
    return _drift(old.elements.mean, old.elements.population_var, new, eps, share)


def _drift(mean: Tensor, var: Tensor, seen: Spread, eps: float | None, share: float) -> Drift:
    mean, var = mean.detach().cpu(), var.detach().cpu().clamp(min=0) + (eps or 0.0)
    new_mean: Any = seen.elements.mean
    new_var = seen.elements.population_var + (eps or 0.0)
    tiny = torch.finfo(torch.float64).tiny
    var, new_var = var.clamp(min=tiny), new_var.clamp(min=tiny)
    ratio = new_var / var
    shift = (new_mean - mean) / var.sqrt()
    # Second order in the errors of mean and variance; of independent normal values it is `share`.
    noise = 0.5 * (seen.mean_scatter / new_var + 0.5 * seen.var_scatter / new_var.square())
    return Drift(divergence(shift, ratio), share * noise, shift, ratio)
