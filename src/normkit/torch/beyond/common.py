"""What the layers share: checks of options and inputs, statistics, running averages."""

from __future__ import annotations

import math
from functools import partial
from numbers import Integral, Real
from typing import Any, ClassVar

import torch
from torch import nn

from normkit.errors import DTypeError, OptionError, ShapeError
from normkit.torch.statistics import Tracker
from normkit.torch.transforms import is_recomputation

__all__ = [
    "ChannelLayer",
    "TrackingLayer",
    "check_count",
    "check_number",
    "is_whole",
    "merge",
    "moments",
    "positions",
    "widened",
]

# --- options ------------------------------------------------------------------------------------


def is_whole(value: Any) -> bool:
    return not isinstance(value, bool) and isinstance(value, Integral)


def _is_real(value: Any) -> bool:
    return not isinstance(value, bool) and isinstance(value, Real)


def check_count(name: str, value: Any) -> int:
    """A whole number of at least 1, or an error that names the option."""
    if not is_whole(value) or value < 1:
        raise OptionError(
            f"A layer cannot have this {name}",
            received=repr(value),
            expected="a whole number of at least 1",
            remedy=f"Pass {name} as the size of an axis or a part of it.",
        )
    return int(value)


def check_number(name: str, value: Any, usual: float, *, positive: bool = False) -> float:
    """A finite number, at least 0 (or above it), or an error that names the option."""
    fits = _is_real(value) and math.isfinite(value)
    if not fits or value < 0 or (positive and value == 0):
        raise OptionError(
            f"A layer cannot have this {name}",
            received=repr(value),
            expected="a finite number " + ("above 0" if positive else "of at least 0"),
            remedy=f"The usual value is {usual:g}.",
        )
    return float(value)


def _check_momentum(value: Any) -> float | None:
    if value is not None and not (_is_real(value) and 0 <= value <= 1):  # NaN fails too
        raise OptionError(
            "A layer cannot have this momentum",
            received=repr(value),
            expected="a number from 0 to 1, the weight of the new batch, or None",
            remedy="The usual value is 0.1; None weighs all batches the same.",
        )
    return None if value is None else float(value)


# --- arithmetic ---------------------------------------------------------------------------------


def widened(x: torch.Tensor) -> torch.Tensor:
    """x itself, or in float32 where its dtype is narrower: sums of squares overflow float16."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def positions(x: torch.Tensor, axis: int) -> tuple[int, ...]:
    """Every axis but that of the samples, 0, and that of the channels."""
    return tuple(d for d in range(1, x.dim()) if d != axis)


def moments(x: torch.Tensor, dims: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and biased variance along ``dims``, which are kept with size 1.

    Not ``torch.var_mean``: it warns about empty sets, and takes no dims for all of them.
    """
    if not dims:
        return x, torch.zeros_like(x)
    mean = x.mean(dims, keepdim=True)
    return mean, (x - mean).square().mean(dims, keepdim=True)


def merge(mean: torch.Tensor, var: torch.Tensor, dim: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Moments of the unions of equally large sets that lie along ``dim``.

    The mean variance and the variance of the means; E[x²] − E[x]² would cancel digits.
    """
    total, spread = moments(mean, (dim,))
    return total, var.mean(dim, keepdim=True) + spread


# --- layers -------------------------------------------------------------------------------------


class ChannelLayer(nn.Module):
    """A layer with parameters of shape (C,) that lie along one axis of its input.

    Args:
        num_features: C.
        axis: the channel axis, from the front or (negative) from the back.
        device, dtype: of the parameters.
    """

    #: The parameters of shape (C,) and the value that each starts from.
    starts: ClassVar[dict[str, float]] = {"weight": 1.0, "bias": 0.0}
    #: Whether axis 0 is that of the samples; elementwise layers do not care.
    has_samples: ClassVar[bool] = True

    weight: nn.Parameter
    bias: nn.Parameter

    def __init__(
        self, num_features: int, axis: int = 1, *, device: Any = None, dtype: Any = None
    ) -> None:
        super().__init__()
        self.num_features = check_count("num_features", num_features)
        if not is_whole(axis) or (self.has_samples and axis == 0):
            raise OptionError(
                f"{type(self).__name__} cannot have this channel axis",
                received=repr(axis),
                expected="a whole number" + (" but 0, the samples" if self.has_samples else ""),
                remedy="Channels-first inputs have axis=1, channels-last ones axis=-1.",
            )
        self.axis = int(axis)
        for name in self.starts:
            empty = torch.empty(self.num_features, device=device, dtype=dtype)
            self.register_parameter(name, nn.Parameter(empty))

    def reset_parameters(self) -> None:
        """Every parameter as it was when the layer was made."""
        with torch.no_grad():
            for name, value in self.starts.items():
                getattr(self, name).fill_(value)

    def extra_repr(self) -> str:
        return f"{self.num_features}, axis={self.axis}"

    def channel_axis(self, x: torch.Tensor) -> int:
        """The channel axis, counted from the front, of an input that fits.

        Raises:
            DTypeError: x is no tensor of real floating point numbers.
            ShapeError: it has too few axes, or another number of channels.
        """
        kind = type(self).__name__
        if not isinstance(x, torch.Tensor) or not x.is_floating_point():
            raise DTypeError(
                f"{kind} cannot normalize this",
                received=x.dtype if isinstance(x, torch.Tensor) else type(x).__name__,
                expected="a torch.Tensor of floating point numbers",
                remedy="Convert first, for instance with torch.as_tensor(x).float().",
            )
        axis = self.axis + (x.dim() if self.axis < 0 else 0)
        first = 1 if self.has_samples else 0
        if not first <= axis < x.dim():
            samples = "(N, C, ...)" if axis == 1 else "samples first"
            raise ShapeError(
                f"{kind} with axis={self.axis} finds no channels",
                received=f"shape {tuple(x.shape)}",
                expected=f"at least {max(first + 1, axis + 1)} dimensions"
                + (f", {samples}" if self.has_samples else ""),
                remedy="Add the missing axis, for instance x.unsqueeze(0), or change axis=.",
            )
        if x.shape[axis] != self.num_features:
            raise ShapeError(
                f"{kind} was made for another number of channels",
                received=f"{x.shape[axis]} at axis {self.axis} of shape {tuple(x.shape)}",
                expected=f"{self.num_features}, its num_features",
                remedy="Check which axis holds the channels, and num_features.",
            )
        return axis

    @staticmethod
    def along(parameter: torch.Tensor, x: torch.Tensor, axis: int) -> torch.Tensor:
        """A (C,) tensor in x's dtype and in a shape that broadcasts against x."""
        shape = [1] * x.dim()
        shape[axis] = -1
        return parameter.to(x.dtype).view(shape)

    def affine(self, y: torch.Tensor, axis: int) -> torch.Tensor:
        """weight · y + bias."""
        return y * self.along(self.weight, y, axis) + self.along(self.bias, y, axis)


class TrackingLayer(ChannelLayer):
    """A channels-first layer that may keep averages of batch statistics, as torch.nn's do.

    Args:
        momentum: weight of the new batch; None weighs all batches the same.
        tracked: names of the running buffers, or none to keep no averages.
    """

    #: What running buffers start from.
    running_starts: ClassVar[dict[str, float]] = {"running_mean": 0.0, "running_var": 1.0}

    running_mean: torch.Tensor | None
    running_var: torch.Tensor | None
    num_batches_tracked: torch.Tensor | None

    def __init__(
        self, num_features: int, momentum: float | None, tracked: tuple[str, ...],
        *, device: Any = None, dtype: Any = None,
    ) -> None:  # fmt: skip
        super().__init__(num_features, 1, device=device, dtype=dtype)
        self.momentum = _check_momentum(momentum)
        self.tracker = Tracker()
        for name in tracked:
            buffer = torch.full((num_features,), self.running_starts[name], device=device)
            self.register_buffer(name, buffer.to(dtype))
        batches = torch.zeros((), dtype=torch.long, device=device) if tracked else None
        self.register_buffer("num_batches_tracked", batches)

    def reset_running_stats(self) -> None:
        """Forget all batches."""
        for name, value in self.running_starts.items():
            if getattr(self, name, None) is not None:
                getattr(self, name).fill_(value)
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.zero_()

    def reset_parameters(self) -> None:
        """Every parameter and buffer as it was when the layer was made."""
        super().reset_parameters()
        self.reset_running_stats()

    def track(self, count: int, **batch: torch.Tensor) -> None:
        """Let a batch's statistics, by the names of their buffers, into the averages.

        Variances come biased and are averaged unbiased, as in torch.nn. One element says nothing
        about its population's spread: its estimate is 0. An empty batch changes nothing, nor does
        any where no averages are kept.
        """
        if self.num_batches_tracked is None or count == 0 or is_recomputation():
            return
        if not self.tracker.holding:
            self._move(count, batch)
            return
        # Held batches count as one, each by its elements; between means lies no spread here.
        pending = self.tracker.pending
        for name, values in batch.items():
            seen, average = pending.get(name, (0, torch.zeros_like(values)))
            share = count / (seen + count)
            pending[name] = (seen + count, torch.lerp(average, values.detach(), share))

    def pending_steps(self) -> list[Any]:
        """What a commit of :func:`normkit.torch.hold_statistics` has to do."""
        pending = dict(self.tracker.pending)
        if not pending:
            return []
        count = next(iter(pending.values()))[0]
        return [partial(self._move, count, {name: values for name, (_, values) in pending.items()})]

    def _move(self, count: int, batch: dict[str, torch.Tensor]) -> None:
        assert self.num_batches_tracked is not None
        with torch.no_grad():
            self.num_batches_tracked.add_(1)
            for name, values in batch.items():
                buffer = getattr(self, name)
                if name == "running_var":
                    values = values * (count / max(count - 1, 1))
                weight: Any = self.momentum
                if weight is None:
                    weight = 1.0 / self.num_batches_tracked.to(buffer.dtype)
                buffer.lerp_(values.flatten().to(buffer.dtype), weight)
