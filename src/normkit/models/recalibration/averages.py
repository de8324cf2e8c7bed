"""What a norm's running statistics become as batches come by: one class a rule, all in float64.

Each is filled by one process and can then be merged with those of other ranks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch

from normkit.moments import Moments
from normkit.torch.statistics import merge_sets

__all__ = ["METHODS", "Average", "Reading", "make_average"]

Tensor = torch.Tensor
METHODS = ("population", "ema", "cumulative")


@dataclass(frozen=True, eq=False)
class Reading:
    """One call of a norm.

    Args:
        moments: of all elements by channel: (C,), float64.
        mean, var: what torch.nn's rule takes of the call. Unbiased; of an instance norm, averages
            over its samples.
        samples: of the call.
    """

    moments: Moments
    mean: Tensor
    var: Tensor
    samples: int


class Average(Protocol):
    """Mean, variance and what is behind them. Shapes: (C,)."""

    batches: int

    @property
    def mean(self) -> Tensor: ...

    @property
    def var(self) -> Tensor: ...

    @property
    def elements(self) -> Tensor: ...

    def add(self, reading: Reading) -> None:
        """One more call of the norm."""

    def pack(self) -> Tensor:
        """All of it as one row of numbers, to travel to other ranks."""

    def merge(self, rows: Tensor) -> None:
        """Become the average of all ranks; ``rows`` are what each of them packed."""


class Population:
    """Exact mean and variance of all elements, however they were cut into batches."""

    def __init__(self, like: Tensor) -> None:
        zeros = torch.zeros_like(like)
        self.moments, self.batches = Moments(zeros, zeros, zeros), 0

    def add(self, reading: Reading) -> None:
        self.moments = self.moments.merge(reading.moments)
        self.batches += 1

    @property
    def mean(self) -> Tensor:
        return self.moments.mean

    @property
    def var(self) -> Tensor:
        return self.moments.population_var

    @property
    def elements(self) -> Tensor:
        return self.moments.count

    def pack(self) -> Tensor:
        count, mean, m2 = self.moments.count, self.moments.mean, self.moments.m2
        return torch.cat([count, mean, m2, count.new_tensor([self.batches])])

    def merge(self, rows: Tensor) -> None:
        values, self.batches = _unpack(rows, self.mean)
        self.moments = merge_sets(Moments(*values))


class Weighted:
    """A plain average of the calls' own means and variances.

    Each call weighs the same, or as many samples as it had; what was there before has a weight too.
    """

    def __init__(self, mean: Tensor, var: Tensor, weight: float, by_samples: bool) -> None:
        self.weight, self.mean, self.var = torch.full_like(mean, weight), mean, var
        self.elements = torch.zeros_like(mean)
        self.by_samples, self.batches = by_samples, 0

    def add(self, reading: Reading) -> None:
        count = reading.moments.count
        weight = (count > 0).to(count) * (reading.samples if self.by_samples else 1)
        self.weight = self.weight + weight
        rate = weight / self.weight.clamp(min=1)
        self.mean = self.mean + rate * (reading.mean - self.mean)
        self.var = self.var + rate * (reading.var - self.var)
        self.elements = self.elements + count
        self.batches += 1

    def pack(self) -> Tensor:
        batches = self.weight.new_tensor([self.batches])
        return torch.cat([self.weight, self.mean, self.var, self.elements, batches])

    def merge(self, rows: Tensor) -> None:
        (weights, means, variances, elements), self.batches = _unpack(rows, self.mean)
        self.weight = weights.sum(0)
        share = weights / self.weight.clamp(min=1)
        self.mean, self.var = (share * means).sum(0), (share * variances).sum(0)
        self.elements = elements.sum(0)


class Exponential:
    """torch.nn's running average, going on from where it stands."""

    def __init__(self, mean: Tensor, var: Tensor, momentum: float) -> None:
        self.mean, self.var, self.momentum = mean, var, momentum
        self.elements, self.batches = torch.zeros_like(mean), 0

    def add(self, reading: Reading) -> None:
        count = reading.moments.count
        mean, var = (
            torch.lerp(old, new, self.momentum)
            for old, new in ((self.mean, reading.mean), (self.var, reading.var))
        )
        self.mean = torch.where(count > 0, mean, self.mean)
        self.var = torch.where(count > 0, var, self.var)
        self.elements = self.elements + count
        self.batches += 1

    def pack(self) -> Tensor:
        raise NotImplementedError("a running average has no order over several ranks")

    def merge(self, rows: Tensor) -> None:
        raise NotImplementedError("a running average has no order over several ranks")


def make_average(
    method: str, kind: str, mean: Tensor, var: Tensor, batches: int, momentum: float | None
) -> Average:
    """The average of a method for a norm of this kind.

    Args:
        mean, var, batches: the running statistics so far, float64.
        momentum: of the norm; None for one that averages cumulatively.
    """
    if method == "population" and kind == "batch":
        return Population(mean)
    if method == "ema" and momentum is not None:
        return Exponential(mean, var, momentum)
    going_on = batches if method == "ema" else 0
    start = (mean, var) if going_on else (torch.zeros_like(mean), torch.zeros_like(var))
    return Weighted(*start, going_on, by_samples=method == "population")


def _unpack(rows: Tensor, like: Tensor) -> tuple[list[Tensor], int]:
    """Columns of (ranks, C) each, and the number of batches of all ranks."""
    table = rows[:, :-1].reshape(len(rows), -1, len(like)).to(like.device)
    return list(table.unbind(1)), int(rows[:, -1].sum())
