"""The formula of every norm in Keras' own operations, which all backends trace and differentiate.

For TensorFlow, whose batches may have no size yet while they are traced, and on every backend for
samples that have weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from keras import ops

from normkit.layout import ALL, Split
from normkit.moments import Moments
from normkit.norms import Norm

__all__ = ["normalize", "placed", "standardize", "wide", "wide_dtype"]

Tensor = Any
#: Makes of one replica's numbers the sum over all replicas.
Total = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class _Boxes:
    """x as (sets of samples, samples of one, positions, sets of channels, channels of one, more).

    Positions are those in front of the channels, more are those behind them. Sizes are numbers, or
    tensors where a tracer does not know them.
    """

    samples: Any
    together: bool  # all samples are of one set
    sizes: tuple[Any, ...]
    reduced: tuple[int, ...]  # axes that a set spans

    @classmethod
    def of(cls, norm: Norm, shape: tuple[Any, ...], axis: int) -> _Boxes:
        samples, channels = shape[0], shape[axis]
        before, behind = math.prod(shape[1:axis]), math.prod(shape[axis + 1 :])
        whole = norm.samples == ALL
        together = samples if whole else norm.samples
        sets = 1 if whole else -(-samples // together)
        if isinstance(norm.channels, Split):
            width = channels // norm.channels.parts
        else:
            width = channels if norm.channels == ALL else norm.channels
        sizes = (sets, together, before, channels // width, width, behind)
        return cls(samples, whole, sizes, (1, 2, 4, 5) if norm.positions == ALL else (1, 4))

    def view(self, values: Tensor, *, channels: bool = True, positions: bool = True) -> Tensor:
        """Values of samples, with or without channels and positions, as the boxes; zero-padded."""
        sets, together, before, groups, width, behind = self.sizes
        if isinstance(together, int) and together > 1:  # the last ghost batch may have fewer
            missing = sets * together - self.samples
            rest = [[0, 0]] * (len(values.shape) - 1)
            values = ops.pad(values, [[0, missing], *rest])
        before, behind = (before, behind) if positions else (1, 1)
        groups, width = (groups, width) if channels else (1, 1)
        return ops.reshape(values, (sets, together, before, groups, width, behind))

    def affine(self, values: Tensor) -> Tensor:
        """gamma or beta: a value for each channel, also for each sample's."""
        if len(values.shape) == 2:
            return self.view(values, positions=False)
        return ops.reshape(values, (1, 1, 1, *self.sizes[3:5], 1))

    def back(self, view: Tensor, shape: tuple[Any, ...]) -> Tensor:
        sets, together = self.sizes[:2]
        rows = ops.reshape(view, (sets * together, *shape[1:]))
        return rows[: self.samples]

    def statistics(self, values: Tensor) -> Tensor:
        """One value for each set: in rows of channels, or, for all samples alike, one row."""
        sets, groups = self.sizes[0], self.sizes[3]
        return ops.reshape(values, (groups,) if self.together else (sets, groups))


def normalize(
    norm: Norm,
    x: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    *,
    axis: int,
    weights: Tensor | None = None,
    total: Total | None = None,
) -> tuple[Tensor, Moments]:
    """Normalize by statistics of x, and say them.

    Args:
        axis: of channels, counted from the front.
        weights: x's shape without the channel axis: how much each position counts.
        total: adds up over replicas.

    Returns:
        y, and the moments of each set without gradients: of shape (channels,), or with sets of
        samples in front; not for use where sets are single positions.
    """
    if axis == 0:  # samples lie along the first of the other axes
        y, moments = normalize(
            norm, ops.moveaxis(x, 0, 1), gamma, beta, axis=1, weights=weights, total=total
        )
        return ops.moveaxis(y, 1, 0), moments
    shape = tuple(ops.shape(x))
    boxes = _Boxes.of(norm, shape, axis)
    cube = boxes.view(wide(x))
    if weights is None and _is_padded(norm):
        weights = ops.ones((*shape[:axis], *shape[axis + 1 :]), cube.dtype)
    if weights is not None:
        weights = boxes.view(ops.cast(weights, cube.dtype), channels=False)
    found = _moments(norm, cube, boxes.reduced, weights, total)
    slope = _slope(norm, found)
    gamma, beta = (
        None if p is None else boxes.affine(ops.cast(p, cube.dtype)) for p in (gamma, beta)
    )
    if gamma is not None and norm.positions == ALL:  # a small product, once for all positions
        slope, gamma = slope * gamma, None
    y = (cube - found.mean) * slope
    y = y if gamma is None else y * gamma
    y = y if beta is None else y + beta
    y = ops.cast(boxes.back(y, shape), x.dtype)
    count, mean = (ops.broadcast_to(v, ops.shape(found.m2)) for v in (found.count, found.mean))
    kept = [ops.stop_gradient(values) for values in (count, mean, found.m2)]
    if norm.positions == ALL:
        kept = [boxes.statistics(values) for values in kept]
    return y, Moments(*kept)


def standardize(
    x: Tensor,
    mean: Tensor,
    var: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    *,
    axis: int,
    eps: float,
) -> Tensor:
    """(x − mean) / sqrt(var + eps) · gamma + beta with one given value for each channel.

    The mean is subtracted first: folded into beta it would cancel the digits of data far from zero.
    """
    values = wide(x)
    mean, var, gamma, beta = (
        None if p is None else placed(ops.cast(p, values.dtype), x, axis)
        for p in (mean, var, gamma, beta)
    )
    slope = ops.rsqrt(var + eps)
    y = (values - mean) * (slope if gamma is None else slope * gamma)
    y = y if beta is None else y + beta
    return ops.cast(y, x.dtype)


def placed(values: Tensor, x: Tensor, axis: int) -> Tensor:
    """Values of channels, or in rows of each sample's, as they broadcast to x."""
    along: list[Any] = [1] * len(x.shape)
    along[axis] = x.shape[axis]
    if len(values.shape) == 2:
        samples = 1 if axis == 0 else 0  # which lie along the first of the other axes
        along[samples] = ops.shape(x)[samples]
        values = ops.transpose(values) if axis == 0 else values
    return ops.reshape(values, along)


def wide(x: Tensor) -> Tensor:
    """In a dtype that sums can be trusted to."""
    return ops.cast(x, wide_dtype(x))


def wide_dtype(x: Tensor) -> str:
    """float64 for float64, else float32."""
    return "float64" if "float64" in str(x.dtype) else "float32"


def _is_padded(norm: Norm) -> bool:
    return isinstance(norm.samples, int) and norm.samples > 1


class _Found(NamedTuple):
    """Statistics of each box: what its elements weigh, how many these are, mean and M2."""

    count: Tensor
    elements: Tensor
    mean: Tensor
    m2: Tensor


def _moments(
    norm: Norm, cube: Tensor, axes: tuple[int, ...], weights: Tensor | None, total: Total | None
) -> _Found:
    """Statistics in two passes, the second of which mends what the first rounded."""

    def add_up(values: Tensor) -> Tensor:
        if weights is not None:
            values = ops.where(weights > 0, values * weights, ops.zeros_like(values))
        return ops.sum(values, axes, keepdims=True)

    center = norm.center
    first = add_up(cube if center else ops.square(cube))
    count, elements, first = _totals(total, *_counts(cube, axes, weights), first)
    if not center:
        return _Found(count, elements, 0.0, first)
    safe = ops.where(count > 0, count, ops.ones_like(count))
    mean = first / safe
    # Deviations add up to nothing, so that gradients through the mean need not pass here.
    apart = cube - ops.stop_gradient(mean)
    rest, m2 = _totals(total, add_up(apart), add_up(ops.square(apart)))
    rest = ops.stop_gradient(rest / safe)  # what rounding left in the mean
    m2 = ops.maximum(m2 - count * ops.square(rest), 0.0)
    rest = ops.where(ops.isfinite(rest), rest, ops.zeros_like(rest))  # an infinite mean stays
    return _Found(count, elements, mean + rest, m2)


def _counts(cube: Tensor, axes: tuple[int, ...], weights: Tensor | None) -> tuple[Tensor, Tensor]:
    """What the elements of a box weigh, and how many these are."""
    sizes = ops.shape(cube)
    if weights is None:
        count = ops.cast(math.prod(tuple(sizes[a] for a in axes)), cube.dtype)
        count = ops.reshape(count, (1,) * len(sizes))
        return count, count
    width = ops.cast(sizes[4] if 4 in axes else 1, cube.dtype)  # it counts for each channel
    positive = ops.cast(weights > 0, cube.dtype)
    count, elements = (ops.sum(values, axes, keepdims=True) for values in (weights, positive))
    return count * width, elements * width


def _totals(total: Total | None, *values: Tensor) -> list[Tensor]:
    """Sums over replicas, which travel together."""
    if total is None:
        return list(values)
    shapes = [ops.shape(one) for one in values]
    ends = np.cumsum([math.prod(shape) for shape in shapes])[:-1].tolist()
    packed = total(ops.concatenate([ops.reshape(one, (-1,)) for one in values]))
    parts = ops.split(packed, ends)
    return [ops.reshape(part, shape) for part, shape in zip(parts, shapes, strict=True)]


def _slope(norm: Norm, found: _Found) -> Tensor:
    """1 / sqrt(var + eps); 0 for a set without spread, also where eps is 0."""
    if not norm.scale:
        return ops.ones_like(found.m2)
    shape = ops.shape(found.m2)
    enough = ops.broadcast_to(found.elements > (1.0 if norm.center else 0.0), shape)
    count = ops.where(found.count > 0, found.count, ops.ones_like(found.count))
    var = ops.where(enough, found.m2 / count, ops.ones_like(found.m2))
    return ops.where(enough, ops.rsqrt(var + norm.eps), ops.zeros_like(found.m2))
