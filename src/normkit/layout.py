"""An array and a norm, seen as (samples N, channels C, positions L) with boxes in that cube.

:class:`Layout` is the logical view: which axis is what, how many sets there are, and the two moves
between elements and sets, both written as reshapes: :meth:`Layout.gather` sums over each set,
:meth:`Layout.spread` hands each set's number back to its elements.

How the elements lie in memory decides which compiled kernel reads them fastest. Sets lie in one of
three ways (:mod:`normkit.kernels.cpu.access` tells them apart):

1. *rows*: a set is a union of contiguous rows, gamma constant on each: batch, group, instance norm
   and layer norm of feature maps, channels first;
2. *tokens*: a set is one contiguous row and gamma varies inside it: layer norm, RMS norm of tokens;
3. *columns*: a set cuts across rows: channels-last batch, group, instance norm; layer norm over
   channels only, channels first.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

from normkit.errors import NormError, OptionError, ShapeError

__all__ = ["ALL", "Layout", "Split", "layout_of", "make_layout"]

ALL = "all"


@dataclass(frozen=True)
class Split:
    """An axis cut into ``parts`` equal pieces."""

    parts: int

    def __post_init__(self) -> None:
        if not isinstance(self.parts, int) or isinstance(self.parts, bool) or self.parts < 1:
            raise NormError(
                "Split cannot cut into this many parts",
                received=repr(self.parts),
                expected="a whole number of at least 1",
                remedy="Group norm's usual number is 32.",
            )


class _Box(Protocol):
    """What a layout needs to know of a norm."""

    @property
    def samples(self) -> int | str: ...
    @property
    def channels(self) -> int | str | Split: ...
    @property
    def positions(self) -> int | str: ...


@dataclass(frozen=True, eq=False)  # layout_of() makes each one once; identity is equality
class Layout:
    """The cube of one input shape and the sets of one norm in it."""

    shape: tuple[int, ...]
    axis: int
    all_samples: bool
    set_samples: int  # samples in a set; the last set may have fewer
    set_channels: int
    whole_positions: bool
    statistics_shape: tuple[int, ...]

    # --- which axis is what ---------------------------------------------------------------------

    @property
    def samples_axis(self) -> int:
        return 1 if self.axis == 0 else 0

    @property
    def position_axes(self) -> tuple[int, ...]:
        rest = range(len(self.shape))
        return tuple(a for a in rest if a not in (self.axis, self.samples_axis))

    @property
    def channels_last(self) -> bool:
        """Whether channels lie behind the positions, if there are any."""
        return 0 < self.axis == len(self.shape) - 1

    @property
    def n(self) -> int:
        return self.shape[self.samples_axis]

    @property
    def c(self) -> int:
        return self.shape[self.axis]

    @property
    def positions(self) -> tuple[int, ...]:
        return tuple(self.shape[a] for a in self.position_axes)

    @property
    def l(self) -> int:  # noqa: E743 - the design's letter
        return math.prod(self.positions)

    @property
    def cube_axes(self) -> tuple[int, ...]:
        """Axes in the cube's order."""
        return (self.samples_axis, self.axis, *self.position_axes)

    @property
    def element_shape(self) -> tuple[int, ...]:
        """Shape of an element-wise gamma: the input's without the samples axis."""
        return tuple(s for a, s in enumerate(self.shape) if a != self.samples_axis)

    @property
    def element_axis(self) -> int:
        """The channel axis of an element-wise gamma."""
        return self.axis - 1 if self.axis > self.samples_axis else self.axis

    def affine_shape(self, kind: str) -> tuple[int, ...]:
        """Shape of gamma and beta of a kind."""
        return {
            "channel": (self.c,), "sample": (self.n, self.c), "element": self.element_shape
        }[kind]  # fmt: skip

    def widen_affine(self, xp: Any, values: Any, kind: str) -> Any:
        """gamma or beta as one of ``kind``: a value a channel may stand for several."""
        shape = self.affine_shape(kind)
        if tuple(values.shape) == shape:
            return values
        if kind == "element":
            rest = len(shape) - 1 - self.element_axis
            values = xp.reshape(values, (self.c,) + (1,) * rest)
        return xp.broadcast_to(values, shape)

    def narrow_affine(self, xp: Any, gradient: Any, shape: tuple[int, ...]) -> Any:
        """The transpose of :meth:`widen_affine`: a gradient summed into ``shape``."""
        if tuple(gradient.shape) == shape:
            return gradient
        channel = self.element_axis if tuple(gradient.shape) == self.element_shape else 1
        channel = 1 if len(self.shape) == 2 else channel
        axes = tuple(a for a in range(gradient.ndim) if a != channel)
        return xp.sum(gradient, axis=axes)

    # --- sets -----------------------------------------------------------------------------------

    @property
    def sample_sets(self) -> int:
        return 1 if self.all_samples else -(-self.n // self.set_samples)

    @property
    def channel_sets(self) -> int:
        return self.c // self.set_channels

    @property
    def grid(self) -> tuple[int, int, int]:
        """Sets along samples, channels, positions."""
        return (self.sample_sets, self.channel_sets, 1 if self.whole_positions else self.l)

    @property
    def set_size(self) -> int:
        """Elements in a full set."""
        return self.set_samples * self.set_channels * (self.l if self.whole_positions else 1)

    @property
    def even(self) -> bool:
        """Whether all sets have the same size."""
        return self.all_samples or self.n % self.set_samples == 0

    def gather(self, xp: Any, values: Any) -> Any:
        """Sum cube-shaped values (or ones that broadcast along positions) over each set."""
        n, _, positions = values.shape
        if self.whole_positions and positions != 1:
            values = xp.sum(values, axis=2, keepdims=True)
            positions = 1
        if self.set_channels != 1:
            values = xp.reshape(values, (n, self.channel_sets, self.set_channels, positions))
            values = xp.sum(values, axis=2)
        if self.all_samples or (self.sample_sets == 1 and n):
            return xp.sum(values, axis=0, keepdims=True)
        if self.set_samples == 1:
            return values
        full = n // self.set_samples
        shape = (full, self.set_samples, *values.shape[1:])
        head = xp.sum(xp.reshape(values[: full * self.set_samples, ...], shape), axis=1)
        if self.even:
            return head
        tail = xp.sum(values[full * self.set_samples :, ...], axis=0, keepdims=True)
        return xp.concat([head, tail], axis=0)

    def spread(self, xp: Any, values: Any) -> Any:
        """Give each set's number to its elements: grid-shaped to broadcastable with the cube."""
        k, g, p = values.shape
        if g > 1 and self.set_channels > 1:
            shape = (k, g, self.set_channels, p)
            spread = _broadcast(xp, values[:, :, None, :], shape)
            values = xp.reshape(spread, (k, g * self.set_channels, p))
        if k > 1 and self.set_samples > 1:
            shape = (k, self.set_samples, *values.shape[1:])
            spread = _broadcast(xp, values[:, None, ...], shape)
            spread = xp.reshape(spread, (k * self.set_samples, *values.shape[1:]))
            values = spread[: self.n, ...]
        return values

    def set_counts(self) -> list[int]:
        """Elements in the sets along samples, first to last."""
        counts = [self.set_size] * self.sample_sets
        if not self.even:
            counts[-1] = self.set_size // self.set_samples * (self.n % self.set_samples)
        return counts

    # --- arrays ---------------------------------------------------------------------------------

    def to_cube(self, xp: Any, x: Any) -> Any:
        """x as (N, C, L)."""
        return xp.reshape(xp.permute_dims(x, self.cube_axes), (self.n, self.c, self.l))

    def from_cube(self, xp: Any, cube: Any) -> Any:
        """Inverse of :meth:`to_cube`."""
        axes = self.cube_axes
        inverse = tuple(axes.index(a) for a in range(len(axes)))
        return xp.permute_dims(xp.reshape(cube, tuple(self.shape[a] for a in axes)), inverse)

    def affine_kind(self, shape: tuple[int, ...], name: str) -> str:
        """``"channel"``, ``"sample"`` or ``"element"``, by the shape of gamma or beta.

        Raises:
            ShapeError: it is none of them.
        """
        if shape == (self.c,):
            return "channel"
        if shape == self.element_shape == (self.n, self.c) and len(self.shape) > 2:
            raise ShapeError(
                f"{name} may mean two things",
                received=f"shape {shape} with x of shape {self.shape}, axis={self.axis}, which is "
                "both one value a sample and channel, and one for each element of a sample",
                expected="a shape that is only one of them",
                remedy="Give x one more position axis of length 1, and an element-wise "
                f"{name} the same.",
            )
        if shape == self.element_shape and len(self.shape) > 2:
            return "element"
        if shape == (self.n, self.c):
            return "sample"
        raise ShapeError(
            f"{name} does not fit x",
            received=f"{name} of shape {shape} with x of shape {self.shape} and axis={self.axis}",
            expected=f"({self.c},) for a value a channel, ({self.n}, {self.c}) for one a sample "
            f"and channel, or {self.element_shape} element-wise",
            remedy="Check axis=, the channel axis, first.",
        )

    def affine_to_cube(self, xp: Any, values: Any, kind: str) -> Any:
        """gamma or beta, broadcastable with the cube."""
        if kind == "channel":
            return values[None, :, None]
        if kind == "sample":
            return values[:, :, None]
        channel = self.element_axis
        rest = tuple(a for a in range(len(self.element_shape)) if a != channel)
        return xp.reshape(xp.permute_dims(values, (channel, *rest)), (1, self.c, self.l))

    def affine_from_cube(self, xp: Any, values: Any, kind: str) -> Any:
        """Sum a cube-shaped gradient into gamma's or beta's shape."""
        if kind == "channel":
            return xp.sum(values, axis=(0, 2))
        if kind == "sample":
            return xp.sum(values, axis=2)
        channel = self.element_axis
        shape = (self.c, *self.positions)
        order = list(range(1, len(shape)))
        order.insert(channel, 0)
        return xp.permute_dims(xp.reshape(xp.sum(values, axis=0), shape), tuple(order))


def _broadcast(xp: Any, values: Any, shape: tuple[int, ...]) -> Any:
    """broadcast_to; in PyTorch by the name that all its transforms know."""
    return (
        values.expand(shape) if hasattr(type(values), "expand") else xp.broadcast_to(values, shape)
    )


def make_layout(norm: _Box, shape: tuple[int, ...], axis: int) -> Layout:
    """The layout of inputs of this shape, whose sizes may be a tracer's symbols.

    Raises:
        ShapeError: not 2 to 5 dimensions, or channels that the norm cannot divide.
        OptionError: no such axis.
    """
    rank = len(shape)
    if not 2 <= rank <= 5:
        raise ShapeError(
            "x cannot be normalized",
            received=f"{rank} dimension{'' if rank == 1 else 's'}, shape {shape}",
            expected="2 to 5 dimensions: samples, channels and up to three of positions",
            remedy="Reshape x, for instance x[None] for a single sample.",
        )
    if not -rank <= axis < rank:
        raise OptionError(
            "x has no such axis",
            received=f"axis={axis} with x of shape {shape}",
            expected=f"-{rank} to {rank - 1}",
            remedy="Pass the channel axis: 1 for channels first, -1 for channels last.",
        )
    axis %= rank
    samples_axis = 1 if axis == 0 else 0
    n, c = shape[samples_axis], shape[axis]
    positions = tuple(s for a, s in enumerate(shape) if a not in (axis, samples_axis))
    every = norm.samples == ALL
    set_samples = n if every else min(int(norm.samples), max(n, 1))
    set_channels = _set_channels(norm.channels, c)
    whole = norm.positions == ALL
    kept: list[int] = []
    if norm.samples != ALL:
        kept.append(-(-n // set_samples))
    if norm.channels != ALL:
        kept.append(c // set_channels)
    if not whole:
        kept.extend(positions)
    return Layout(shape, axis, every, set_samples, set_channels, whole, tuple(kept))


#: The same, each made once.
layout_of = lru_cache(maxsize=1024)(make_layout)


def _set_channels(channels: int | str | Split, c: int) -> int:
    if c < 1:
        raise ShapeError(
            "x has no channels",
            received=f"a channel axis of length {c}",
            expected="at least 1",
            remedy="Check axis=, the channel axis.",
        )
    if channels == ALL:
        return c
    pieces = channels.parts if isinstance(channels, Split) else int(channels)
    if c % pieces:
        what = "groups" if isinstance(channels, Split) else "channels a set"
        fitting = [d for d in range(1, c + 1) if c % d == 0]
        raise ShapeError(
            f"The channels do not divide into these {what}",
            received=f"{pieces} {what} with {c} channels",
            expected=f"a divisor of {c}: {', '.join(map(str, fitting))}",
            remedy="Choose another number, or check axis=, the channel axis.",
        )
    return c // pieces if isinstance(channels, Split) else pieces
