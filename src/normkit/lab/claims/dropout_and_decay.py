"""What dropout and L2 do with and without batch norm."""

from __future__ import annotations

import torch

from normkit.lab.claim import Axes, Claim, Measured, Number, Series
from normkit.lab.kit.labels import mislabelled
from normkit.lab.kit.networks import Dense
from normkit.lab.kit.training import train
from normkit.lab.setup import Setup

NORMS = {"batch norm": "batch", "no norm": "none"}
DROPOUTS = (0.0, 0.1, 0.2, 0.5)
DECAY = 0.02
WRONG = 0.2
BY_DROPOUT = Axes(
    "Accuracy by dropout", "dropout (share)", "test images right (share)", y_range=(0.75, 1)
)


def measure(setup: Setup) -> Measured:
    dropouts = setup.pick(DROPOUTS, (0.0, 0.2))
    reached = {
        (norm, decay): [_accuracy(setup, norm, dropout, decay) for dropout in dropouts]
        for norm in NORMS.values()
        for decay in (0.0, DECAY)
    }
    at = dropouts.index(0.2)
    numbers: dict[str, float] = {}
    for norm in NORMS.values():
        free, decayed = reached[norm, 0.0], reached[norm, DECAY]
        numbers |= {
            f"{norm}_free": free[0],
            f"{norm}_decay": decayed[0],
            f"{norm}_dropout": free[at],
            f"{norm}_both": decayed[at],
        }
    return Measured(
        numbers,
        [
            Series(
                BY_DROPOUT.heading, f"{name} and L2" if decay else name, list(dropouts),
                reached[norm, decay],
            )
            for name, norm in NORMS.items()
            for decay in (0.0, DECAY)
        ],
    )  # fmt: skip


def _accuracy(setup: Setup, norm: str, dropout: float, decay: float) -> float:
    data = mislabelled(setup.data, WRONG, setup.generator(1))
    network = Dense((100, 100, 100), norm=norm, dropout=dropout).build(data, setup.seed)
    torch.manual_seed(setup.seed)  # dropout draws from the global generator: alike for all
    run = train(
        network, data, rate=0.1, steps=setup.pick(400, 120), seed=setup.seed, decay=decay,
        every=setup.pick(10, 5),
    )  # fmt: skip
    return run.settled()


CLAIM = Claim(
    name="dropout_and_decay",
    title="Does batch norm take the place of dropout and L2?",
    sentence="Batch norm regularizes too, and may take the place of dropout.",
    source="A question of ours; Ioffe & Szegedy 2015, section 3.4, found dropout dispensable",
    experiment="A perceptron of 3 ReLU layers of 100, batches of 60, 400 steps at rate 0.1. A "
    "fifth of the training labels is drawn at random, so that there is something to overfit. Test "
    "accuracy, the mean of the last 10 of 40 measurements, with dropout of 0.2 behind each "
    "activation, with L2 of 0.02 on everything learnt, with both and with neither.",
    numbers=tuple(
        Number(f"{norm}_{key}", f"accuracy, {name}, {words}", "%")
        for name, norm in NORMS.items()
        for key, words in (
            ("free", "neither"),
            ("decay", "L2"),
            ("dropout", "dropout"),
            ("both", "both"),
        )
    ),
    charts=(BY_DROPOUT,),
    measure=measure,
    caveat="Not here: where labels are wrong the network with batch norm and nothing else learns "
    "them faster and ends below the plain one; a little dropout gives both the most. With the "
    "right labels all are within two points. L2 works on "
    "batch norm's scale and shift too; on the weights in front of it, it changes the rate only "
    "(see the claim weight_decay).",
    seconds=8,
)
