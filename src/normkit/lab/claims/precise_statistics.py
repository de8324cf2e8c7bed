"""Running averages lag behind the weights; statistics taken anew do not."""

from __future__ import annotations

from dataclasses import replace

import torch

from normkit.lab.claim import Axes, Claim, Measured, Number, Series
from normkit.lab.kit.networks import Dense
from normkit.lab.kit.shifts import adapted
from normkit.lab.kit.training import accuracy, batches, descend
from normkit.lab.setup import Setup

MOMENTUM = 0.001
NETWORK = Dense((100, 100, 100), norm="batch", norm_options={"momentum": MOMENTUM})
RATE, BATCH, STEPS, EVERY = 0.1, 256, 100, 10
IMAGES = (16, 32, 64, 128, 256, 512, 1024)
COURSE = Axes("In training", "training steps", "test images right (share)", y_range=(0, 1.02))
COUNT = Axes(
    "Images that the statistics are taken from", "training images", "test images right (share)",
    log_x=True, y_range=(0, 1.02),
)  # fmt: skip


def measure(setup: Setup) -> Measured:
    data = setup.data
    network = NETWORK.build(data, setup.seed)
    order = torch.randperm(len(data.train_labels), generator=setup.generator(1))
    enough = data.train_images[order[: IMAGES[-1]]]
    steps, running, precise = [], [], []
    feed = batches(data, BATCH, setup.seed)
    for step in descend(network, feed, rate=RATE, steps=STEPS):
        if step.number % EVERY == 0:
            steps.append(float(step.number))
            running.append(accuracy(network, data))
            precise.append(accuracy(adapted(network, enough), data))
    counts = [n for n in IMAGES if n <= len(enough)] or [len(enough)]
    by_count = [accuracy(adapted(network, enough[:n]), data) for n in counts]
    faster = replace(NETWORK, norm_options={"momentum": 0.1}).build(data, setup.seed)
    for _ in descend(faster, batches(data, BATCH, setup.seed), rate=RATE, steps=STEPS):
        pass
    numbers = {
        "gain": 100 * (precise[-1] - running[-1]),
        "running": running[-1],
        "precise": precise[-1],
        "usual": accuracy(faster, data),
        "few": by_count[0],
    }
    return Measured(
        numbers,
        [
            Series(COURSE.heading, f"running averages, momentum {MOMENTUM:g}", steps, running),
            Series(COURSE.heading, "statistics taken anew", steps, precise),
            Series(COUNT.heading, "statistics taken anew", [float(n) for n in counts], by_count),
        ],
    )


CLAIM = Claim(
    name="precise_statistics",
    title="Running averages lag behind",
    sentence="The running averages of batch norm can be far from the statistics of the weights as "
    "they are now; taking them anew from a thousand images or so (precise batch norm) mends it.",
    source="Wu & Johnson 2021, section 3",
    paper="ImageNet: 10³ to 10⁴ samples are enough",
    experiment="A perceptron of 3×100 with a slow average (momentum 0.001 a batch) takes 100 steps "
    "of 256 images at rate 0.1. Tested with the running averages, and with what "
    "normkit.models.recalibrate takes from 1024 training images.",
    numbers=(
        Number("gain", "by statistics taken anew", "points", at_least=10),
        Number("running", "right with the running averages", "%"),
        Number("precise", "right with statistics taken anew", "%"),
        Number("usual", "right with running averages of momentum 0.1", "%"),
        Number("few", f"right with statistics taken from {IMAGES[0]} images", "%"),
    ),
    charts=(COURSE, COUNT),
    measure=measure,
    caveat="The lag is made large here: with PyTorch's usual momentum of 0.1 the averages follow "
    "within some tens of steps, and there is little to mend.",
    seconds=1,
)
