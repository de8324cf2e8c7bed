"""Training one network by plain gradient descent, and what is measured on the way."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import nn

from normkit.demo.networks import DESCRIPTION, Init, Network, build
from normkit.lab.data import Data
from normkit.lab.kit.training import batches, descend

BATCH = 64
EVERY = 5  # steps between two measurements
GOAL = 0.95  # of the training images

# An image alone and in company may differ by this many float32 roundings of the largest logit.
# Three layers add up to 512 products each, in an order that depends on the batch: the first-order
# bound is over 800 roundings, the usual figure is below 10.
ROUNDINGS = 64


@dataclass(frozen=True)
class Run:
    """What to train."""

    network: Network
    batch_norm: bool
    rate: float
    steps: int
    seed: int
    init: Init = "torch"

    @property
    def norm(self) -> str:
        return "batch norm" if self.batch_norm else "none"


@dataclass(frozen=True)
class Point:
    """A measurement after `step` steps, in eval mode; the loss is that of all training images."""

    step: int
    loss: float
    train_accuracy: float
    test_accuracy: float


@dataclass(frozen=True)
class Result:
    run: Run
    points: tuple[Point, ...]
    seconds: float
    agreement: Agreement
    network: nn.Module | None = field(default=None, repr=False, compare=False)

    @property
    def steps_to_goal(self) -> int | None:
        """Steps until GOAL of the training images were right for the first time."""
        return next((p.step for p in self.points if p.train_accuracy >= GOAL), None)


@dataclass(frozen=True)
class Agreement:
    """Logits of the test images one at a time against those of all in one batch, both in eval mode.

    A matrix product adds in another order when its shape differs, so a few roundings are expected
    without any norm too; a norm that used the batch's own statistics would differ by whole units.
    """

    difference: float  # the largest, absolute
    scale: float  # the largest logit, absolute

    @property
    def roundings(self) -> float:
        """The difference in units of float32's rounding of the largest logit."""
        rounding = self.scale * torch.finfo(torch.float32).eps
        return self.difference / rounding if rounding else 0.0

    @property
    def holds(self) -> bool:
        return self.roundings <= ROUNDINGS  # false for NaN


def prepare(data: Data) -> None:
    """Compile the kernels of batch norm, so that no run is timed with it."""
    for network in DESCRIPTION:
        train(Run(network, batch_norm=True, rate=0.0, steps=EVERY, seed=0), data, lambda _: None)


def train(run: Run, data: Data, report: Callable[[Point], None]) -> Result:
    """Train and measure. The same run on the same machine gives the same result, bit by bit."""
    network = build(run.network, run.batch_norm, run.init, run.seed)
    points = []
    start = time.perf_counter()
    feed = batches(data, BATCH, run.seed)
    for step in descend(network, feed, rate=run.rate, steps=run.steps):
        if step.number % EVERY == 0:
            points.append(_measure(step.number, network, data))
            report(points[-1])
    seconds = time.perf_counter() - start
    agreement = one_at_a_time(network, data.test_images)
    return Result(run, tuple(points), seconds, agreement, network)


@torch.no_grad()
def _measure(step: int, network: nn.Module, data: Data) -> Point:
    network.eval()
    logits = network(data.train_images)
    return Point(
        step=step,
        loss=float(nn.functional.cross_entropy(logits, data.train_labels)),
        train_accuracy=_accuracy(logits, data.train_labels),
        test_accuracy=_accuracy(network(data.test_images), data.test_labels),
    )


def _accuracy(logits: torch.Tensor, labels: torch.Tensor) -> float:
    return float((logits.argmax(1) == labels).double().mean())


@torch.no_grad()
def one_at_a_time(network: nn.Module, images: torch.Tensor) -> Agreement:
    """Whether the network in eval mode treats an image alike alone and in company."""
    network.eval()
    together = network(images)
    alone = torch.cat([network(image[None]) for image in images])
    return Agreement(
        difference=float((alone - together).abs().max()),
        scale=float(together.abs().max()),
    )
