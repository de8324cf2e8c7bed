"""One minibatch gives weight-normalized layers outputs of mean 0 and variance 1."""

from __future__ import annotations

import torch
from torch import nn

from normkit.lab.claim import Axes, Claim, Measured, Number, Series
from normkit.lab.kit.networks import Dense
from normkit.lab.kit.residuals import most
from normkit.lab.setup import Setup
from normkit.torch.beyond import data_dependent_init, weight_norm

Tensor = torch.Tensor
DEPTH, BATCH = 10, 500
NETWORK = Dense((100,) * DEPTH, std="torch")
CHART = Axes(
    "Deviation by layer", "layer", "deviation of what its units put out (median)", log_y=True
)


def measure(setup: Setup) -> Measured:
    data = setup.data
    order = torch.randperm(len(data.train_labels), generator=setup.generator(1))
    batch = data.train_images[order[:BATCH]].double()
    network = NETWORK.build(data, setup.seed).double()
    for layer in network:
        if isinstance(layer, nn.Linear):
            weight_norm(layer)
    before = outputs(network, batch)
    data_dependent_init(network, batch)
    found = {
        "weight norm alone": before,
        "from the minibatch": outputs(network, batch),
        "the same, on test images": outputs(network, data.test_images.double()),
    }
    alone, fitted, tests = found.values()
    layers = [float(number) for number in range(1, len(alone) + 1)]
    return Measured(
        {
            "mean": most(_off_mean(out) for out in fitted),
            "deviation": most(_off_deviation(out) for out in fitted),
            "alone": float(_deviations(alone[DEPTH - 1]).median()),
            "test_deviation": float(_deviations(tests[DEPTH - 1]).median()),
        },
        [
            Series(CHART.heading, name, layers, [float(_deviations(o).median()) for o in outs])
            for name, outs in found.items()
        ],
    )


@torch.no_grad()
def outputs(network: nn.Sequential, images: Tensor) -> list[Tensor]:
    """What each Linear puts out."""
    found = []
    for layer in network:
        images = layer(images)
        if isinstance(layer, nn.Linear):
            found.append(images)
    return found


def _deviations(out: Tensor) -> Tensor:
    return out.std(0, correction=0)


def _off_mean(out: Tensor) -> float:
    return float(out.mean(0).abs().max())


def _off_deviation(out: Tensor) -> float:
    return float((_deviations(out) - 1).abs().max())


CLAIM = Claim(
    name="weight_norm_start",
    title="Weight norm starts from a minibatch",
    sentence="One forward pass over a minibatch can set length and bias of weight-normalized "
    "layers so that every unit of every layer starts with mean 0 and variance 1.",
    source="Salimans & Kingma 2016, section 3",
    paper="Mean 0 and variance 1; g = 1/σ[t], b = −μ[t]/σ[t] (the formulas as remembered, not "
    "checked in the paper)",
    experiment=f"A perceptron of {DEPTH}×100 with ReLU under weight norm, in float64, from "
    f"PyTorch's usual weights; normkit.torch.beyond.data_dependent_init on {BATCH} training "
    "images. Then the outputs of every layer are measured on these images, and on the test images.",
    numbers=(
        Number("mean", "largest mean of a unit, on the minibatch", at_most=1e-10),
        Number("deviation", "largest |deviation − 1| of a unit, on the minibatch", at_most=1e-10),
        Number("alone", f"deviation in layer {DEPTH} without it (median of the units)"),
        Number("test_deviation", f"deviation in layer {DEPTH} on test images (median)"),
    ),
    charts=(CHART,),
    measure=measure,
    caveat="Of the minibatch it holds exactly, and at the start only: nothing keeps it so in "
    "training, and other images differ by what a sample differs. PyTorch's usual weights shrink "
    "in any ReLU network; He's would not.",
    seconds=0.3,
)
