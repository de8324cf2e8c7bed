"""Deep residual networks learn without norms when their branches start at zero."""

from __future__ import annotations

from typing import get_args

import torch
from torch import nn

from normkit.lab.claim import Axes, Claim, Measured, Number, Series
from normkit.lab.kit.branches import Branches, Start
from normkit.lab.kit.skips import Block
from normkit.lab.kit.training import Run, train
from normkit.lab.setup import Setup

Tensor = torch.Tensor
RATE, LOWER, EVERY = 0.1, (1e-3, 1e-6, 1e-9, 1e-11), 10
WIDTH, BLOCKS = Branches.width, Branches.blocks
VARIANCE = Axes(
    "At the start", "blocks", "mean square behind a block, by that before the first", log_y=True
)
CURVES = Axes("Learning", "training steps", "test images right (share)", y_range=(0, 1.02))


def measure(setup: Setup) -> Measured:
    images = setup.data.train_images[:200]
    starts: tuple[Start, ...] = get_args(Start)
    networks = {start: Branches(start).build(setup.data, setup.seed) for start in starts}
    squares = {start: mean_squares(network, images) for start, network in networks.items()}
    runs = {start: _train(setup, network) for start, network in networks.items()}
    trained = mean_squares(networks["Fixup"], images)
    lower = setup.pick(LOWER, LOWER[2:3])
    plain = [_train(setup, Branches("neither").build(setup.data, setup.seed), r) for r in lower]
    plain.append(runs["neither"])
    depths = [float(number) for number in range(BLOCKS + 1)]
    return Measured(
        {
            "fixup": runs["Fixup"].accuracy,
            "skip_init": runs["SkipInit"].accuracy,
            "plain": max(run.accuracy for run in plain),
            "batch": runs["batch norm"].accuracy,
            "growth": squares["Fixup"][-1],
            "growth_trained": trained[-1],
            "growth_plain": squares["neither"][-1],
            "growth_batch": squares["batch norm"][-1],
            "diverged": sum(run.diverged for run in plain) / len(plain),
        },
        [
            *(Series(VARIANCE.heading, start, depths, squares[start]) for start in starts),
            *(_curve(start, runs[start], setup) for start in starts),
        ],
    )


def _train(setup: Setup, network: nn.Module, rate: float = RATE) -> Run:
    steps = setup.pick(120, 40)
    return train(network, setup.data, rate=rate, steps=steps, seed=setup.seed, every=EVERY)


def _curve(start: str, run: Run, setup: Setup) -> Series:
    """One that diverged is drawn to the end, as it last was."""
    steps = [float(step) for step in range(0, setup.pick(120, 40) + 1, EVERY)]
    right = [run.accuracies[min(i, len(run.accuracies) - 1)] for i in range(len(steps))]
    return Series(CURVES.heading, start, steps, right)


@torch.no_grad()
def mean_squares(network: nn.Module, images: Tensor) -> list[float]:
    """Behind each block, by that in front of the first; in training mode."""
    network.train()
    x = images
    found: list[float] = []
    for layer in network.children():
        if isinstance(layer, Block) and not found:
            found.append(float(x.square().mean()))
        x = layer(x)
        if isinstance(layer, Block):
            found.append(float(x.square().mean()))
    return [one / found[0] for one in found]


CLAIM = Claim(
    name="fixup",
    title="Branches that start at zero replace norms",
    sentence="A deep residual network trains without norms if its branches start at zero: by their "
    "last weights (Fixup) or by a factor (SkipInit).",
    source="Zhang et al. 2019 (Fixup); De & Smith 2020 (SkipInit)",
    paper="Fixup: ResNet-50 on ImageNet with mixup about 76.0 %; weights of a branch of m layers "
    "scaled by L^(−1/(2m−2)) (the exponent as remembered, not checked in the paper)",
    experiment=f"{BLOCKS} blocks of {WIDTH} units, each with a branch of two linear layers, from "
    f"the same He weights: with Fixup, SkipInit, batch norm, or neither; 120 steps of 60 at rate "
    f"{RATE:g}. Neither is also tried at rates of {', '.join(f'{rate:g}' for rate in LOWER)}.",
    numbers=(
        Number("fixup", "right with Fixup", "%", paper="76.0 %, ImageNet", at_least=0.9),
        Number("skip_init", "right with SkipInit", "%", at_least=0.9),
        Number("plain", "right with neither, at the best rate", "%", at_most=0.2),
        Number("growth_trained", "growth of the mean square through all blocks, Fixup, trained",
               at_most=10),
        Number("batch", "right with batch norm", "%"),
        Number("growth", "growth at the start, Fixup"),
        Number("growth_batch", "growth at the start, batch norm"),
        Number("growth_plain", "growth at the start, neither"),
        Number("diverged", "rates at which neither diverges", "%"),
    ),
    charts=(VARIANCE, CURVES),
    measure=measure,
    caveat="That the mean square does not grow at the start is so by construction: branches are "
    "zero. Neither has no rate in between that works: from 1e-13 to 0.1 it diverges or stays "
    "below 17 %; Fixup and SkipInit are level with batch norm, whose own mean square grows about "
    "28-fold. What norms do besides, such as regularize, is not looked at. A run that diverged is "
    "drawn to the end as it last was.",
    seconds=10,
)  # fmt: skip
