"""No output is further out than the root of the batch; two elements are always ±1."""

from __future__ import annotations

import math

import torch

import normkit as nk
from normkit.lab.claim import Axes, Claim, Measured, Number, Series
from normkit.lab.kit.residuals import EXACT, draw, equal, gradients, kernels, most, residual
from normkit.lab.setup import Setup
from normkit.torch.functional import normalize

BARE = nk.BatchNorm(eps=0.0)
SIZES = (4, 16, 64, 256)
OUTLIERS = tuple(10 ** (step / 4) for step in range(25))
CHART = Axes(
    "One outlier in a batch",
    "size of the outlier (deviations of the others)",
    "its normalized value x̂",
    log_x=True,
    log_y=True,
    note="It approaches √(m − 1).",
)


@kernels()
def measure(setup: Setup) -> Measured:
    generator = setup.generator()
    curves = {m: [_outlier(generator, m, size) for size in OUTLIERS] for m in SIZES}
    alone = [normalize(BARE, torch.eye(m, 1, dtype=torch.float64)) for m in SIZES]
    sign, x_hat, dx, terms = _pairs(generator)
    return Measured(
        {
            "largest": most(most(curve) / math.sqrt(m - 1) for m, curve in curves.items()),
            "reached": residual([float(x.max()) for x in alone], [math.sqrt(m - 1) for m in SIZES]),
            "pairs": residual(x_hat, sign),
            "pairs_dx": residual(dx, 0, terms),
        },
        [Series(CHART.heading, f"m = {m}", OUTLIERS, curve) for m, curve in curves.items()],
    )


def _outlier(generator: torch.Generator, m: int, size: float) -> float:
    x = draw(generator, m, 8)
    x[0] = size
    return float(normalize(BARE, x).abs().max())


def _pairs(generator: torch.Generator) -> tuple[torch.Tensor, ...]:
    """Two elements a channel, not so near to each other that rounding would tell them apart."""
    sign = torch.sign(draw(generator, 64))
    half = sign * (0.5 + torch.rand(64, generator=generator, dtype=torch.float64))
    x = (draw(generator, 64) + torch.stack((half, -half))).requires_grad_()
    g, gamma = draw(generator, 2, 64), draw(generator, 64)
    y = normalize(BARE, x, gamma)
    slope = gamma / half  # half a distance is the deviation
    return (
        torch.stack((sign, -sign)),
        normalize(BARE, x.detach()),
        gradients(y, g, x)[0],
        g * slope,
    )


CLAIM = Claim(
    name="bounded_outputs",
    title="How far out an output can be",
    sentence="|x̂| ≤ √(m − 1) in a set of m elements, whatever they are; two elements without ε "
    "become +1 and −1, and no gradient reaches them.",
    source="Samuelson's inequality (1968); for batch norm folklore",
    paper="exact",
    experiment="Batch norm, ε = 0, float64: random numbers with one outlier of 1 to 10⁶ among 4 "
    "to 256 elements of 8 channels; one element of 1 among zeros; 64 pairs at distances of 1 to "
    "3, random γ and g, dx relative to γ·g/σ.",
    numbers=(
        Number("largest", "largest |x̂| as a multiple of √(m − 1)", at_most=1 + EXACT),
        equal("reached", "x̂ of one element among zeros against √(m − 1)"),
        equal("pairs", "x̂ of two elements against ±1"),
        equal("pairs_dx", "dx of two elements against zero"),
    ),
    charts=(CHART,),
    measure=measure,
    seconds=0.1,
)
