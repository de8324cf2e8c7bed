"""Gradients through weights that are normalized themselves."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from normkit.lab.claim import Claim, Measured
from normkit.lab.kit.residuals import apart, draw, equal, gradients, kernels, most, residual
from normkit.lab.kit.residuals import with_random_affine as randomized
from normkit.lab.setup import Setup
from normkit.torch import beyond

INPUTS, UNITS = 10, 8


@kernels()
def measure(setup: Setup) -> Measured:
    generator = setup.generator()
    return Measured({**_weight_norm(generator), **_standardized(generator)})


def _weight_norm(generator: torch.Generator) -> dict[str, float]:
    linear = randomized(nn.Linear(INPUTS, UNITS), generator)
    x, g = draw(generator, 16, INPUTS), draw(generator, 16, UNITS)
    (dw,) = gradients(linear(x), g, linear.weight)
    v = linear.weight.detach().clone()
    layer = beyond.weight_norm(linear)
    parametrizations: Any = layer.parametrizations
    chain = parametrizations.weight
    with torch.no_grad():
        chain.original1.mul_(3)  # the length of v is not g's business
    dg, dv = gradients(layer(x), g, chain.original0, chain.original1)
    along = (dw * v).sum(1, keepdim=True) / v.norm(dim=1, keepdim=True)
    return {
        "along": residual((v * dv).sum(1), 0, (v * dv).abs().sum(1)),
        "dg": residual(dg, along),
        "plain": residual((v * dw).sum(1), 0, (v * dw).abs().sum(1)),
    }


def _standardized(generator: torch.Generator) -> dict[str, float]:
    layer = randomized(beyond.ScaledWSConv2d(3, UNITS, 3), generator)
    x, g = draw(generator, 4, 3, 6, 6), draw(generator, 4, UNITS, 4, 4)
    y = layer(x)
    (dw,) = gradients(y, g, layer.weight)
    before = layer.weight.detach().clone()
    scale = 0.5 + torch.rand(UNITS, 1, 1, 1, generator=generator, dtype=torch.float64)
    shift = draw(generator, UNITS, 1, 1, 1)
    with torch.no_grad():
        layer.weight.copy_(scale * before + shift)
        changed = layer(x)
    return {
        "standardized": residual(changed, y),
        "across": most((_share(dw), _share(dw * before))),
        "filters": residual(nn.functional.conv2d(x, scale * before + shift, layer.bias), y),
    }


def _share(terms: Tensor) -> float:
    """How much of the terms is left in their sums over each filter."""
    return residual(terms.flatten(1).sum(1), 0, terms.flatten(1).abs().sum(1))


CLAIM = Claim(
    name="weight_norm_gradient",
    title="Gradients of normalized weights",
    sentence="With w = g·v/‖v‖ the gradient by v is at right angles to v, and dg = ⟨dw, v⟩/‖v‖; "
    "scaled weight standardization does not see a filter's scale and shift, so that its gradient "
    "has neither a part along the filter nor a sum.",
    source="Salimans & Kingma 2016, section 2.1; Brock et al. 2021 (scaled weight standardization)",
    paper="exact",
    experiment="Weight norm of a linear layer (10 inputs, 8 units), v three times as long as it "
    "began; ScaledWSConv2d of 8 filters 3×3×3, filters scaled by 0.5 to 1.5 and shifted. Random "
    "numbers in float64, gradients by automatic differentiation; products and sums relative to "
    "the largest sum of absolute values.",
    numbers=(
        equal("along", "⟨v, dv⟩ against zero"),
        equal("dg", "dg against ⟨dw, v⟩/‖v‖"),
        equal("standardized", "output with scaled and shifted filters, standardized"),
        equal("across", "sum of dW and ⟨W, dW⟩ over each standardized filter against zero"),
        apart("plain", "⟨v, dw⟩ of the plain layer against zero"),
        apart("filters", "output with scaled and shifted filters that are not standardized"),
    ),
    measure=measure,
    seconds=0.1,
)
