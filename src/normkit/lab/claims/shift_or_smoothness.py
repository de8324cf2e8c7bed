"""What batch norm changes more: internal covariate shift, or the smoothness of the loss."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import fmean, median

from normkit.lab.claim import Axes, Claim, Measured, Number, Series
from normkit.lab.kit.networks import Dense
from normkit.lab.kit.probes import along_gradient, covariate_shift, ratio
from normkit.lab.kit.training import Step, train
from normkit.lab.setup import Setup

NETWORKS = {"batch": "batch norm", "none": "no norm"}
RATE = 0.1
EVERY = 10
LENGTHS = tuple(RATE * factor for factor in (0.5, 1, 2, 4))
BOTH = Axes(
    "Shift and smoothness over training", "internal covariate shift ‖G − G′‖, mean over layers",
    "change of the gradient (of its size)", log_x=True, log_y=True, points=True,
    note=f"Each point is a step of training, every {EVERY}th.",
)  # fmt: skip


@dataclass(frozen=True)
class Point:
    """One step: its shift, and how far off the gradient is at most behind up to four steps."""

    shift: float
    roughness: float


def measure(setup: Setup) -> Measured:
    found = [_points(setup, norm) for norm in NETWORKS]
    return Measured(
        {
            "shift": ratio(*(median(p.shift for p in points) for points in found)),
            "roughness": ratio(*(median(p.roughness for p in points) for points in found)),
            "shift_less": _less(*([p.shift for p in points] for points in found)),
            "roughness_less": _less(*([p.roughness for p in points] for points in found)),
        },
        [
            Series(BOTH.heading, name, [p.shift for p in points], [p.roughness for p in points])
            for name, points in zip(NETWORKS.values(), found, strict=True)
        ],
    )


def _points(setup: Setup, norm: str) -> list[Point]:
    network = Dense((64,) * 12, norm=norm).build(setup.data, setup.seed)
    points = []

    def probe(step: Step) -> None:
        if step.number % EVERY == 0:
            shifts = covariate_shift(network, step.x, step.y, RATE)
            line = along_gradient(network, step.x, step.y, LENGTHS)
            shift = fmean(layer.difference for layer in shifts)
            points.append(Point(shift, line.relative_change))

    train(
        network, setup.data, rate=RATE, steps=setup.pick(200, 50), seed=setup.seed, every=200,
        before=probe,
    )  # fmt: skip
    return points


def _less(these: list[float], those: list[float]) -> float:
    """Share of the pairs, one of each list, in which the first is less."""
    return fmean(this < that for this in these for that in those)


CLAIM = Claim(
    name="shift_or_smoothness",
    title="Shift or smoothness?",
    sentence="If less internal covariate shift is what makes batch norm help, networks with and "
    "without it differ in that; if a smoother loss is, they differ in how far a gradient predicts "
    "the next ones.",
    source="a question of ours, after Santurkar et al. 2018, sections 2.2 and 3.1",
    experiment="Twelve ReLU layers of 64 from He weights, rate 0.1, batches of 60, 200 steps. At "
    "every tenth: the shift of the claim gradient_shift, and the largest change of the gradient "
    "behind 0.5, 1, 2 and 4 steps as in the claim smoothness. How often batch norm has less is "
    "counted over all pairs of a step with it and a step without.",
    numbers=(
        Number("shift", "shift with batch norm by that without, medians", "×"),
        Number("roughness", "change of the gradient with batch norm by that without", "×"),
        Number("shift_less", "pairs of steps in which batch norm has less shift", "%"),
        Number("roughness_less", "pairs in which its gradient changes less", "%"),
    ),
    charts=(BOTH,),
    measure=measure,
    caveat="That two things go together does not show which is the cause. In shallow networks "
    "batch norm reduces the shift as well (see the claim gradient_shift).",
    seconds=4,
)
