"""The length of the gradient by the input; Santurkar's theorem 4.1 as an equality."""

from __future__ import annotations

from torch import Tensor

import normkit as nk
from normkit.lab.claim import Claim, Measured, Number
from normkit.lab.kit.residuals import EPSILONS, EXACT, Pass, equal, kernels, least, most, residual
from normkit.lab.setup import Setup


@kernels()
def measure(setup: Setup) -> Measured:
    generator = setup.generator()
    passes = [Pass.of(nk.BatchNorm(eps=eps), generator, 12, 6, 5) for eps in EPSILONS]
    bounds = [_theorem(p) for p in passes]
    squares = [p.sums(p.dx**2) for p in passes]
    rooms = [1 - square / bound for square, bound in zip(squares, bounds, strict=True)]
    return Measured(
        {
            "length": most(residual(s, _formula(p)) for p, s in zip(passes, squares, strict=True)),
            "theorem": residual(squares[0], bounds[0]),
            "room": least(float(room.min()) for room in rooms[1:]),
            "most": most(float(room.max()) for room in rooms),
        }
    )


def _theorem(p: Pass, factor: float | Tensor = 1.0) -> Tensor:
    """γ²/σ² (‖g‖² − ⟨1, g⟩²/m − factor·⟨g, x̂⟩²/m)."""
    shift, scale = p.sums(p.g) ** 2 / p.count, p.sums(p.g * p.x_hat) ** 2 / p.count
    return p.gamma**2 / (p.var + p.norm.eps) * (p.sums(p.g**2) - shift - factor * scale)


def _formula(p: Pass) -> Tensor:
    return _theorem(p, 2 - p.var / (p.var + p.norm.eps))


CLAIM = Claim(
    name="gradient_norm",
    title="How long the input's gradient is",
    sentence="‖dx‖² = γ²/s²·(‖g‖² − ⟨1, g⟩²/m − (2 − v/s²)·⟨g, x̂⟩²/m) with s² = v + ε; without ε "
    "it is the bound of Santurkar's theorem 4.1, which so is an equality.",
    source="Santurkar et al. 2018, theorem 4.1, as an inequality; with ε it is ours",
    paper="exact: ‖dx‖² ≤ γ²/σ²·(‖g‖² − ⟨1, g⟩²/m − ⟨g, x̂⟩²/m)",
    experiment="Batch norm of 12×6×5 random numbers x, m = 60, random γ, random g plus x, "
    "ε = 0, 1e-5, 1e-3 and 0.5, in float64; dx by automatic differentiation.",
    numbers=(
        equal("length", "‖dx‖² against the formula, all ε"),
        equal("theorem", "‖dx‖² against the theorem's bound, ε = 0"),
        Number("room", "least room below the bound, ε > 0", "%", at_least=-EXACT),
        Number("most", "most room below the bound, ε > 0", "%"),
    ),
    measure=measure,
    caveat="The theorem compares a network with batch norm to one without. The equality is about "
    "one layer and the gradient g that arrives there; how large g is, is another matter (see "
    "the claim smoothness). With ε > 0 the bound is meant with σ² = v + ε and the x̂ that the layer "
    "computes.",
    seconds=0.1,
)
