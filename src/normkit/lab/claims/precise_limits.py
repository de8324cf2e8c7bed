"""What Precise BN measures, in one batch, in several, and again."""

from __future__ import annotations

from copy import deepcopy
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

import normkit as nk
from normkit import torch as nkt
from normkit.lab.claim import Axes, Claim, Measured, Series
from normkit.lab.kit.residuals import apart, draw, equal, kernels, largest, most
from normkit.lab.kit.residuals import with_random_affine as randomized
from normkit.lab.setup import Setup
from normkit.models import recalibrate

INPUTS, UNITS, LAYERS = 10, 8, 3
ROUNDS = list(range(1, LAYERS + 2))
CHART = Axes(
    "All layers measured at once in eval mode, again and again",
    "pass",
    "change of a layer's statistics (relative)",
)
Statistics = list[tuple[Tensor, Tensor]]


@kernels()
@torch.no_grad()
def measure(setup: Setup) -> Measured:
    generator = setup.generator()
    network = _network(generator)
    x = draw(generator, 64, INPUTS)
    x = x[x[:, 0].argsort()]  # batches that are not alike
    whole, parts = _recalibrated(network, [x]), _recalibrated(network, list(x.split(8)))
    exact = _recalibrated(network, [x], layerwise=True)
    twice = _recalibrated(network, [x], times=2)
    twice_exact = _recalibrated(network, [x], times=2, layerwise=True)
    trained = deepcopy(network).train()
    trained(x)
    passes = [_statistics(network), *(_measured_at_once(network, x) for _ in ROUNDS)]
    changes = [[largest(*pair) for pair in zip(*two, strict=True)] for two in pairwise(passes)]
    inner = network[0](x)
    return Measured(
        {
            "whole": largest(whole[0], (inner.mean(0), inner.var(0))),
            "training": _furthest(whole, _statistics(trained)),
            "again": most((_furthest(twice, whole), _furthest(twice_exact, exact))),
            "first_settles": changes[1][0],
            "second_moves": changes[1][1],
            "last_settles": _furthest(passes[LAYERS], exact),
            "first_in_parts": largest(parts[0], whole[0]),
            "later_in_parts": largest(parts[1], whole[1]),
        },
        [
            Series(CHART.heading, f"norm {number}", ROUNDS, change)
            for number, change in enumerate(zip(*changes, strict=True), 1)
        ],
    )


def _network(generator: torch.Generator) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inputs in (INPUTS, *[UNITS] * (LAYERS - 1)):
        norm = nkt.BatchNorm1d(UNITS, momentum=1.0)
        layers += [nn.Linear(inputs, UNITS), norm, nn.Tanh()]
    return randomized(nn.Sequential(*layers), generator)


def _statistics(network: nn.Module) -> Statistics:
    norms: list[Any] = [one for one in network.modules() if isinstance(one, nkt.BatchNorm1d)]
    return [(norm.running_mean.clone(), norm.running_var.clone()) for norm in norms]


def _furthest(found: Statistics, wanted: Statistics) -> float:
    return most(largest(*pair) for pair in zip(found, wanted, strict=True))


def _recalibrated(
    network: nn.Module, batches: list[Tensor], times: int = 1, layerwise: bool = False
) -> Statistics:
    copy = deepcopy(network)
    for _ in range(times):
        recalibrate(copy, batches, layerwise=layerwise, progress=False)
    return _statistics(copy)


def _measured_at_once(network: nn.Sequential, x: Tensor) -> Statistics:
    """Eval mode, all statistics taken in one pass, and then written."""
    found = []
    for layer in network.eval():
        if isinstance(layer, nkt.BatchNorm1d):
            found.append((layer, nk.BatchNorm().moments(x)))
        x = layer(x)
    for norm, moments in found:
        norm.running_mean.copy_(moments.mean)
        norm.running_var.copy_(moments.population_var)
    return _statistics(network)


CLAIM = Claim(
    name="precise_limits",
    title="What Precise BN measures",
    sentence="From one batch with all data Precise BN takes the population's statistics, those of "
    "a training step; measured all at once in eval mode, only the first norm's are final, and the "
    "one behind needs another pass, unless each is measured behind corrected ones.",
    source="Wu & Johnson 2021, section 3, for the method; the limits are folklore",
    paper="exact",
    experiment="Three times linear, batch norm and tanh, 10 inputs, 8 units, 64 random samples "
    "sorted by an input, float64: recalibrate(model, data) in one batch and in eight, layer by "
    "layer, and passes that measure all norms at once in eval mode from mean 0 and variance 1.",
    numbers=(
        equal("whole", "first norm's statistics against mean and unbiased variance of all data"),
        equal("training", "all norms' against those of a training step with momentum 1"),
        equal(
            "again",
            "recalibrated twice against once, together and layer by layer",
        ),
        equal("first_settles", "all at once in eval mode: change of the first norm in pass 2"),
        apart("second_moves", "change of the second norm in pass 2"),
        equal("last_settles", "after as many passes as norms, against layer by layer"),
        equal("first_in_parts", "eight batches against one: first norm"),
        apart("later_in_parts", "eight batches against one: second norm"),
    ),
    charts=(CHART,),
    measure=measure,
    caveat="In several batches each norm feeds the next by the batch's own statistics, as in "
    "training; what the second norm sees then depends on how the data were cut.",
    seconds=0.2,
)
