"""How much the scale of the initial weights matters."""

from __future__ import annotations

import math
from dataclasses import replace

from normkit.lab.claim import Axes, Claim, Measured, Number, Series
from normkit.lab.claims.faster import GOAL, NETWORK
from normkit.lab.kit.training import train
from normkit.lab.setup import Setup

DEVIATIONS = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
USUAL, LARGER = 0.1, 0.3
BY_SCALE = Axes(
    "Steps by initial scale", "deviation of the initial weights", "steps until 95 % are right",
    log_x=True, log_y=True,
)  # fmt: skip


def measure(setup: Setup) -> Measured:
    deviations = DEVIATIONS if not setup.quick else (0.01, USUAL, LARGER)
    limit = setup.pick(1200, 400)
    steps = {
        name: [_steps(setup, norm, deviation, limit) for deviation in deviations]
        for name, norm in (("batch norm", "batch"), ("no norm", "none"))
    }
    batch, plain = steps.values()
    gain = {
        deviation: min(without, limit) / with_norm
        for deviation, with_norm, without in zip(deviations, batch, plain, strict=True)
    }
    return Measured(
        {
            "batch_works": _share(batch),
            "plain_works": _share(plain),
            "batch_fewest": min(batch),
            "batch_most": max(batch),
            "gain_usual": gain[USUAL],
            "gain_larger": gain[LARGER],
        },
        [Series(BY_SCALE.heading, name, list(deviations), ys) for name, ys in steps.items()],
    )


def _steps(setup: Setup, norm: str, deviation: float, limit: int) -> float:
    network = replace(NETWORK, norm=norm, std=deviation).build(setup.data, setup.seed)
    run = train(network, setup.data, rate=0.5, steps=limit, seed=setup.seed, goal=GOAL)
    return run.steps_to(GOAL)


def _share(steps: list[float]) -> float:
    return sum(map(math.isfinite, steps)) / len(steps)


CLAIM = Claim(
    name="initial_scale",
    title="How much does the initial scale matter?",
    sentence="With batch norm a network learns from initial weights of almost any scale.",
    source="A question of ours; that batch norm allows less care about initial weights is in the "
    "abstract of Ioffe & Szegedy 2015",
    experiment="The networks of the claim faster, rate 0.5, from Gaussian weights of deviations "
    "from 0.003 to 3: steps until 95 % of the test images are right, 1200 at most.",
    numbers=(
        Number("batch_works", "deviations from which batch norm gets there", "%"),
        Number("plain_works", "deviations from which the plain network does", "%"),
        Number("batch_fewest", "fewest steps with batch norm, over the deviations", "steps"),
        Number("batch_most", "most steps with batch norm", "steps"),
        Number("gain_usual", "steps saved by batch norm from deviation 0.1: at least", "times"),
        Number("gain_larger", "from deviation 0.3: at least", "times"),
    ),
    charts=(BY_SCALE,),
    measure=measure,
    caveat="One rate for all: a plain network from large weights may want another. The last layer "
    "has no norm and starts at the same scale.",
    seconds=6,
)
