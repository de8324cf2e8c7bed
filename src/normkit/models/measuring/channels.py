"""Statistics by channel of what goes into a norm, in memory that does not grow with the data."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from normkit.models.measuring.spread import Spread
from normkit.models.sites import NormSite
from normkit.moments import Moments

__all__ = ["Gauge", "Histogram", "by_channel", "channel_axis", "sample_moments"]

Tensor = torch.Tensor
_CHUNK = 1 << 18  # elements in float64 that stay in cache


def by_channel(x: Any, site: NormSite) -> Tensor | None:
    """A norm's input or output as (samples, channels, positions); None where that is not clear.

    >>> from torch import nn
    >>> from normkit.models.sites import site_of
    >>> tokens = site_of("norm", nn.LayerNorm(8))
    >>> tuple(by_channel(torch.zeros(2, 5, 8), tokens).shape)
    (2, 8, 5)
    """
    if not isinstance(x, Tensor) or not x.is_floating_point() or site.channels is None:
        return None
    channels = site.channels
    if not x.numel():
        return x.new_zeros(0, channels, 1)
    if site.kind in ("layer", "rms") and not site.dims:
        shape = getattr(site.module, "normalized_shape", (channels,))
        rank = len(shape) if isinstance(shape, (tuple, list)) else 1
        if x.shape[-rank:].numel() == channels and x.dim() >= rank:
            lead = x.shape[0] if x.dim() > rank else 1
            return x.reshape(lead, -1, channels).transpose(1, 2)
    if site.kind == "instance" and site.dims and x.dim() == site.dims + 1:
        x = x.unsqueeze(0)
    axis = channel_axis(site, x)
    if axis is None:
        return None
    return x.movedim(axis, 1).reshape(x.shape[0], channels, -1)


def channel_axis(site: NormSite, x: Tensor) -> int | None:
    """Which axis of a batch holds a norm's channels; None where that is not clear.

    Layers of torch.nn's families, and those that say their dimensions, have them on axis 1. A
    user's own may have them last; where axis 1 is as long, nothing tells the two apart.
    """
    fitting = [axis for axis in (1, x.dim() - 1) if x.dim() > 1 and x.shape[axis] == site.channels]
    known = site.module is None or isinstance(site.module, nn.modules.batchnorm._NormBase)
    if known or site.dims or site.kind == "group":
        return 1 if 1 in fitting else None
    return fitting[0] if len(set(fitting)) == 1 else None


class Gauge:
    """Takes samples' moments batch by batch; gives the :class:`Spread` of all values."""

    def __init__(self) -> None:
        self.elements: Moments | None = None
        self.pilot: Tensor | None = None
        self.means: Moments | None = None  # of the samples' means
        self.squares: Moments | None = None  # of their mean squared distances from the pilot

    def add(self, mean: Tensor, var: Tensor, positions: int) -> None:
        """More samples, as :func:`sample_moments` gives them."""
        if not len(mean):
            return
        if self.pilot is None:
            self.pilot = mean.mean(0)
        means = _over_samples(mean)
        m2 = positions * (means.m2 + var.sum(0))
        squares = _over_samples(var + (mean - self.pilot).square())
        self.elements = _merged(self.elements, Moments(means.count * positions, means.mean, m2))
        self.means = _merged(self.means, means)
        self.squares = _merged(self.squares, squares)

    def spread(self) -> Spread | None:
        """Of all values so far; None where there were none."""
        if self.elements is None or self.means is None or self.squares is None:
            return None
        return Spread(
            elements=Moments(self.elements.count, self.elements.mean.cpu(), self.elements.m2.cpu()),
            samples=int(self.means.count),
            mean_scatter=self.means.population_var.cpu(),
            var_scatter=self.squares.population_var.cpu(),
        )


def sample_moments(values: Tensor) -> tuple[Tensor, Tensor, int]:
    """Mean and variance of each sample and channel, (N, C) in float64, and their positions."""
    wide = torch.float32 if values.device.type == "mps" else torch.float64
    samples, channels, positions = values.shape
    mean = torch.empty(samples, channels, dtype=wide, device=values.device)
    var = torch.zeros_like(mean)
    if positions == 1:
        return mean.copy_(values.detach()[..., 0]), var, 1
    rows = max(_CHUNK // max(channels * positions, 1), 1)
    for i in range(0, samples, rows):
        part = values.detach()[i : i + rows].to(
            wide, copy=True
        )  # in place: var_mean takes 10 times
        mean[i : i + rows] = part.mean(2)
        part -= mean[i : i + rows, :, None]
        var[i : i + rows] = part.square_().mean(2)
    return mean, var, positions


def _over_samples(values: Tensor) -> Moments:
    mean = values.mean(0)
    return Moments(float(len(values)), mean, (values - mean).square().sum(0))


def _merged(before: Moments | None, new: Moments) -> Moments:
    return new if before is None else before.merge(new)


class Histogram:
    """Counts in equal bins around zero, twice as wide whenever a value falls outside.

    >>> histogram = Histogram(bins=4)
    >>> histogram.add(torch.tensor([-0.9, 0.1, 0.2]))
    >>> histogram.add(torch.tensor([3.0]))
    >>> histogram.edges, histogram.counts
    ([-4.0, -2.0, 0.0, 2.0, 4.0], [0, 1, 2, 1])
    """

    def __init__(self, bins: int = 128) -> None:
        assert bins % 4 == 0
        self.bins = bins
        self.reach: float | None = None
        self._counts = torch.zeros(bins, dtype=torch.int64)

    def add(self, values: Tensor, most: int = 1 << 20) -> None:
        """Count values; of very many, evenly spread ones. NaN and infinity are left out."""
        values = values.detach().flatten()
        values = values[:: -(-values.numel() // most) | 1] if values.numel() > most else values
        values = values.to(torch.float32)
        values = values[values.isfinite()]
        if not values.numel():
            return
        self._reach_to(float(values.abs().max()))
        assert self.reach is not None
        counts = torch.histc(values, self.bins, -self.reach, self.reach)
        self._counts += counts.to(device="cpu", dtype=torch.int64)

    def _reach_to(self, largest: float) -> None:
        if self.reach is None:
            self.reach = 2.0 ** math.ceil(math.log2(max(largest, 2.0**-20)))
        while self.reach < largest:
            quarter = self.bins // 4
            merged = self._counts.reshape(-1, 2).sum(1)
            self._counts = torch.zeros_like(self._counts)
            self._counts[quarter : quarter + self.bins // 2] = merged
            self.reach *= 2

    @property
    def edges(self) -> list[float]:
        """One more than there are counts; none before the first value."""
        if self.reach is None:
            return []
        width = 2 * self.reach / self.bins
        return [-self.reach + i * width for i in range(self.bins + 1)]

    @property
    def counts(self) -> list[int]:
        """By bin."""
        return [] if self.reach is None else self._counts.tolist()
