"""Every norm, one line each: they differ only in the set S whose mean and variance they use.

An input is seen as (samples N, channels C, positions L), and S is a box in that cube. The general
:class:`Norm` takes any box; the functions below name the well-known ones.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any

from normkit import engine
from normkit.errors import NormError
from normkit.layout import ALL, Split

if TYPE_CHECKING:
    from normkit.coefficients import Renorm
    from normkit.engine import Gradients, GradientSums, Saved
    from normkit.moments import Moments
    from normkit.trace import Trace

__all__ = [
    "BatchGroupNorm",
    "BatchNorm",
    "ChannelLayerNorm",
    "GhostBatchNorm",
    "GroupNorm",
    "InstanceNorm",
    "LayerNorm",
    "MeanOnlyBatchNorm",
    "Norm",
    "RMSNorm",
    "TokenLayerNorm",
]


@dataclass(frozen=True)
class Norm:
    """A normalization, described by the box of elements that share a mean and a variance.

    Args:
        samples: samples in the box: ``"all"`` or a number (the last box may have fewer).
        channels: ``"all"``, a number that divides C, or ``Split(parts)``: C in equal parts.
        positions: ``"all"`` or 1.
        center: whether the mean is subtracted; if not, the variance is the mean square.
        scale: whether to divide by the standard deviation.
        eps: added to the variance.

    Raises:
        NormError: a field has a value that it cannot have; the message names it.

    >>> import normkit as nk
    >>> nk.Norm(samples=1, channels=nk.Split(8)) == nk.GroupNorm(8)
    True
    """

    samples: int | str = ALL
    channels: int | str | Split = 1
    positions: int | str = ALL
    center: bool = True
    scale: bool = True
    eps: float = 1e-5

    def __post_init__(self) -> None:
        self._check_size("samples", "a whole number of at least 1 or 'all'", self.samples)
        if not isinstance(self.channels, Split):
            expected = "a whole number of at least 1, 'all' or normkit.Split(parts)"
            self._check_size("channels", expected, self.channels)
        if self.positions not in (1, ALL) or isinstance(self.positions, bool):
            _refuse("positions", self.positions, "1 or 'all'")
        for field in ("center", "scale"):
            if not isinstance(getattr(self, field), bool):
                _refuse(field, getattr(self, field), "True or False")
        number = not isinstance(self.eps, bool) and isinstance(self.eps, Real)
        if not number or not 0 <= self.eps < math.inf:
            _refuse("eps", self.eps, "a finite number of at least 0")
        if not self.center and not self.scale:
            _refuse("center and scale", "False for both", "at least one True")

    @staticmethod
    def _check_size(field: str, expected: str, value: object) -> None:
        if value == ALL:
            return
        if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
            _refuse(field, value, expected)

    # --- whole passes ---------------------------------------------------------------------------

    def forward(
        self,
        x: Any,
        gamma: Any = None,
        beta: Any = None,
        axis: int = 1,
        mask: Any = None,
        lengths: Any = None,
        residual: Any = None,
        activation: str | None = None,
        statistics: Moments | tuple[Any, Any] | None = None,
        renorm: Renorm | None = None,
        out: Any = None,
        *,
        input_activation: str | None = None,
    ) -> tuple[Any, Saved]:
        """y = activation(gamma * (x - mean) / sqrt(var + eps) + beta + residual).

        Args:
            x: float16, bfloat16, float32 or float64 array of 2 to 5 dimensions.
            gamma, beta: None, (C,), (N, C), or element-wise: x's shape without the samples axis.
            axis: the channel axis. Samples lie along the first of the others.
            mask: bool, x's shape without the channel axis, or x's number of dimensions and
                broadcastable to it. Only True elements count in the statistics; y and dx are
                computed at the others too.
            lengths: (N,) whole numbers: valid positions along the first position axis.
            residual: array like x, added in front of the activation.
            activation: a name that ``normkit.activation_names()`` lists.
            statistics: Moments, or (mean, var), to use in place of the batch's; constants in
                backward.
            renorm: reference statistics and limits of batch renormalization.
            out: array like x for y; may be x itself, after which backward is refused.
            input_activation: a name; x goes through it first, so that the norm comes behind the
                activation instead of in front of it.

        Returns:
            y, of x's shape, dtype and memory order, and what backward needs: no copy of x but a
            reference to it, so x must not change in between.

        Raises:
            ShapeError, DTypeError, OptionError: before anything is written.
        """
        return engine.forward(
            self, x, gamma, beta, axis, mask, lengths, residual, activation, statistics, renorm,
            out, input_activation,
        )  # fmt: skip

    def backward(self, dy: Any, saved: Saved) -> Gradients:
        """Gradients of a loss from ``dy``, its gradient by y.

        Returns:
            ``.x``, ``.gamma``, ``.beta``, ``.residual``; None for what forward was not given.

        Raises:
            ShapeError, DTypeError: dy is not like y.
            SavedError: ``saved`` belongs to another norm, or x was overwritten.
        """
        return engine.backward(self, dy, saved)

    # --- the halves, between which a collective fits ---------------------------------------------

    def moments(
        self,
        x: Any,
        axis: int = 1,
        mask: Any = None,
        lengths: Any = None,
        *,
        input_activation: str | None = None,
    ) -> Moments:
        """Count, mean and M2 of every set: the first half of forward."""
        return engine.moments(self, x, axis, mask, lengths, input_activation)

    def apply(
        self,
        x: Any,
        moments: Moments,
        gamma: Any = None,
        beta: Any = None,
        axis: int = 1,
        mask: Any = None,
        lengths: Any = None,
        residual: Any = None,
        activation: str | None = None,
        renorm: Renorm | None = None,
        out: Any = None,
        *,
        input_activation: str | None = None,
    ) -> tuple[Any, Saved]:
        """The second half of forward; the moments count as taken from x, and its like elsewhere."""
        return engine.apply(
            self, x, moments, gamma, beta, axis, mask, lengths, residual, activation, renorm, out,
            input_activation,
        )  # fmt: skip

    def gradient_sums(self, dy: Any, saved: Saved) -> GradientSums:
        """The first half of backward: gradients of gamma and beta, and two sums over each set."""
        return engine.gradient_sums(self, dy, saved)

    def gradient_apply(self, dy: Any, saved: Saved, sums: GradientSums) -> Gradients:
        """The second half of backward."""
        return engine.gradient_apply(self, dy, saved, sums)

    def trace(self, x: Any, gamma: Any, beta: Any, dy: Any, axis: int = 1) -> Trace:
        """The computational graph in nine steps, forward and backward, in float64."""
        return engine.trace(self, x, gamma, beta, dy, axis)


def _refuse(field: str, value: object, expected: str) -> None:
    raise NormError(
        f"Norm cannot have this {field}",
        received=repr(value),
        expected=expected,
        remedy="See normkit.Norm for what each field means.",
    )


def BatchNorm(*, eps: float = 1e-5) -> Norm:
    """Batch norm (Ioffe & Szegedy 2015): one channel of all samples, at all positions."""
    return Norm(eps=eps)


def GhostBatchNorm(size: int, *, eps: float = 1e-5) -> Norm:
    """Batch norm over ``size`` samples at a time (Hoffer et al. 2017)."""
    return Norm(samples=size, eps=eps)


def LayerNorm(*, eps: float = 1e-5) -> Norm:
    """Layer norm of a feature map (Ba et al. 2016): everything in one sample.

    For a transformer's tokens, each by itself, see :func:`TokenLayerNorm`.
    """
    return Norm(samples=1, channels=ALL, eps=eps)


def TokenLayerNorm(*, eps: float = 1e-5) -> Norm:
    """Layer norm of tokens, usually with ``axis=-1``: the channels at one position."""
    return Norm(samples=1, channels=ALL, positions=1, eps=eps)


def ChannelLayerNorm(*, eps: float = 1e-5) -> Norm:
    """Layer norm over the channels only of a feature map: the same set as a token's."""
    return TokenLayerNorm(eps=eps)


def RMSNorm(*, eps: float = 1e-6) -> Norm:
    """RMS norm (Zhang & Sennrich 2019): the channels at one position, not centred."""
    return Norm(samples=1, channels=ALL, positions=1, center=False, eps=eps)


def InstanceNorm(*, eps: float = 1e-5) -> Norm:
    """Instance norm (Ulyanov et al. 2016): one channel of one sample."""
    return Norm(samples=1, eps=eps)


def GroupNorm(groups: int, *, eps: float = 1e-5) -> Norm:
    """Group norm (Wu & He 2018): a group of channels of one sample."""
    return Norm(samples=1, channels=Split(groups), eps=eps)


def BatchGroupNorm(size: int, groups: int, *, eps: float = 1e-5) -> Norm:
    """A group of channels of ``size`` samples (Summers & Dinneen 2020; Zhou et al. 2020)."""
    return Norm(samples=size, channels=Split(groups), eps=eps)


def MeanOnlyBatchNorm() -> Norm:
    """Subtracts the batch's mean, divides by nothing (Salimans & Kingma 2016, section 4)."""
    return Norm(scale=False)
