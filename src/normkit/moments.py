"""Count, mean and M2 of a set of numbers: taken, merged, averaged over time.

M2 is the sum of squared deviations from the mean. Two of these triples merge into the triple of the
union, exactly (Chan, Golub & LeVeque 1979), which averaging variances does not: the spread between
the means would be lost.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from normkit.errors import DTypeError, OptionError, ShapeError

__all__ = ["CumulativeAverage", "ExponentialAverage", "Moments", "PopulationAverage"]


def from_sums(count: float, pilot: float, first: float, second: float) -> tuple[float, float]:
    """Mean and M2 from the sums of x - pilot and (x - pilot)^2. Numbers only: it is compiled.

    The pilot is a mean of some of the set's own elements, so that M2 is no small difference of
    large numbers.
    """
    mean = pilot + first / count
    m2 = second - first * (first / count)
    return mean, 0.0 if m2 < 0.0 else m2  # rounding may leave a tiny negative; NaN stays


def merge_along(
    xp: Any, count: Any, mean: Any, m2: Any, axis: int, count_total: Any
) -> tuple[Any, Any]:
    """Merge partial moments along one axis into the moments of the union.

    Args:
        xp: array namespace.
        count: elements behind each partial, broadcastable to ``mean``.
        mean, m2: partials.
        axis: the axis that is merged away.
        count_total: sum of ``count`` along it, at least 1.
    """
    total = xp.sum(mean * count, axis=axis) / count_total
    spread = mean - xp.expand_dims(total, axis=axis)
    return total, xp.sum(m2 + count * spread * spread, axis=axis)


@dataclass(frozen=True, eq=False)
class Moments:
    """Count, mean and M2 of each set.

    Args:
        count: elements in each set; an array that broadcasts to ``mean``, or a number.
        mean: their mean (zero for an uncentred norm and for an empty set).
        m2: sum of squared deviations from it.

    >>> import normkit as nk
    >>> a = nk.Moments.of([1.0, 2.0, 3.0])
    >>> b = nk.Moments.of([7.0])
    >>> both = a.merge(b)
    >>> float(both.count), float(both.mean), float(both.var), float(both.population_var)
    (4.0, 3.25, 5.1875, 6.916666666666667)
    """

    count: Any
    mean: Any
    m2: Any

    @classmethod
    def of(cls, values: Any, axis: int | tuple[int, ...] | None = None) -> Moments:
        """Moments of ``values`` along ``axis`` (all by default), in float64."""
        array = np.asarray(values, dtype=np.float64)
        kept = np.sum(np.ones_like(array), axis=axis)
        safe = np.maximum(kept, 1.0)
        mean = np.sum(array, axis=axis) / safe
        axes = tuple(range(array.ndim)) if axis is None else axis
        deviation = array - np.expand_dims(mean, axes)
        return cls(kept, mean, np.sum(deviation * deviation, axis=axis))

    @property
    def var(self) -> Any:
        """Biased variance, M2 / count; 0 for an empty set."""
        return self.m2 / _at_least_one(self.count)

    @property
    def population_var(self) -> Any:
        """Unbiased estimate of the population's variance, M2 / (count - 1).

        A set of one element says nothing about its population's spread; its estimate is 0.
        """
        return self.m2 / _at_least_one(self.count - 1)

    def to_numpy(self) -> Moments:
        """The same in float64 NumPy arrays."""
        return Moments(*(np.asarray(v, dtype=np.float64) for v in (self.count, self.mean, self.m2)))

    def merge(self, *others: Moments) -> Moments:
        """Moments of the union of disjoint sets.

        Raises:
            DTypeError: something else than Moments.
            ShapeError: the shapes differ.
        """
        merged = self
        for other in others:
            merged = merged._merge_one(other)
        return merged

    def _merge_one(self, other: Moments) -> Moments:
        if not isinstance(other, Moments):
            raise DTypeError(
                "Moments merge with Moments only",
                received=type(other).__name__,
                expected="normkit.Moments",
                remedy="Take them with norm.moments(x) or Moments.of(values).",
            )
        if np.shape(self.mean) != np.shape(other.mean):
            raise ShapeError(
                "Moments of different sets cannot merge",
                received=f"means of shapes {np.shape(self.mean)} and {np.shape(other.mean)}",
                expected="equal shapes",
                remedy="Merge statistics of the same norm over inputs with the same channels.",
            )
        count = self.count + other.count
        weight = other.count / _at_least_one(count)
        delta = other.mean - self.mean
        mean = self.mean + delta * weight
        return Moments(count, mean, self.m2 + other.m2 + delta * delta * self.count * weight)


def _at_least_one(count: Any) -> Any:
    return count + (count < 1) * (1 - count)


# --- running averages ---------------------------------------------------------------------------


def _checked_rate(rate: float, name: str) -> float:
    if not isinstance(rate, (int, float)) or not 0.0 <= rate <= 1.0:  # NaN fails too
        raise OptionError(
            f"{name} cannot weight an average",
            received=repr(rate),
            expected="a number from 0 to 1",
            remedy="PyTorch's usual value is momentum=0.1, the weight of the new batch; "
            "Keras' is 0.99, the weight of the old value.",
        )
    return float(rate)


def _checked_channels(channels: int) -> int:
    if not isinstance(channels, (int, np.integer)) or channels < 1:
        raise OptionError(
            "No average of that many channels",
            received=repr(channels),
            expected="a whole number of at least 1",
            remedy="Pass the size of the channel axis.",
        )
    return int(channels)


@dataclass(frozen=True, eq=False)
class ExponentialAverage:
    """Mean and variance that forget old batches at a constant rate.

    Args:
        mean, var: the averages so far.
        rate: weight of the new batch. ``momentum`` of PyTorch; one minus ``momentum`` of Keras.
        unbiased: average the batches' population variance (PyTorch) or biased variance (Keras).
        steps: batches seen.

    >>> import normkit as nk
    >>> running = nk.ExponentialAverage.torch(1).update(nk.Moments.of([[2.0], [4.0]], axis=0))
    >>> running.mean.round(3), running.var.round(3)
    (array([0.3]), array([1.1]))
    """

    mean: Any
    var: Any
    rate: float
    unbiased: bool = True
    steps: int = 0

    def __post_init__(self) -> None:
        _checked_rate(self.rate, "rate")

    @classmethod
    def torch(cls, channels: int, momentum: float = 0.1) -> ExponentialAverage:
        """PyTorch's convention: momentum weights the new batch, variances are unbiased."""
        return cls(*_start(channels), _checked_rate(momentum, "momentum"), unbiased=True)

    @classmethod
    def keras(cls, channels: int, momentum: float = 0.99) -> ExponentialAverage:
        """Keras' convention: momentum weights the old value, variances are biased."""
        return cls(*_start(channels), 1.0 - _checked_rate(momentum, "momentum"), unbiased=False)

    @classmethod
    def flax(cls, channels: int, momentum: float = 0.99) -> ExponentialAverage:
        """Flax's convention, the same as Keras'."""
        return cls.keras(channels, momentum)

    def update(self, moments: Moments) -> ExponentialAverage:
        """The average after one more batch; an empty batch changes nothing."""
        moments = moments.to_numpy()
        _check_same_sets(np.shape(self.mean), np.shape(moments.mean))
        var = moments.population_var if self.unbiased else moments.var
        seen = np.asarray(moments.count) > 0
        return replace(
            self,
            mean=np.where(seen, self.mean + self.rate * (moments.mean - self.mean), self.mean),
            var=np.where(seen, self.var + self.rate * (var - self.var), self.var),
            steps=self.steps + int(np.any(seen)),
        )


@dataclass(frozen=True, eq=False)
class CumulativeAverage:
    """The plain average of all batches' means and variances, each batch weighing the same.

    Not the variance of all data: what lies between the batches' means is missing from it
    (:class:`PopulationAverage` has it).
    """

    mean: Any
    var: Any
    unbiased: bool = True
    steps: int = 0

    @classmethod
    def start(cls, channels: int, unbiased: bool = True) -> CumulativeAverage:
        """Before the first batch: mean 0, variance 1."""
        return cls(*_start(channels), unbiased)

    def update(self, moments: Moments) -> CumulativeAverage:
        """The average after one more batch; an empty batch changes nothing."""
        average = ExponentialAverage(
            self.mean, self.var, 1.0 / (self.steps + 1), self.unbiased, self.steps
        ).update(moments)
        return replace(self, mean=average.mean, var=average.var, steps=average.steps)


@dataclass(frozen=True, eq=False)
class PopulationAverage:
    """Exact mean and variance of everything seen (Ioffe & Szegedy 2015, Algorithm 2, step 10).

    Batches of any size merge by their moments, so the result does not depend on how the data was
    cut into batches.
    """

    moments: Moments

    @classmethod
    def start(cls, channels: int) -> PopulationAverage:
        """Before the first batch."""
        zeros = np.zeros(_checked_channels(channels))
        return cls(Moments(zeros, zeros, zeros))

    def update(self, moments: Moments) -> PopulationAverage:
        """The statistics with one more batch's elements."""
        return PopulationAverage(self.moments.merge(moments.to_numpy()))

    @property
    def mean(self) -> Any:
        """Mean of all elements."""
        return self.moments.mean

    @property
    def var(self) -> Any:
        """Population variance; 1 as long as nothing was seen."""
        return np.where(np.asarray(self.moments.count) > 0, self.moments.population_var, 1.0)


def _check_same_sets(average: tuple[int, ...], batch: tuple[int, ...]) -> None:
    if average != batch:
        raise ShapeError(
            "The batch's moments do not fit the running average",
            received=f"moments of shape {batch}",
            expected=f"{average}",
            remedy="Start the average with as many channels as the norm's statistics have.",
        )


def _start(channels: int) -> tuple[Any, Any]:
    size = _checked_channels(channels)
    return np.zeros(size), np.ones(size)
