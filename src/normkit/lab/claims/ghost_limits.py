"""Ghost batches, permuted batches, and mean and variance of batch norm's output."""

from __future__ import annotations

import torch

from normkit import torch as nkt
from normkit.lab.claim import Claim, Measured
from normkit.lab.kit.residuals import (
    EPSILONS,
    apart,
    draw,
    equal,
    kernels,
    largest,
    most,
    residual,
    through,
)  # fmt: skip
from normkit.lab.kit.residuals import with_random_affine as randomized
from normkit.lab.setup import Setup

SAMPLES, CHANNELS, POSITIONS = 12, 6, 5


@kernels()
def measure(setup: Setup) -> Measured:
    generator = setup.generator()
    x = 2 + 1.5 * draw(generator, SAMPLES, CHANNELS, POSITIONS)
    g = draw(generator, *x.shape)
    order = torch.randperm(SAMPLES, generator=generator)

    def layer(ghost: int | None = None, eps: float = 1e-5) -> nkt.BatchNorm1d:
        return randomized(nkt.BatchNorm1d(CHANNELS, eps, ghost=ghost), setup.generator(1))

    batch, small = through(layer(), x, g), through(layer(4), x, g)
    large = [through(layer(size), x, g) for size in (SAMPLES, SAMPLES + 5)]
    shuffled, small_shuffled = (through(layer(ghost), x[order], g[order]) for ghost in (None, 4))
    return Measured(
        {
            "large": most(largest(ghost, batch) for ghost in large),
            "permuted": largest(shuffled, (batch[0][order], batch[1][order], *batch[2:])),
            "moments": most(_moments(layer(eps=eps), x) for eps in EPSILONS),
            "ghosts_permuted": residual(small_shuffled[0], small[0][order]),
        }
    )


@torch.no_grad()
def _moments(layer: nkt.BatchNorm1d, x: torch.Tensor) -> float:
    """The output's mean against beta, its variance against gamma² v / (v + eps)."""
    y, v = layer(x), x.var((0, 2), correction=0)
    found = y.mean((0, 2)), y.var((0, 2), correction=0)
    return largest(found, (layer.bias, layer.weight**2 * v / (v + layer.eps)))


CLAIM = Claim(
    name="ghost_limits",
    title="Ghost batches, order and output moments",
    sentence="Ghost batch norm with ghosts as large as the batch is batch norm; permuting a batch "
    "permutes batch norm's output; that output has mean β and variance γ²·v/(v + ε).",
    source="Folklore; ghost batches: Hoffer et al. 2017, section 4",
    paper="exact",
    experiment="Batch norm layers in training mode on 12×6×5 random numbers, random γ, β and g, "
    "float64; ghosts of 12 and 17 samples; ε = 0, 1e-5, 1e-3 and 0.5 for the moments.",
    numbers=(
        equal("large", "ghosts as large as the batch or larger: output and gradients"),
        equal("permuted", "a permuted batch: output and gradients"),
        equal("moments", "mean and variance of the output against the formula"),
        apart("ghosts_permuted", "a permuted batch in ghosts of 4: output"),
    ),
    measure=measure,
    seconds=0.1,
)
