"""What a batch is made of matters to batch norm, and to group norm not at all."""

from __future__ import annotations

from dataclasses import replace

from normkit.lab.claim import Axes, Claim, Measured, Number, Series
from normkit.lab.kit.networks import Dense
from normkit.lab.kit.sizes import falling, of_classes
from normkit.lab.kit.training import train
from normkit.lab.setup import Setup

NETWORK = Dense((60, 60, 60))
NORMS = {"batch": "batch norm", "group": "group norm, 10 groups"}
SIZE, RATE = 32, 0.05
BY_CLASSES = Axes(
    "Accuracy by the make-up of the batches", "classes in a training batch",
    "test images right (share)", y_range=(0, 1.02),
)  # fmt: skip


def measure(setup: Setup) -> Measured:
    data = setup.data
    counts = sorted({1, max(1, data.classes // 2), data.classes})
    counts = list(setup.pick(counts, [counts[0], counts[-1]]))
    right = {norm: [_right(setup, norm, count) for count in counts] for norm in NORMS}
    xs = [float(count) for count in counts]
    return Measured(
        {
            "batch_1": right["batch"][0],
            "group_1": right["group"][0],
            "batch_all": right["batch"][-1],
            "group_all": right["group"][-1],
        },
        [Series(BY_CLASSES.heading, words, xs, right[norm]) for norm, words in NORMS.items()],
    )


def _right(setup: Setup, norm: str, classes: int) -> float:
    """Of the test images in eval mode, after batches of so many classes each."""
    network = replace(NETWORK, norm=norm).build(setup.data, setup.seed)
    steps = setup.pick(600, 150)
    source = of_classes(setup.data, SIZE, classes, setup.generator())
    return train(
        network, setup.data, rate=falling(RATE, steps), steps=steps, seed=setup.seed,
        source=source, every=steps,
    ).accuracy  # fmt: skip


CLAIM = Claim(
    name="batch_composition",
    title="Batches of one class break batch norm",
    sentence="Where each batch holds one class, batch norm subtracts what its images have in "
    "common, which is their class, and does not learn to tell it; group norm, which sees one "
    "image at a time, does.",
    source="Wu & Johnson 2021",
    paper="Batches of one class, and of regions of one image; no figures taken over",
    experiment=f"A perceptron of 3×60 ReLU units, 600 steps of {SIZE} images, rate {RATE:g} "
    "falling linearly to zero; each batch draws one, half or all of the classes, and its images "
    "from those. Tested in eval mode on all classes.",
    numbers=(
        Number("batch_1", "right, batch norm, one class a batch", "%", at_most=0.2),
        Number("group_1", "right, group norm, one class a batch", "%", at_least=0.9),
        Number("batch_all", "right, batch norm, all classes", "%"),
        Number("group_all", "right, group norm, all classes", "%"),
    ),
    charts=(BY_CLASSES,),
    measure=measure,
    caveat="Batch norm does not learn here and then fail: its training loss stays at that of "
    "guessing, since subtracting a batch's mean takes its class away; new statistics do not help. "
    "Batches of half of the classes do no harm.",
    seconds=4,
)
