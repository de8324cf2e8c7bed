"""Batch norm's running statistics go into a convolution."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from normkit import torch as nkt
from normkit.lab.claim import Claim, Measured, Number
from normkit.lab.kit.residuals import apart, draw, equal, kernels, largest, residual
from normkit.lab.kit.residuals import with_random_affine as randomized
from normkit.lab.setup import Setup
from normkit.models import fold, plan_folds

INPUTS, OUTPUTS = 4, 5


@kernels()
@torch.no_grad()
def measure(setup: Setup) -> Measured:
    generator = setup.generator()
    x = draw(generator, 3, INPUTS, 8, 8)
    after = _network(generator, nn.Conv2d(INPUTS, OUTPUTS, 3), nkt.BatchNorm2d(OUTPUTS))
    folded: Any = fold(after, x, report=None)
    before = _network(generator, nkt.BatchNorm2d(INPUTS), nn.Conv2d(INPUTS, OUTPUTS, 3))
    inner: Any = fold(before, x, report=None)
    found = inner(x), before(x)
    for network in (inner, before):
        network[1].padding = (1, 1)
    return Measured(
        {
            "after": residual(folded(x), after(x)),
            "weights": largest((folded[0].weight, folded[0].bias), _formula(*after)),
            "before": residual(*found),
            "padded": residual(inner(x), before(x)),
            "refused": float(len(plan_folds(before).refused)),
        }
    )


def _formula(conv: Any, norm: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight and bias of the two in one."""
    factor = norm.weight / (norm.running_var + norm.eps).sqrt()
    return (
        conv.weight * factor.view(-1, 1, 1, 1),
        norm.bias + (conv.bias - norm.running_mean) * factor,
    )


def _network(generator: torch.Generator, *layers: nn.Module) -> nn.Sequential:
    """In eval mode, with parameters and statistics that say something."""
    network = randomized(nn.Sequential(*layers), generator)
    for layer in layers:
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean = draw(generator, layer.num_features)
            layer.running_var = 0.5 + draw(generator, layer.num_features) ** 2
    return network.eval()


CLAIM = Claim(
    name="folding",
    title="Batch norm folds into a convolution",
    sentence="In eval mode a convolution and the batch norm behind it are one convolution with "
    "W′ = W·γ/s and b′ = β + (b − μ)·γ/s; batch norm in front of one goes in as well, unless the "
    "convolution pads with zeros, which would have to be shifted.",
    source="Folklore; Jacob et al. 2018, section 3.2, fold the norm behind",
    paper="exact",
    experiment="Convolutions of 3×3 and batch norms with random parameters and statistics, 3×4×8×8 "
    "random numbers, float64: fold(model) against the model; the same with a padding of 1 put "
    "on both afterwards; and what fold says of that.",
    numbers=(
        equal("after", "output of convolution and norm: folded against not"),
        equal("weights", "W′ and b′ against the formula"),
        equal("before", "output of norm and convolution without padding: folded against not"),
        apart("padded", "the same with padding"),
        Number("refused", "norms that fold refuses in front of it then, of one", at_least=1),
    ),
    measure=measure,
    seconds=0.3,
)
