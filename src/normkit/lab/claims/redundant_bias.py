"""A bias in front of batch norm does nothing, in training."""

from __future__ import annotations

import torch
from torch import nn

from normkit import torch as nkt
from normkit.lab.claim import Claim, Measured
from normkit.lab.kit.residuals import apart, draw, equal, gradients, kernels, least, residual
from normkit.lab.kit.residuals import with_random_affine as randomized
from normkit.lab.setup import Setup

INPUTS, UNITS = 10, 8


@kernels()
def measure(setup: Setup) -> Measured:
    generator = setup.generator()
    linear, norm = nn.Linear(INPUTS, UNITS), nkt.BatchNorm1d(UNITS)
    network = randomized(nn.Sequential(linear, norm), generator)
    x, g = draw(generator, 16, INPUTS), draw(generator, 16, UNITS)
    moved, gradient = _bias(network, x, g)
    moved_eval, gradient_eval = _bias(network.eval(), x, g)
    nkt.freeze(network.train())
    moved_frozen, gradient_frozen = _bias(network, x, g)
    return Measured(
        {
            "output": moved,
            "gradient": gradient,
            "output_given": least((moved_eval, moved_frozen)),
            "gradient_given": least((gradient_eval, gradient_frozen)),
        }
    )


def _bias(network: nn.Sequential, x: torch.Tensor, g: torch.Tensor) -> tuple[float, float]:
    """What the bias does to the output, and the gradient that it gets, relative to its terms."""
    linear, norm = network
    inner = linear(x)
    dx, db = gradients(norm(inner), g, inner, linear.bias)
    y = network(x)
    without = norm(inner - linear.bias)
    return residual(without, y), residual(db, 0, dx.abs().sum(0))


CLAIM = Claim(
    name="redundant_bias",
    title="A bias in front of batch norm does nothing",
    sentence="In training mode the output of batch norm does not depend on the bias of the layer "
    "in front of it, whose gradient is zero; with given statistics it does, and has one.",
    source="Ioffe & Szegedy 2015, section 3.2",
    paper="exact",
    experiment="16 random samples through a linear layer with a random bias and batch norm in "
    "float64: with the batch's statistics, in eval mode, and with frozen statistics. The gradient "
    "is relative to the sum of its terms' absolute values.",
    numbers=(
        equal("output", "output without the bias against with it"),
        equal("gradient", "the bias's gradient against zero"),
        apart("output_given", "the same outputs with statistics that are given (eval, frozen)"),
        apart("gradient_given", "the same gradient there"),
    ),
    measure=measure,
    caveat="A bias that weight decay or momentum moves all the same shifts the running mean with "
    "it.",
    seconds=0.1,
)
