"""What the last sigmoids are given keeps its spread while the network learns."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import nn

from normkit.lab.claim import Axes, Claim, Measured, Number, Series
from normkit.lab.kit.networks import Dense
from normkit.lab.kit.training import batches, descend
from normkit.lab.setup import Setup

NETWORK = Dense((100, 100, 100), activation="sigmoid", std=0.1)
SHARES = (0.15, 0.5, 0.85)
EVERY = 20
OVER_TIME = Axes(
    "Inputs of one sigmoid of the last hidden layer", "training steps", "percentiles of the input",
    note="The layer's first unit, over all test images.",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Inputs:
    """Percentiles of what each of the last sigmoids is given: (times, 3, units)."""

    percentiles: torch.Tensor

    @property
    def growth(self) -> float:
        """The widest spread over the narrowest, from the 15th percentile to the 85th; median."""
        spread = self._spread
        return float((spread.amax(0) / spread.amin(0)).median())

    @property
    def drift(self) -> float:
        """How far the middle wanders, in spreads of their median over time; median over units."""
        middle = self.percentiles[:, 1]
        way = middle.amax(0) - middle.amin(0)
        return float((way / self._spread.median(0).values).median())

    @property
    def _spread(self) -> torch.Tensor:
        return self.percentiles[:, 2] - self.percentiles[:, 0]


def percentiles(network: nn.Sequential, images: torch.Tensor) -> torch.Tensor:
    """Of the inputs of the last sigmoid's units, as in training: these images are the batch.

    In inference the running statistics would have to be learnt first.
    """
    last = max(i for i, module in enumerate(network) if isinstance(module, nn.Sigmoid))
    before = copy.deepcopy(network[:last]).train()  # a copy, whose running statistics may advance
    with torch.no_grad():
        return torch.quantile(before(images), torch.tensor(SHARES), dim=0)


def measure(setup: Setup) -> Measured:
    steps = setup.pick(1200, 600)
    watched = {
        name: Inputs(torch.stack(list(_over_time(setup, norm, steps))))
        for name, norm in (("batch norm", "batch"), ("no norm", "none"))
    }
    batch, plain = watched.values()
    times = [float(step) for step in range(0, steps + 1, EVERY)]
    return Measured(
        {
            "batch": batch.growth, "plain": plain.growth,
            "batch_drift": batch.drift, "plain_drift": plain.drift,
        },
        [
            Series(OVER_TIME.heading, f"{name}, {share:.0%}", times, values.tolist())
            for name, inputs in watched.items()
            for share, values in zip(SHARES, inputs.percentiles[:, :, 0].T, strict=True)
        ],
    )  # fmt: skip


def _over_time(setup: Setup, norm: str, steps: int) -> Iterator[torch.Tensor]:
    data = setup.data
    network = replace(NETWORK, norm=norm).build(data, setup.seed)
    yield percentiles(network, data.test_images)
    for step in descend(network, batches(data, 60, setup.seed), rate=0.5, steps=steps):
        if step.number % EVERY == 0:
            yield percentiles(network, data.test_images)


CLAIM = Claim(
    name="stable_inputs",
    title="Batch norm keeps the inputs of sigmoids stable",
    sentence="While a network learns, the distribution of what its last sigmoids are given changes "
    "much less with batch norm.",
    source="Ioffe & Szegedy 2015, section 4.1 and figure 1b, c",
    paper="MNIST, 15th, 50th and 85th percentile of one input of the last hidden layer: curves, no "
    "figure",
    experiment="The networks of the claim faster, 1200 steps; every 20 steps the same percentiles "
    "over all test images, as one batch. The spread goes from the 15th to the 85th; its growth is "
    "the widest spread over the narrowest, and of all units the median counts.",
    numbers=(
        Number("batch", "growth of the spread with batch norm", "times", at_most=3),
        Number("plain", "growth of the spread without", "times", at_least=10),
        Number("batch_drift", "way of the median with batch norm", "spreads"),
        Number("plain_drift", "way of the median without", "spreads"),
    ),
    charts=(OVER_TIME,),
    measure=measure,
    caveat="The plain network's spread grows from what its small initial weights make of it: from "
    "a deviation of 0.3 it grows 3.5 to 3.8 times only, with batch norm 1.5 times. Inputs are "
    "seen as in training: with running statistics, which have nothing to go by at first, batch "
    "norm's would grow as much.",
    seconds=4,
)
