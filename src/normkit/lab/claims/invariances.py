"""The table of invariances: batch, weight, layer and RMS norm against six changes."""

from __future__ import annotations

from normkit.lab.claim import Claim, Measured, Number
from normkit.lab.kit.invariances import CHANGES, NORMS, invariance_table
from normkit.lab.kit.residuals import apart, equal
from normkit.lab.setup import Setup


def _name(norm: str, change: str) -> str:
    return f"{norm}: {change}"


def _numbers() -> tuple[Number, ...]:
    return tuple(
        (equal if expected else apart)(_name(norm, change), _name(norm, change))
        for norm, (_, ticks) in NORMS.items()
        for change, expected in zip(CHANGES, ticks, strict=True)
    )


def measure(setup: Setup) -> Measured:
    table = invariance_table(setup.seed)
    return Measured({_name(row.norm, row.transformation): row.residual for row in table})


CLAIM = Claim(
    name="invariances",
    title="What each norm does not see",
    sentence="Batch norm does not see the scale of weights and data, of one unit's weights, nor a "
    "shift of all data; weight norm only the scales of weights; layer norm the scale of all "
    "weights, of all data and of one sample, and a shift that all units' weights have in common; "
    "RMS norm these scales, and no shift.",
    source="Ba et al. 2016, table 1; RMS norm: Zhang & Sennrich 2019, section 4",
    paper="exact: 13 ticks and 11 crosses",
    experiment="24 random samples through a linear layer of 10 inputs and 12 units and the norm, "
    "ε = 0, float64, training mode; weight norm with its g as it is. The largest change of an "
    "output, relative to the largest output: a tick is at most 1e-12, a cross at least 0.01.",
    numbers=_numbers(),
    measure=measure,
    caveat="The crosses are statements about data in general: where all samples have the same sum, "
    "batch norm does not see a constant that is added to all weights either. Any ε > 0 makes "
    "the scales visible, a little.",
    seconds=0.1,
)
