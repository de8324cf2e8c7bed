"""Weight decay in front of batch norm is a learning rate in disguise."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from normkit.lab.claim import Axes, Claim, Measured, Number, Series
from normkit.lab.kit.networks import Dense
from normkit.lab.kit.residuals import most
from normkit.lab.kit.training import Step, batches, descend
from normkit.lab.setup import Setup

Tensor = torch.Tensor
TINY = 1e-30  # as good as none in float64
NETWORK = Dense((100, 100, 100), norm="batch", norm_options={"eps": TINY})
RATE, DECAY, FACTOR = 0.1, 0.01, 3.0
EVERY = 5
OUTPUTS = Axes(
    "Outputs against those of the plain training", "training steps",
    "largest difference, relative", log_y=True,
)  # fmt: skip
EFFECTIVE = Axes(
    "Effective learning rate of the first layer", "training steps", "rate / ‖w‖²", log_y=True
)


@dataclass(frozen=True)
class Recipe:
    """How the weights in front of the norms learn; all other parameters learn alike.

    Args:
        size: of the initial weights, as a factor.
        rate: of learning, by the number of the step.
        decay: L2.
    """

    size: float
    rate: Callable[[int], float]
    decay: float


WORDS = {
    "rescaled": "weights × 3, rate × 9, decay ÷ 9",
    "growing": "no decay, growing rate",
    "same_decay": "weights × 3, rate × 9, same decay",
    "no_decay": "no decay, same rate",
}
PLAIN = Recipe(1.0, lambda _: RATE, DECAY)
RECIPES = {
    "rescaled": Recipe(FACTOR, lambda _: RATE * FACTOR**2, DECAY / FACTOR**2),
    "growing": Recipe(1.0, lambda n: RATE * (1 - RATE * DECAY) ** (1 - 2 * n), 0.0),
    "same_decay": Recipe(FACTOR, lambda _: RATE * FACTOR**2, DECAY),
    "no_decay": Recipe(1.0, lambda _: RATE, 0.0),
}


def measure(setup: Setup) -> Measured:
    steps, outputs, effective = trained(setup, PLAIN)
    series = [Series(EFFECTIVE.heading, "with decay", steps, effective)]
    numbers = {}
    for name, recipe in RECIPES.items():
        _, others, rates = trained(setup, recipe)
        apart = [_apart(a, b) for a, b in zip(others, outputs, strict=True)]
        numbers[name] = most(apart)
        series.append(Series(OUTPUTS.heading, WORDS[name], steps, apart))
        if recipe.decay == 0:
            series.append(Series(EFFECTIVE.heading, WORDS[name], steps, rates))
    return Measured(numbers, series)


def _apart(found: Tensor, wanted: Tensor) -> float:
    difference = float((found - wanted).abs().max() / wanted.abs().max())
    return max(difference, 1e-17)  # for an axis of logarithms


def trained(setup: Setup, recipe: Recipe) -> tuple[list[float], list[Tensor], list[float]]:
    """Steps, outputs for the test images in training mode, and effective rates of layer 1."""
    data, network = setup.data, NETWORK.build(setup.data, setup.seed).double()
    weights = [m.weight for m in network if isinstance(m, nn.Linear)][:-1]
    with torch.no_grad():
        for weight in weights:
            weight *= recipe.size

    def before(step: Step) -> None:
        # The other parameters have RATE: these get theirs by way of their gradients.
        for weight in weights:
            assert weight.grad is not None
            weight.grad.add_(weight.detach(), alpha=recipe.decay)
            weight.grad.mul_(recipe.rate(step.number) / RATE)

    steps: list[float] = []
    outputs: list[Tensor] = []
    effective: list[float] = []
    feed = ((x.double(), y) for x, y in batches(data, 60, setup.seed))
    images = data.test_images[:100].double()
    for step in descend(network, feed, rate=RATE, steps=setup.pick(200, 50), before=before):
        if step.number % EVERY == 0:
            steps.append(float(step.number))
            effective.append(recipe.rate(step.number) / float(weights[0].detach().square().sum()))
            with torch.no_grad():
                outputs.append(network.train()(images))
    return steps, outputs, effective


CLAIM = Claim(
    name="weight_decay",
    title="Weight decay is a learning rate in disguise",
    sentence="Behind weights that batch norm follows L2 regularization does not regularize: it "
    "shrinks weights whose size means nothing, and only so raises their effective learning rate "
    "η/‖w‖².",
    source="van Laarhoven 2017",
    paper="That L2 only sets the effective rate; the formula η/‖w‖² as remembered, not checked in "
    "the paper",
    experiment="A perceptron of 3×100 with batch norm in float64 (ε = 1e-30), 200 steps of 60 at "
    "rate 0.1; weights in front of norms have L2 of 0.01. Again with these weights 3 times as "
    "large, 9 times the rate and a ninth of the decay; and without decay, at a rate that grows by "
    "1/(1 − ηλ)² a step. Outputs in training mode are compared on 100 test images every 5 steps.",
    numbers=(
        Number("rescaled", f"outputs apart: {WORDS['rescaled']}, relative", at_most=1e-12),
        Number("growing", f"outputs apart: {WORDS['growing']}, relative"),
        Number("same_decay", f"outputs apart: {WORDS['same_decay']}, relative", at_least=1e-3),
        Number("no_decay", f"outputs apart: {WORDS['no_decay']}, relative"),
    ),
    charts=(OUTPUTS, EFFECTIVE),
    measure=measure,
    caveat="Exact for plain gradient descent and a norm without ε, for the weights in front of "
    "norms alone: gamma, beta and the last layer have no decay here. The growing rate is our way "
    "to show the sentence; the bound on the third line is there so that the first means something.",
    seconds=2,
)
