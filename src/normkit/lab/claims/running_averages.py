"""What running statistics have forgotten, and what their average is the average of."""

from __future__ import annotations

from typing import Any

import torch

import normkit as nk
from normkit import torch as nkt
from normkit.lab.claim import Axes, Claim, Measured, Series
from normkit.lab.kit.residuals import apart, draw, equal, kernels, largest, most, residual
from normkit.lab.setup import Setup

CHANNELS = 6
COUNTS = (2, 3, 5, 8, 13, 21, 5, 3, 2, 8)
MOMENTA = (0.5, 0.1, 0.01)
CHART = Axes("What is left of the start", "batches", "weight of the initial mean", y_range=(0, 1))


@kernels()
@torch.no_grad()
def measure(setup: Setup) -> Measured:
    batches = draw(setup.generator(), sum(COUNTS), CHANNELS).split(COUNTS)
    batches = tuple(batch + number for number, batch in enumerate(batches))  # means lie apart
    left = {momentum: _left(setup, momentum, batches) for momentum in MOMENTA}
    steps = list(range(len(COUNTS) + 1))
    moments = [nk.BatchNorm().moments(batch) for batch in batches]
    mean = torch.stack([one.mean for one in moments]).mean(0)
    var = torch.stack([one.population_var for one in moments]).mean(0)
    averaged, pooled = _fed(batches, momentum=None), _fed(batches, running="population")
    together = torch.cat(batches)
    return Measured(
        {
            "start": most(residual(w, [(1 - m) ** t for t in steps]) for m, w in left.items()),
            "averaged": largest((averaged.running_mean, averaged.running_var), (mean, var)),
            "pooled": largest(
                (pooled.running_mean, pooled.running_var), (together.mean(0), together.var(0))
            ),
            "not_pooled": residual(averaged.running_var, together.var(0)),
        },
        [Series(CHART.heading, f"momentum {m:g}", steps, w) for m, w in left.items()],
    )


def _fed(batches: tuple[torch.Tensor, ...], **options: Any) -> nkt.BatchNorm1d:
    layer = nkt.BatchNorm1d(CHANNELS, **options).double()
    for batch in batches:
        layer(batch)
    return layer


def _left(setup: Setup, momentum: float, batches: tuple[torch.Tensor, ...]) -> list[float]:
    """How much two layers that differ in their start still differ, batch after batch."""
    layers = [nkt.BatchNorm1d(CHANNELS, momentum=momentum).double() for _ in range(2)]
    start = draw(setup.generator(1), CHANNELS)
    layers[1].running_mean.copy_(start)
    left = [1.0]
    for batch in batches:
        for layer in layers:
            layer(batch)
        distance = layers[1].running_mean - layers[0].running_mean
        left.append(float((distance @ start) / (start @ start)))
    return left


CLAIM = Claim(
    name="running_averages",
    title="What running statistics average",
    sentence="With constant momentum m the initial statistics keep a weight of (1 − m)^t after t "
    "batches; with momentum=None they are the plain mean of the batches' means and unbiased "
    "variances, which is not the variance of all data.",
    source="Folklore; PyTorch's documentation of BatchNorm2d",
    paper="exact",
    experiment="Batch norm layers fed 10 batches of 2 to 21 samples, 6 channels, whose means lie "
    "apart, float64: momentum 0.5, 0.1 and 0.01 from two starts; momentum=None; and "
    'running="population", which merges moments.',
    numbers=(
        equal("start", "what is left of the start against (1 − m)^t"),
        equal("averaged", "momentum=None against the mean of the batches' statistics"),
        equal("pooled", 'running="population" against mean and variance of all data'),
        apart("not_pooled", "the variance of momentum=None against that of all data"),
    ),
    charts=(CHART,),
    measure=measure,
    seconds=0.1,
)
