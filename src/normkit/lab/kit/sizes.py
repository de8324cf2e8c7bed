"""Trainings that differ in the size, or in the make-up, of their batches alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from normkit.lab.data import Data
from normkit.lab.kit.training import Run, train
from normkit.torch import RenormSchedule

__all__ = ["SIZES", "Regime", "falling", "of_classes", "renorm_schedule"]

Tensor = torch.Tensor

#: Of Wu & He 2018, table 2.
SIZES = (32, 16, 8, 4, 2)


def falling(first: float, steps: int) -> Callable[[int], float]:
    """A rate that falls linearly from the first step's to nearly zero at the last."""
    return lambda number: first * (1 - (number - 1) / steps)


@dataclass(frozen=True)
class Regime:
    """How a network is trained whatever the size of its batches.

    All sizes see equally many images, and the rate is proportional to the size, so that all go
    about as far; it falls linearly to zero.

    Args:
        images: that are seen in all, repeats counted: what bounds the time on any data.
        rate: of the first step with batches of 32.
        momentum: of the descent.
    """

    images: int
    rate: float = 0.1
    momentum: float = 0.9

    def steps(self, size: int) -> int:
        """Of a training with batches of this size."""
        return max(1, self.images // size)

    def train(self, network: nn.Module, data: Data, size: int, seed: int, **options: Any) -> Run:
        """The training; ``options`` go to :func:`normkit.lab.kit.training.train`."""
        steps = self.steps(size)
        options = {"every": steps, **options}
        return train(
            network, data, rate=falling(self.rate * size / SIZES[0], steps), steps=steps,
            seed=seed, batch=size, momentum=self.momentum, **options,
        )  # fmt: skip

    def errors(
        self, build: Callable[[int], nn.Module], data: Data, sizes: Sequence[int], seed: int
    ) -> dict[int, float]:
        """Share of test images that are wrong, by size; ``build`` makes the network for a size."""
        return {size: 1 - self.train(build(size), data, size, seed).accuracy for size in sizes}


def renorm_schedule(steps: int) -> RenormSchedule:
    """The limits of Ioffe 2017 for a training of so many steps, of which his had 130,000.

    >>> renorm_schedule(130_000) == RenormSchedule()
    True
    """
    start, d_end, r_end = (steps * thousands // 130 for thousands in (5, 25, 40))
    return RenormSchedule(start=start, d_end=d_end, r_end=r_end)


def of_classes(
    data: Data, size: int, classes: int, generator: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """Training batches of images of a few classes, without end.

    Each draws its classes, none twice, and its images from all of theirs.
    """
    labels = data.train_labels
    while True:
        drawn = torch.randperm(data.classes, generator=generator)[:classes]
        there = torch.isin(labels, drawn).nonzero().flatten()
        chosen = there[torch.randint(len(there), (size,), generator=generator)]
        yield data.train_images[chosen], labels[chosen]
