"""Networks of random weights learn by batch norm's gamma and beta alone."""

from __future__ import annotations

import torch
from torch import nn

from normkit import torch as nkt
from normkit.lab.claim import Axes, Claim, Measured, Number, Series
from normkit.lab.kit.networks import Dense
from normkit.lab.kit.training import Step, train
from normkit.lab.setup import Setup

WIDTHS = (25, 100, 400)
ACCURACY = Axes(
    "Accuracy by what learns", "width of the layers", "test images right (share)", log_x=True,
    note="Two weights of each unit are as many numbers as its gamma and beta.",
)  # fmt: skip


def measure(setup: Setup) -> Measured:
    norms = {width: _accuracy(setup, width, "norms") for width in WIDTHS}
    weights = {width: _accuracy(setup, width, "weights") for width in WIDTHS}
    xs = [float(width) for width in WIDTHS]
    return Measured(
        {
            "narrow": norms[100],
            "rise": norms[400] - norms[100],
            "wide": norms[400],
            "weights": weights[400],
            "head": _accuracy(setup, 100, "head"),
            "all": _accuracy(setup, 100, "all"),
        },
        [
            Series(ACCURACY.heading, "gamma and beta", xs, list(norms.values())),
            Series(ACCURACY.heading, "two weights of each unit", xs, list(weights.values())),
        ],
    )


def _accuracy(setup: Setup, width: int, learning: str) -> float:
    network = Dense((width,) * 3, norm="batch").build(setup.data, setup.seed)
    masks = only(network, learning, setup.generator(1))

    def mask(_: Step) -> None:
        for weight, chosen in masks.items():
            if weight.grad is not None:
                weight.grad *= chosen

    steps = setup.pick(400, 100)
    run = train(
        network, setup.data, rate=0.1, steps=steps, seed=setup.seed, momentum=0.9, every=steps,
        before=mask,
    )  # fmt: skip
    return run.accuracy


def only(
    network: nn.Sequential, learning: str, generator: torch.Generator
) -> dict[torch.Tensor, torch.Tensor]:
    """Let this learn and nothing else; of weights, where to keep their gradients."""
    *body, head = network
    network.requires_grad_(learning == "all")
    if learning == "head":
        head.requires_grad_(True)
    masks: dict[torch.Tensor, torch.Tensor] = {}
    for layer in body:
        if learning == "norms" and isinstance(layer, nkt.BatchNorm1d):
            layer.requires_grad_(True)
        elif learning == "weights" and isinstance(layer, nn.Linear):
            weight = layer.weight.requires_grad_(True)
            masks[weight] = torch.rand(weight.shape, generator=generator).argsort(1) < 2
    return masks


CLAIM = Claim(
    name="only_gamma_beta",
    title="Gamma and beta alone can learn",
    sentence="Where all other weights stay as they were drawn, a network still learns by batch "
    "norm's gamma and beta, and the wider or deeper it is, the better.",
    source="Frankle, Schwab & Morcos 2020",
    paper="CIFAR-10, ResNet-14/110/866: 48/69.5/82 % with all but gamma and beta at random",
    experiment="Three ReLU layers with batch norm from He weights, rate 0.1, momentum 0.9, 400 "
    "steps of 60. Only gamma and beta learn; the last layer, which reads the classes, does not. "
    "For comparison two random weights of each unit, the last layer alone, and everything.",
    numbers=(
        Number("narrow", "test accuracy with 100 units a layer", "%", at_least=0.85),
        Number("rise", "what 400 units a layer add to it", "%", at_least=0.02),
        Number("wide", "test accuracy with 400 units a layer", "%"),
        Number("weights", "two weights of each of 400 units instead", "%"),
        Number("head", "the last layer alone instead, 100 units", "%"),
        Number("all", "everything, 100 units", "%"),
    ),
    charts=(ACCURACY,),
    measure=measure,
    caveat="These images are easy: two random weights of each unit do nearly as well, and the "
    "last layer alone, on random features, a little better. Deeper networks are not tried.",
    seconds=5,
)
