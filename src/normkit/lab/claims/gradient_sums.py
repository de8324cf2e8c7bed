"""The gradient by the input sums to zero, and its part along x̂ is small."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

import normkit as nk
from normkit.lab.claim import Claim, Measured
from normkit.lab.kit.residuals import EPSILONS, Pass, apart, equal, kernels, most, residual
from normkit.lab.setup import Setup

NORMS: tuple[Callable[[float], nk.Norm], ...] = (
    lambda eps: nk.BatchNorm(eps=eps),
    lambda eps: nk.LayerNorm(eps=eps),
    lambda eps: nk.GroupNorm(2, eps=eps),
    lambda eps: nk.InstanceNorm(eps=eps),
)


@kernels()
def measure(setup: Setup) -> Measured:
    generator = setup.generator()
    passes = [Pass.of(norm(eps), generator, 12, 6, 5) for norm in NORMS for eps in EPSILONS]
    with_eps = passes[len(EPSILONS) - 1]  # batch norm's last
    uncentred = Pass.of(nk.RMSNorm(eps=0.0), generator, 12, 6, 5).dx
    return Measured(
        {
            "sum": most(residual(p.sums(p.dx), 0, p.sums(p.dx.abs())) for p in passes),
            "along": most(residual(_along(p), _formula(p), _size(p)) for p in passes),
            "remains": residual(_along(with_eps), 0, _size(with_eps)),
            "rms": residual(uncentred.sum(1), 0, uncentred.abs().sum(1)),
        }
    )


def _along(p: Pass) -> Tensor:
    return p.sums(p.dx * p.x_hat)


def _size(p: Pass) -> Tensor:
    return p.sums((p.dx * p.x_hat).abs())


def _formula(p: Pass) -> Tensor:
    variance = p.var + p.norm.eps
    return p.sums(p.g_hat * p.x_hat) * p.norm.eps / variance**1.5


CLAIM = Claim(
    name="gradient_sums",
    title="The input's gradient sums to zero",
    sentence="Over every set that shares its statistics, the gradient dx sums to zero, and its "
    "product with x̂ is (1/s)·⟨γg, x̂⟩·ε/(v + ε) with s² = v + ε: nothing, where ε = 0.",
    source="Folklore; both follow from the backward pass of Ioffe & Szegedy 2015, section 3",
    paper="exact",
    experiment="Batch, layer, group and instance norm of 12×6×5 random numbers x, random γ, "
    "random g plus x, ε = 0, 1e-5, 1e-3 and 0.5, in float64. Sums over each set, relative to the "
    "largest sum of absolute values.",
    numbers=(
        equal("sum", "sum of dx"),
        equal("along", "⟨dx, x̂⟩ against the formula"),
        apart("remains", "⟨dx, x̂⟩ of batch norm with ε = 0.5, against zero"),
        apart("rms", "sum of dx for RMS norm, which subtracts no mean, against zero"),
    ),
    measure=measure,
    seconds=0.2,
)
