"""Adapting batch by batch needs large batches with all classes in them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn

from normkit.lab.claim import Axes, Claim, Measured, Number, Series
from normkit.lab.kit.networks import Dense
from normkit.lab.kit.shifts import shifted
from normkit.lab.kit.training import train
from normkit.lab.setup import Setup
from normkit.torch import AdaptiveBatchNorm1d

Tensor = torch.Tensor
NETWORK = Dense((100, 100, 100), norm=AdaptiveBatchNorm1d)
SIZES = (2, 4, 8, 16, 32, 64, 128)
PRIORS = {"the batch's alone": 0.0, "mixed with 16 of the training": 16.0}
CHART = Axes(
    "Accuracy by the size of test batches", "images in a test batch", "right (share)",
    log_x=True, y_range=(0, 1.02), note="Batches of one class hold all test images of it.",
)  # fmt: skip


def measure(setup: Setup) -> Measured:
    data, steps = setup.data, setup.pick(300, 150)
    network = NETWORK.build(data, setup.seed)
    train(network, data, rate=0.1, steps=steps, seed=setup.seed, every=steps)
    images = shifted(setup, data.test_images, "contrast", 0.3)
    labels = data.test_labels
    order = torch.randperm(len(labels), generator=setup.generator(1))
    shuffled = {size: list(order.split(size)) for size in SIZES}
    by_class = [(labels == label).nonzero().flatten() for label in range(data.classes)]
    curves = {
        name: [_accuracy(network, images, labels, shuffled[size], prior) for size in SIZES]
        for name, prior in PRIORS.items()
    }
    alone, mixed = curves.values()
    one_class = _accuracy(network, images, labels, by_class, 0.0)
    numbers = {
        "large": alone[SIZES.index(64)],
        "small": alone[SIZES.index(2)],
        "one_class": one_class,
        "not_adapted": _accuracy(network, images, labels, [order], math.inf),
        "small_mixed": mixed[SIZES.index(2)],
        "one_class_mixed": _accuracy(network, images, labels, by_class, 16.0),
    }
    sizes = [float(size) for size in SIZES]
    constant = Series(CHART.heading, "one class a batch", sizes, [one_class] * len(sizes))
    return Measured(numbers, [*(Series(CHART.heading, n, sizes, c) for n, c in curves.items()),
                              constant])  # fmt: skip


@torch.no_grad()
def _accuracy(
    network: nn.Module, images: Tensor, labels: Tensor, batches: Sequence[Tensor], prior: float
) -> float:
    """Each batch normalized with its own statistics, into which the training's are mixed."""
    for module in network.modules():
        if isinstance(module, AdaptiveBatchNorm1d):
            module.prior = prior
    network.eval()
    right = sum(int((network(images[b]).argmax(1) == labels[b]).sum()) for b in batches)
    return right / sum(map(len, batches))


CLAIM = Claim(
    name="adaptation_batches",
    title="Adapting needs large, mixed batches",
    sentence="Normalizing test images with the statistics of their own batch works only while the "
    "batch is large and shows many classes: accuracy falls with its size and breaks down where "
    "every batch holds one class.",
    source="Schneider et al. 2020; Nado et al. 2020",
    paper="Nado et al.: a gain under corruptions, mixed results under natural shift",
    experiment="A perceptron of 3×100, built with normkit's AdaptiveBatchNorm1d (plain batch norm "
    "in training): 300 steps of 60 at rate 0.1. The test images at contrast × 0.3 come in shuffled "
    "batches of 2 to 128, or in one batch a class; the statistics are the batch's alone, or mixed "
    "with the training's, which count as 16 images.",
    numbers=(
        Number("large", "right with test batches of 64", "%", at_least=0.9),
        Number("small", "right with test batches of 2", "%", at_most=0.7),
        Number("one_class", "right with one class in a batch", "%", at_most=0.3),
        Number("not_adapted", "right with the statistics of the training", "%"),
        Number("small_mixed", "batches of 2, mixed with the training's statistics", "%"),
        Number("one_class_mixed", "one class in a batch, mixed likewise", "%"),
    ),
    charts=(CHART,),
    measure=measure,
    caveat="In a perceptron a channel has one value an image, so a batch of 2 leaves only signs; "
    "feature maps have a value at every position and suffer less. Mixing in the training's "
    "statistics, which Schneider et al. recommend (as remembered), helps at 2 where those were "
    "not so bad, and at 4 to 16 mostly costs: under such a shift they are far off themselves.",
    seconds=1,
)
