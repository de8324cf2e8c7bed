"""Gradients explode with depth where batch norm has no skip connections."""

from __future__ import annotations

import math

import torch
from torch import nn

from normkit.lab.claim import Axes, Claim, Measured, Number, Series
from normkit.lab.kit.networks import Dense
from normkit.lab.kit.skips import Block, Residual
from normkit.lab.kit.training import batches
from normkit.lab.setup import Setup

LIMIT = math.pi / (math.pi - 1)
BATCHES = (16, 32, 64)
SIZE = Axes(
    "Gradient by layer", "layer", "‖gradient‖² (of the last layer's)", log_y=True,
    note="Batches of 64; of the network with skip connections, by block.",
)  # fmt: skip
GROWTH = Axes("Growth by batch", "images in a batch", "growth of ‖gradient‖² a layer", log_x=True)


def measure(setup: Setup) -> Measured:
    relu = {batch: _dense(setup, "relu", "batch", batch) for batch in BATCHES}
    networks = {
        "batch norm": relu[64],
        "no norm": _dense(setup, "relu", "none", 64),
        "batch norm, skip connections": _sizes(
            Residual(*_width_and_depth(setup)).build(setup.data, setup.seed), Block, setup, 64
        ),
    }
    growths = {batch: _growth(sizes) for batch, sizes in relu.items()}
    xs = [float(batch) for batch in BATCHES]
    return Measured(
        {
            **{f"relu{batch}": growth for batch, growth in growths.items()},
            "linear16": _growth(_dense(setup, "linear", "batch", 16)),
            "plain": _growth(networks["no norm"]),
            "skips": _growth(networks["batch norm, skip connections"]),
        },
        [
            *(
                Series(
                    SIZE.heading, name, [float(n) for n in range(1, len(sizes) + 1)],
                    [size / sizes[-1] for size in sizes],
                )
                for name, sizes in networks.items()
            ),
            Series(GROWTH.heading, "measured", xs, list(growths.values())),
            Series(GROWTH.heading, "π / (π − 1), for large batches", xs, [LIMIT] * len(xs)),
        ],
    )  # fmt: skip


def _width_and_depth(setup: Setup) -> tuple[int, int]:
    return setup.pick((1024, 30), (512, 20))


def _dense(setup: Setup, activation: str, norm: str, batch: int) -> list[float]:
    width, depth = _width_and_depth(setup)
    network = Dense((width,) * depth, activation, norm).build(setup.data, setup.seed)
    return _sizes(network, nn.Linear, setup, batch)


def _sizes(network: nn.Sequential, kind: type[nn.Module], setup: Setup, batch: int) -> list[float]:
    """Squares of the gradient by what layers of a kind put out, from a random one at the end."""
    x, _ = next(batches(setup.data, batch, setup.seed))
    kept = []
    for layer in list(network)[:-1]:
        x = layer(x)
        if isinstance(layer, kind):
            x.retain_grad()
            kept.append(x)
    x.backward(torch.randn(x.shape, generator=setup.generator()))
    return [float(one.grad.square().sum()) for one in kept if one.grad is not None]


def _growth(sizes: list[float]) -> float:
    """By layer, over the half next to the last layer: there the first images are forgotten."""
    half = sizes[len(sizes) // 2 :]
    return (half[0] / half[-1]) ** (1 / (len(half) - 1))


CLAIM = Claim(
    name="explosion",
    title="Batch norm without skip connections makes gradients explode",
    sentence="At the start of training the gradient grows from layer to layer towards the input, "
    "exponentially with depth, in a ReLU network with batch norm and without skip connections, "
    "whatever the scale of the weights.",
    source="Yang et al. 2019",
    paper="√(π/(π − 1)) ≈ 1.21 a layer for large batches, which is 1.467 for the square (from a "
    "secondary source); (B − 2)/(B − 3) for the square in linear networks (as remembered, not "
    "checked in the paper)",
    experiment="30 layers, or residual blocks, of 1024 from He weights, a batch of images, a "
    "random gradient at the end, nothing trained: growth of the squared gradient a layer, over "
    "the 15 layers next to the end, where the fixed point of the theory is reached.",
    numbers=(
        *(
            Number(
                f"relu{batch}", f"growth a layer, ReLU, batch of {batch}", "×",
                paper="1.467 × for large batches", at_least=1.3, at_most=1.6,
            )
            for batch in BATCHES
        ),
        Number("linear16", "growth a layer, linear, batch of 16", "×", paper="14/13 = 1.077 ×"),
        Number("plain", "growth a layer, ReLU without norm", "×"),
        Number("skips", "growth a block, batch norm and skip connections", "×"),
    ),
    charts=(SIZE, GROWTH),
    measure=measure,
    caveat="The smaller the batch, the faster the growth: at 16 it is just within the bound, at 4 "
    "about threefold. In the first layers, where the images still show, it differs; linear "
    "networks forget them slowly.",
    seconds=5,
)  # fmt: skip
