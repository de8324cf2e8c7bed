"""Batch norm stands higher learning rates."""

from __future__ import annotations

from dataclasses import replace

from normkit.lab.claim import Axes, Claim, Measured, Number, Series
from normkit.lab.kit.networks import Dense
from normkit.lab.kit.training import Run, train
from normkit.lab.setup import Setup

NETWORK = Dense((64,) * 8)
RATES = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8)
GOOD = 0.9
BY_RATE = Axes(
    "Accuracy by learning rate", "learning rate", "test images right (share)",
    log_x=True, y_range=(0, 1.02),
)  # fmt: skip


def measure(setup: Setup) -> Measured:
    rates = setup.some(RATES)
    runs = {
        name: [_run(setup, norm, rate) for rate in rates]
        for name, norm in (("batch norm", "batch"), ("no norm", "none"))
    }
    batch, plain = (
        max((rate for rate, run in zip(rates, column, strict=True) if run.accuracy >= GOOD),
            default=0.0)
        for column in runs.values()
    )  # fmt: skip
    diverged = (rate for rate, run in zip(rates, runs["no norm"], strict=True) if run.diverged)
    return Measured(
        {
            # A network that no rate suits may want a lower one: then the ratio is a lower bound.
            "ratio": batch / max(plain, rates[0]),
            "batch": batch,
            "plain": plain,
            "plain_diverges": next(diverged, float("inf")),
        },
        [
            Series(BY_RATE.heading, name, list(rates), [run.accuracy for run in column])
            for name, column in runs.items()
        ],
    )


def _run(setup: Setup, norm: str, rate: float) -> Run:
    network = replace(NETWORK, norm=norm).build(setup.data, setup.seed)
    return train(network, setup.data, rate=rate, steps=300, seed=setup.seed, every=300)


CLAIM = Claim(
    name="learning_rates",
    title="Batch norm stands higher learning rates",
    sentence="With batch norm, learning rates work that make the same network without it diverge.",
    source="Ioffe & Szegedy 2015, sections 3.3 and 4.2.2; Bjorck et al. 2018",
    paper="Ioffe & Szegedy: at five times its rate of 0.0015 Inception's weights went to infinity, "
    "with batch norm it trained at thirty times. Bjorck et al.: a ResNet without batch norm "
    "diverges, that is its loss grows a thousandfold, at rates above 0.001",
    experiment="A perceptron of 8 ReLU layers of 64 from He's weights, batches of 60, 300 steps "
    "of plain gradient descent at rates from 0.05 to 12.8, each the double of the one before: the "
    "largest rate after which 90 % of the test images are right.",
    numbers=(
        Number("ratio", "largest rate with batch norm over the largest without", at_least=5),
        Number("batch", "largest rate with batch norm"),
        Number("plain", "largest rate without"),
        Number("plain_diverges", "smallest rate at which the loss without it diverges"),
    ),
    charts=(BY_RATE,),
    measure=measure,
    caveat="Rates are known to a factor of two. Without batch norm rates just below those that "
    "diverge end anywhere between chance and a good accuracy. From 6.4 on the network with batch "
    "norm is near chance too, but its loss seldom diverges.",
    seconds=6,
)
