"""Batch norm can be the identity, and twice is once."""

from __future__ import annotations

import torch

from normkit import torch as nkt
from normkit.lab.claim import Claim, Measured
from normkit.lab.kit.residuals import EPSILONS, apart, draw, equal, kernels, most, residual
from normkit.lab.setup import Setup

CHANNELS = 6


@kernels()
@torch.no_grad()
def measure(setup: Setup) -> Measured:
    x = 2 + 1.5 * draw(setup.generator(), 12, CHANNELS, 3, 4)
    bare, wide = (nkt.BatchNorm2d(CHANNELS, eps, affine=False).double() for eps in (0.0, 0.5))
    return Measured(
        {
            "undone": most(_undone(x, eps) for eps in EPSILONS),
            "twice": residual(bare(bare(x)), bare(x)),
            "twice_eps": residual(wide(wide(x)), wide(x)),
        }
    )


def _undone(x: torch.Tensor, eps: float) -> float:
    layer = nkt.BatchNorm2d(CHANNELS, eps, momentum=1.0).double()
    layer(x)
    biased = layer.running_var * (1 - CHANNELS / x.numel())
    layer.weight.copy_((biased + eps).sqrt())
    layer.bias.copy_(layer.running_mean)
    return residual(layer(x), x)


CLAIM = Claim(
    name="undo",
    title="Batch norm can undo itself",
    sentence="With γ = √(v + ε) and β = μ batch norm gives back its input, so that it can "
    "represent the identity; without ε, normalizing twice is normalizing once.",
    source="Ioffe & Szegedy 2015, section 3; idempotence is folklore",
    paper="exact",
    experiment="A batch norm layer in training mode on 12×6×3×4 random numbers in float64, "
    "ε = 0, 1e-5, 1e-3 and 0.5; γ and β set from the statistics that it recorded.",
    numbers=(
        equal("undone", "output against input, γ = √(v + ε) and β = μ"),
        equal("twice", "normalized twice against once, ε = 0"),
        apart("twice_eps", "the same with ε = 0.5"),
    ),
    measure=measure,
    caveat="For one batch: the next has another mean and variance.",
    seconds=0.05,
)
