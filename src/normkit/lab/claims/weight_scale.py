"""The scale of weights in front of batch norm."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - its usual name

import normkit as nk
from normkit.lab.claim import Claim, Measured
from normkit.lab.kit.residuals import (
    EPSILONS,
    apart,
    draw,
    equal,
    gradients,
    kernels,
    largest,
    most,
    residual,
)  # fmt: skip
from normkit.lab.setup import Setup
from normkit.torch.functional import normalize

SAMPLES, INPUTS, UNITS = 16, 10, 8


@kernels()
def measure(setup: Setup) -> Measured:
    found = [_measure(setup.generator(salt), eps) for salt, eps in enumerate(EPSILONS)]
    numbers = {name: most(one[name] for one in found) for name in found[0]}
    numbers["radial_left"] = found[-1]["radial_left"]
    numbers["same_eps"] = found[-1]["same_eps"]
    return Measured(numbers)


def _measure(generator: torch.Generator, eps: float) -> dict[str, float]:
    u, w = draw(generator, SAMPLES, INPUTS), 0.3 * draw(generator, UNITS, INPUTS)
    gamma, beta = draw(generator, UNITS), draw(generator, UNITS)
    x = F.linear(u, w)
    g = draw(generator, SAMPLES, UNITS) + x
    a = 3 * 10 ** float(torch.rand((), generator=generator))

    def run(weights: Tensor, eps: float) -> tuple[Tensor, ...]:
        data = u.clone().requires_grad_()
        weights = weights.clone().requires_grad_()
        y = normalize(nk.BatchNorm(eps=eps), F.linear(data, weights), gamma, beta)
        return y.detach(), *gradients(y, g, weights, data)

    y, dw, du = run(w, eps)
    scaled, scaled_dw, scaled_du = run(a * w, a * a * eps)
    variance = nk.BatchNorm().moments(x).var + eps
    x_hat = normalize(nk.BatchNorm(eps=eps), x)
    radial, terms = (w * dw).sum(1), (w * dw).abs().sum(1)
    return {
        "output": residual(scaled, y),
        "gradients": largest((a * scaled_dw, scaled_du), (dw, du)),
        "flipped": residual(run(-a * w, a * a * eps)[0], 2 * beta - y),
        "radial": residual(radial, gamma * (g * x_hat).sum(0) * eps / variance, terms),
        "radial_left": residual(radial, 0, terms),
        "same_eps": residual(run(a * w, eps)[0], y),
    }


CLAIM = Claim(
    name="weight_scale",
    title="Batch norm hides the scale of the weights",
    sentence="BN(aWu; a²ε) = BN(Wu; ε): the gradient by the weights shrinks by a, that by the "
    "layer's input stays, a negative a mirrors the output at β, and a unit's weights w meet a "
    "gradient with ⟨w, dL/dw⟩ = γ·⟨g, x̂⟩·ε/(v + ε), at right angles where ε = 0.",
    source="Ioffe & Szegedy 2015, section 3.3 for ε = 0; the rest is folklore",
    paper="exact",
    experiment="16 random samples through a linear layer of 10 inputs and 8 units and batch norm, "
    "a drawn between 3 and 30, ε = 0, 1e-5, 1e-3 and 0.5, in float64; gradients by automatic "
    "differentiation. Relative to the largest number compared; products to their largest sum of "
    "absolute values.",
    numbers=(
        equal("output", "output of a times the weights"),
        equal("gradients", "a·dL/dw and dL/du of a times the weights"),
        equal("flipped", "output of −a times the weights against 2β − y"),
        equal("radial", "⟨w, dL/dw⟩ against the formula"),
        apart("radial_left", "⟨w, dL/dw⟩ with ε = 0.5, against zero"),
        apart("same_eps", "output of a times the weights where ε = 0.5 stays as it is"),
    ),
    measure=measure,
    caveat="In practice ε stays as it is, and the scale is hidden only as far as v is large "
    "beside it.",
    seconds=0.1,
)
