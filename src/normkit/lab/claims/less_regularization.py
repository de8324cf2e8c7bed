"""With batch norm less regularization will do, and the rate may fall faster."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import cycle, islice

import torch

from normkit.lab.claim import Axes, Claim, Measured, Number, Series
from normkit.lab.data import Data
from normkit.lab.kit.labels import mislabelled
from normkit.lab.kit.networks import Dense
from normkit.lab.kit.training import Run, batches, train
from normkit.lab.setup import Setup

BATCH = 60
L2 = 0.005
#: Steps in which the rate halves, as a share of all.
HALF = 0.6


@dataclass(frozen=True)
class Recipe:
    """How a network is trained; each of ``RECIPES`` changes one thing of the one before."""

    norm: str = "batch"
    dropout: float = 0.0
    decay: float = L2
    half: float = HALF
    is_shuffled: bool = False


RECIPES = {
    "plain": ("no norm, all regularization", Recipe(norm="none", dropout=0.4)),
    "batch": ("batch norm, all regularization", Recipe(dropout=0.4)),
    "no_dropout": ("no dropout", Recipe()),
    "less_decay": ("and L2 / 5", Recipe(decay=L2 / 5)),
    "fast_decay": ("and rate falls 6 times faster", Recipe(decay=L2 / 5, half=HALF / 6)),
    "shuffled": (
        "and new batches each epoch",
        Recipe(decay=L2 / 5, half=HALF / 6, is_shuffled=True),
    ),
}
WRONG = 0.2
RIGHT_LABELS = Axes(
    "Right labels", "training steps", "test images right (share)", note="Without the first quarter."
)
WRONG_LABELS = replace(RIGHT_LABELS, heading="A fifth of the training labels at random")


def measure(setup: Setup) -> Measured:
    wrong = mislabelled(setup.data, WRONG, setup.generator(1))
    numbers, series = {}, []
    for axes, data, suffix in ((RIGHT_LABELS, setup.data, ""), (WRONG_LABELS, wrong, "_wrong")):
        for name, (line, recipe) in RECIPES.items():
            run = _run(setup, data, recipe)
            numbers[name + suffix] = run.settled()
            late = len(run.steps) // 4
            series.append(Series(axes.heading, line, run.steps[late:], run.accuracies[late:]))
    return Measured(numbers, series)


def _run(setup: Setup, data: Data, recipe: Recipe) -> Run:
    steps = setup.pick(400, 100)
    rate = 0.1 if recipe.norm == "none" else 0.3
    network = Dense((100, 100, 100), norm=recipe.norm, dropout=recipe.dropout)
    torch.manual_seed(setup.seed)  # dropout draws from the global generator: alike for all
    return train(
        network.build(data, setup.seed), data,
        rate=lambda step: rate * 0.5 ** (step / (recipe.half * steps)), steps=steps,
        every=setup.pick(10, 5), seed=setup.seed, decay=recipe.decay,
        source=None if recipe.is_shuffled else same_batches(data, setup.seed),
    )  # fmt: skip


def same_batches(data: Data, seed: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """One epoch's batches again and again: the same images always meet."""
    size = min(BATCH, len(data.train_labels))
    return cycle(islice(batches(data, size, seed), len(data.train_labels) // size))


def _numbers() -> tuple[Number, ...]:
    labels = {"": "right labels", "_wrong": "a fifth of the labels wrong"}
    return tuple(
        Number(name + suffix, f"{line}: accuracy, {words}", "%")
        for suffix, words in labels.items()
        for name, (line, _) in RECIPES.items()
    )


CLAIM = Claim(
    name="less_regularization",
    title="Less regularization, a faster fall of the rate",
    sentence="With batch norm dropout may go, L2 be five times smaller, the rate fall six times "
    "faster, and new batches in each epoch help.",
    source="Ioffe & Szegedy 2015, section 4.2.1",
    paper="ImageNet: these changes together; for the shuffling alone about 1 point",
    experiment="A perceptron of 3 ReLU layers of 100, batches of 60, 400 steps. First without norm "
    "at rate 0.1 with dropout 0.4, L2 0.005, a rate that halves every 240 steps, and the same "
    "images in a batch in every epoch. Then with batch norm at three times the rate, and each "
    "change on top of those before. Test accuracy, the mean of the last 10 of 40 measurements; "
    "once with right labels and once with a fifth of the training labels drawn at random, so that "
    "there is something to overfit.",
    numbers=_numbers(),
    charts=(RIGHT_LABELS, WRONG_LABELS),
    measure=measure,
    caveat="With right labels all of batch norm's are within the noise of 500 test images but "
    "the fast fall of the rate, which stops the learning early. With wrong labels dropout is "
    "what keeps the network from learning them, and batch norm does not take its place: without "
    "dropout it loses points, of which the fast fall of the rate gives most back, by stopping "
    "early too.",
    seconds=7,
)
