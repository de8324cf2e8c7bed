"""Gradient descent in front of batch norm lets weights only grow."""

from __future__ import annotations

import math
from dataclasses import replace

from torch import Tensor, nn

from normkit.lab.claim import Axes, Claim, Measured, Number, Series
from normkit.lab.kit.networks import Dense
from normkit.lab.kit.residuals import EXACT, apart, equal, kernels, most
from normkit.lab.kit.training import Step, batches, descend
from normkit.lab.setup import Setup

NETWORK = Dense((32, 32))
RATE, STEPS, BATCH = 1.0, 40, 60
CHART = Axes("Weights of the first layer", "training steps", "‖w‖² as a multiple of the first")


@kernels()
def measure(setup: Setup) -> Measured:
    batch = replace(NETWORK, norm="batch", norm_options={"eps": 0.0})
    worst, grown, predicted = _train(setup, batch)
    plain, *_ = _train(setup, NETWORK)
    curves = {"measured": grown, "‖w‖² plus the sum of η²‖dw‖²": predicted}
    steps = list(range(len(grown)))
    return Measured(
        {
            "step": worst if steps[-1] == STEPS else math.nan,
            "all": abs(grown[-1] / predicted[-1] - 1),
            "growth": grown[-1],
            "plain": plain,
        },
        [Series(CHART.heading, name, steps, curve) for name, curve in curves.items()],
    )


def _train(setup: Setup, network: Dense) -> tuple[float, list[float], list[float]]:
    """The largest deviation of a unit in a step; the first layer's weights, and the sums."""
    model = network.build(setup.data, setup.seed).double()
    linears = [layer for layer in model if isinstance(layer, nn.Linear)][:-1]
    source = ((x.double(), y) for x, y in batches(setup.data, BATCH, setup.seed))
    foreseen: list[Tensor] = []

    def foresee(_: Step) -> None:
        foreseen[:] = [_square(one.weight) + RATE**2 * _square(one.weight.grad) for one in linears]

    start = float(_square(linears[0].weight).sum())
    worst, grown, predicted = 0.0, [1.0], [1.0]
    for step in descend(model, source, rate=RATE, steps=STEPS, before=foresee):
        if not math.isfinite(step.loss):
            break
        squares = [_square(one.weight) for one in linears]
        off = [float((a / b - 1).abs().max()) for a, b in zip(squares, foreseen, strict=True)]
        if not all(map(math.isfinite, off)):
            break  # the last step has diverged, which without batch norm may be
        worst = most((worst, *off))
        growth = float(foreseen[0].sum()) / start - grown[-1]
        grown.append(float(squares[0].sum()) / start)
        predicted.append(predicted[-1] + growth)
    return worst, grown, predicted


def _square(weights: Tensor | None) -> Tensor:
    assert weights is not None
    return weights.detach().square().sum(1)


CLAIM = Claim(
    name="growing_weights",
    title="Weights in front of batch norm only grow",
    sentence="Without weight decay and ε, a step of gradient descent makes the weights of each "
    "unit in front of batch norm longer, by Pythagoras: ‖w′‖² = ‖w‖² + η²‖dw‖².",
    source="Van Laarhoven 2017; Salimans & Kingma 2016, section 2.1, for weight norm",
    paper="exact",
    experiment="Two hidden layers of 32 ReLU with batch norm, ε = 0, on the images in float64: 40 "
    "steps of batches of 60, rate 1, no momentum. Relative deviations for the worst unit of a "
    "step, and for the first layer after all steps; and the worst unit without batch norm.",
    numbers=(
        equal("step", "‖w′‖² against the formula, worst unit and step"),
        equal("all", "the first layer after all steps against the sum of its steps"),
        Number("growth", "‖w‖² of the first layer, last over first", at_least=1 + EXACT),
        apart("plain", "the same as the first, without batch norm"),
    ),
    charts=(CHART,),
    measure=measure,
    caveat="With ε > 0 the angle is not quite right, and momentum or weight decay add terms of "
    "their own.",
    seconds=0.3,
)
