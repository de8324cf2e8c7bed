"""Deep networks of sigmoids train with batch norm."""

from __future__ import annotations

from dataclasses import replace

from normkit.lab.claim import Axes, Claim, Measured, Number, Series
from normkit.lab.kit.networks import Dense
from normkit.lab.kit.training import train
from normkit.lab.setup import Setup

PLAIN = Dense((64,) * 10, activation="sigmoid", std=0.1)
KINDS = {
    "batch norm": replace(PLAIN, norm="batch"),
    "no norm": PLAIN,
    "no norm, wide weights": replace(PLAIN, std=1.0),
}
RATES = (0.03, 0.1, 0.3, 1.0, 3.0)
BY_RATE = Axes(
    "Accuracy by learning rate", "learning rate", "test images right (share)",
    log_x=True, y_range=(0, 1.02),
)  # fmt: skip


def measure(setup: Setup) -> Measured:
    rates, steps = setup.some(RATES), setup.pick(400, 150)
    reached = {
        name: [
            train(
                network.build(setup.data, setup.seed), setup.data,
                rate=rate, steps=steps, seed=setup.seed, every=steps,
            ).accuracy
            for rate in rates
        ]
        for name, network in KINDS.items()
    }  # fmt: skip
    batch, plain, wide = map(max, reached.values())
    return Measured(
        {"batch": batch, "plain": plain, "wide": wide},
        [Series(BY_RATE.heading, name, list(rates), ys) for name, ys in reached.items()],
    )


CLAIM = Claim(
    name="saturating",
    title="Deep networks of sigmoids train with batch norm",
    sentence="With batch norm a deep network of saturating activations trains, which without it "
    "stays at chance whatever the learning rate.",
    source="Ioffe & Szegedy 2015, section 4.2.2",
    paper="ImageNet: Inception with sigmoids in the place of ReLUs reaches 69.8 % with batch norm "
    "at five times the rate; without it never more than 1/1000",
    experiment="A perceptron of 10 sigmoid layers of 64 from small Gaussian weights (deviation "
    "0.1), batches of 60, 400 steps of plain gradient descent at rates from 0.03 to 3: the best "
    "accuracy over the rates, chosen on the test images. Without batch norm also from wide "
    "weights (deviation 1).",
    numbers=(
        Number(
            "batch", "best accuracy with batch norm", "%",
            paper="69.8 %", at_least=0.9,
        ),
        Number(
            "plain", "best accuracy without", "%",
            paper="at most 0.1 % (chance)", at_most=0.2,
        ),
        Number("wide", "best accuracy without, from wide weights", "%"),
    ),
    charts=(BY_RATE,),
    measure=measure,
    caveat="It is the small weights that keep the plain network at chance: each layer hands on "
    "almost a constant. From wide weights it learns too, slower and not as far; such a start has "
    "to be found, and batch norm needs none.",
    seconds=8,
)  # fmt: skip
