"""Gradient descent on a network, step by step, and what is measured on the way."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from statistics import fmean

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 - its usual name

from normkit.lab.data import Data

__all__ = ["Run", "Step", "accuracy", "batches", "clip_by_weights", "descend", "loss_of", "train"]

Tensor = torch.Tensor
LARGE = 1e3  # a loss so many times the first one has diverged


@dataclass(frozen=True, eq=False)
class Step:
    """A step of gradient descent.

    Args:
        number: from 1.
        x, y: the batch.
        loss: of the batch, before the step; cross-entropy in nats.
    """

    number: int
    x: Tensor
    y: Tensor
    loss: float


@dataclass(eq=False)
class Run:
    """A training: test accuracy at ``steps`` (the first is 0), and the loss of each batch."""

    network: nn.Module
    steps: list[int] = field(default_factory=list)
    accuracies: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    diverged: bool = False

    @property
    def accuracy(self) -> float:
        """Of the last measurement, test images, eval mode."""
        return self.accuracies[-1]

    def steps_to(self, goal: float) -> float:
        """Steps until the test accuracy first reached the goal; infinite where it never did."""
        reached = (s for s, a in zip(self.steps, self.accuracies, strict=True) if a >= goal)
        return float(next(reached, math.inf))

    def settled(self, count: int = 10) -> float:
        """The mean of the last measurements, which jumps less than the last one."""
        return fmean(self.accuracies[-count:])


def batches(data: Data, size: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Shuffled epochs of whole batches, without end."""
    generator = torch.Generator().manual_seed(seed)
    total = len(data.train_labels)
    size = min(size, total)
    while True:
        order = torch.randperm(total, generator=generator)
        for begin in range(0, total - size + 1, size):
            chosen = order[begin : begin + size]
            yield data.train_images[chosen], data.train_labels[chosen]


def descend(
    network: nn.Module,
    source: Iterable[tuple[Tensor, Tensor]],
    *,
    rate: float | Callable[[int], float],
    steps: int,
    momentum: float = 0.0,
    decay: float = 0.0,
    before: Callable[[Step], None] | None = None,
) -> Iterator[Step]:
    """Stochastic gradient descent, in training mode; yields each step when it has been taken.

    It ends early with a step whose loss is no finite number, and which is not taken.

    Args:
        source: batches.
        rate: of learning; or a function of the number of the step.
        decay: L2, in the gradient.
        before: is called when a step's gradient is known and the step not taken: to measure, or to
            clip the gradient.
    """
    parameters = [p for p in network.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=0.0, momentum=momentum, weight_decay=decay)
    for number, (x, y) in zip(range(1, steps + 1), source, strict=False):
        optimizer.param_groups[0]["lr"] = rate(number) if callable(rate) else rate
        network.train()
        optimizer.zero_grad()
        loss = F.cross_entropy(network(x), y)
        step = Step(number, x, y, float(loss.detach()))
        if math.isfinite(step.loss):
            loss.backward()
            if before is not None:
                before(step)
            optimizer.step()
        yield step
        if not math.isfinite(step.loss):
            return


def train(
    network: nn.Module,
    data: Data,
    *,
    rate: float | Callable[[int], float],
    steps: int,
    seed: int,
    batch: int = 60,
    momentum: float = 0.0,
    decay: float = 0.0,
    every: int = 10,
    goal: float | None = None,
    source: Iterable[tuple[Tensor, Tensor]] | None = None,
    before: Callable[[Step], None] | None = None,
) -> Run:
    """Train on shuffled batches, and measure the test accuracy now and then.

    It ends early where the loss has diverged: no finite number, or a thousand times the first.

    Args:
        every: steps between two measurements.
        goal: stop where the test accuracy reaches it.
        source: other batches than the shuffled ones.
        before: see :func:`descend`.
    """
    run = Run(network, [0], [accuracy(network, data)])
    feed = batches(data, batch, seed) if source is None else source
    for step in descend(
        network, feed, rate=rate, steps=steps, momentum=momentum, decay=decay, before=before
    ):
        run.losses.append(step.loss)
        run.diverged = not math.isfinite(step.loss) or step.loss > LARGE * run.losses[0]
        if run.diverged or step.number % every == 0 or step.number == steps:
            run.steps.append(step.number)
            run.accuracies.append(accuracy(network, data))
        if run.diverged or (goal is not None and run.accuracy >= goal):
            break
    return run


def clip_by_weights(parameters: Iterable[nn.Parameter], limit: float) -> None:
    """Adaptive gradient clipping (Brock et al. 2021): no unit's gradient is longer than ``limit``
    times its weights.

    A unit is a row of a weight; of biases and gains it is all of them. Weights count as 1e-3 long
    at least.
    """
    for parameter in parameters:
        grad = parameter.grad
        assert grad is not None
        by_row = parameter.dim() > 1 and parameter[0].numel() > 1
        dims = tuple(range(1, parameter.dim())) if by_row else None
        size = torch.linalg.vector_norm(parameter.detach(), dim=dims, keepdim=True).clamp(min=1e-3)
        length = torch.linalg.vector_norm(grad, dim=dims, keepdim=True).clamp(min=1e-6)
        grad.mul_((limit * size / length).clamp(max=1.0))


@torch.no_grad()
def accuracy(
    network: nn.Module, data: Data, images: Tensor | None = None, *, training: bool = False
) -> float:
    """Share of the test images that are right; of others, in training mode, where asked.

    In training mode running statistics stay as they are.
    """
    images = data.test_images if images is None else images
    was = network.training
    kept = {name: value.clone() for name, value in network.named_buffers()} if training else {}
    network.train(training)
    try:
        right = network(images).argmax(1) == data.test_labels
    finally:
        for name, value in network.named_buffers():
            if name in kept:
                value.copy_(kept[name])
        network.train(was)
    return float(right.double().mean())


@torch.no_grad()
def loss_of(network: nn.Module, x: Tensor, y: Tensor) -> float:
    """Cross-entropy in the network's present mode."""
    return float(F.cross_entropy(network(x), y))
