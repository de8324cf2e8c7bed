"""A network's first layer: scales input data by what it has learned of them, and goes with it."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from normkit.errors import DTypeError, ModelError, OptionError, ShapeError
from normkit.scaling.data import inputs
from normkit.scaling.summary import By, Summary

__all__ = ["InputScaling"]

Tensor = torch.Tensor
SIZE = 256  # samples at a time, of a dataset without a loader


class InputScaling(nn.Module):
    """(x − mean) / divisor of each feature, learned from data by ``adapt``, before training.

    By deviation, a feature has mean 0 and variance 1 over the data; by range, its values lie within
    1 of each other. Nothing in it is trained: mean and divisor are buffers, saved and exported with
    the model. They are float64 and stay so under ``half()`` or ``to(dtype)``, so that float32 input
    far from zero keeps its digits. A device that has no float64 cannot hold the layer.

    Args:
        by: what deviations from the mean are divided by: "deviation" or "range".
        axis: whose entries are scaled separately: -1 for columns, 1 for channels of images
            (N, C, H, W); None for one scale in all.
        mean: of each feature, where it is known without data; with ``variance`` or ``divisor``.
        variance: of each feature, for scaling by deviation.
        divisor: the deviation or the range of each feature.
        invert: forward goes back into the data's own units, as behind a network's output.

    Raises:
        OptionError: an option has a value that it cannot have.

    >>> layer = InputScaling(by="range")
    >>> layer.adapt(torch.tensor([[1.0], [2.0], [6.0]]))
    InputScaling(by='range', axis=-1, features=1)
    >>> y = layer(torch.tensor([[1.0], [11.0]]))
    >>> y.ravel(), layer.inverse(y).ravel()
    (tensor([-0.4000,  1.6000]), tensor([ 1., 11.]))
    """

    mean: Tensor
    divisor: Tensor

    def __init__(
        self,
        by: By = "deviation",
        axis: int | None = -1,
        *,
        mean: Any = None,
        variance: Any = None,
        divisor: Any = None,
        invert: bool = False,
    ) -> None:
        super().__init__()
        self.by, self.axis, self.invert = _checked_way(by), _checked_axis(axis), invert
        given = _given(by, axis, mean, variance, divisor)
        unknown = torch.empty(0, dtype=torch.float64)
        for name, values in zip(("mean", "divisor"), given or (unknown, unknown), strict=True):
            self.register_buffer(name, values.clone())

    @property
    def adapted(self) -> bool:
        """Whether mean and divisor are known."""
        return self.mean.numel() > 0

    def adapt(self, data: Any) -> InputScaling:
        """Learn mean and divisor; what was known before is forgotten, unless this fails.

        Args:
            data: a tensor or an array with all samples, also memory-mapped or Dask's; a DataLoader
                or anything else that gives batches, of which only one at a time is held (of a pair
                such as (inputs, labels) the inputs count); or a
                :class:`normkit.scaling.Summary`, as merged from many machines.

        Returns:
            The layer itself.

        Raises:
            DataError: there are no values, some are not finite, or it is not clear which count.
            DTypeError: these are no real numbers.
            ShapeError: the features are not along ``axis``, or not the same in every batch.
        """
        if isinstance(data, Summary):
            summary = data
        else:
            summary = Summary.of_parts(inputs(data, _array, _batches), self.axis)
        if not _alike(self.axis, summary.axis):
            raise ShapeError(
                "The summary is of another layout",
                received=f"one with axis={summary.axis}",
                expected=f"axis={self.axis}, as this layer's",
                remedy="Say the same axis to both; a summary counts it from behind.",
            )
        scale = summary.scale(self.by)
        device = self.mean.device
        for name, values in (("mean", scale.shift), ("divisor", scale.divisor)):
            setattr(self, name, torch.as_tensor(values, dtype=torch.float64, device=device))
        return self

    def forward(self, input: Any) -> Any:
        """The scaled input, or with ``invert`` the input in the data's own units.

        Floats keep their dtype; whole numbers become PyTorch's default dtype.

        Raises:
            ModelError: mean and divisor are not known yet.
            ShapeError: these are other features than those that were learned.
            DTypeError: input is no tensor of real numbers.
        """
        if isinstance(input, torch.fx.Proxy):  # torch.fx looks into no layer of torch.nn's either
            tracer: Any = input.tracer
            return tracer.create_proxy("call_module", tracer.path_of_module(self), (input,), {})
        return self._unscaled(input) if self.invert else self._scaled(input)

    def inverse(self, output: Tensor) -> Tensor:
        """What forward was given, from what it has returned; raises as forward does."""
        return self._scaled(output) if self.invert else self._unscaled(output)

    def extra_repr(self) -> str:
        known = f"features={self.mean.numel()}" if self.adapted else "not adapted"
        return f"by={self.by!r}, axis={self.axis}, {known}" + ", invert=True" * self.invert

    def _scaled(self, x: Tensor) -> Tensor:
        high, low, divisor = self._numbers_for(x)
        y = (x.to(divisor.dtype) - high - low) / divisor
        return y.to(_result_dtype(x))

    def _unscaled(self, y: Tensor) -> Tensor:
        high, low, divisor = self._numbers_for(y)
        x = y.to(divisor.dtype) * divisor + low + high
        return x.to(_result_dtype(y))

    def _numbers_for(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The mean in two parts, and the divisor, to calculate with beside x.

        float32 is enough where the mean has two parts: x − high loses nothing of importance, and
        low brings back what high was rounded by.
        """
        self._check(x)
        exact = x.dtype is torch.float64 or not x.is_floating_point()
        dtype = torch.float64 if exact else torch.float32
        shape = [1] * x.dim()
        if self.axis is not None and self.mean.dim():
            shape[self.axis] = -1
        mean, divisor = self.mean.reshape(shape), self.divisor.reshape(shape)
        high = mean.to(dtype)
        # A divisor that is too small for float32 must not become a division by zero.
        return high, (mean - high).to(dtype), divisor.to(dtype).clamp_min(torch.finfo(dtype).tiny)

    def _check(self, x: Any) -> None:
        if not isinstance(x, Tensor) or x.is_complex():
            raise DTypeError(
                "Scaling is for real numbers",
                received=f"a tensor of {x.dtype}" if isinstance(x, Tensor) else type(x).__name__,
                expected="a tensor of floats or whole numbers",
                remedy="torch.as_tensor(x) makes one; of complex numbers, scale the parts.",
            )
        if not self.adapted:
            raise ModelError(
                "This InputScaling does not know its data",
                received="input before adapt",
                expected="a layer with mean and divisor",
                remedy="Call adapt(data) before training, load a state_dict, or give mean= and "
                "variance=.",
            )
        if self.axis is None:
            return
        _check_has_axis(x.shape, self.axis)
        if self.mean.dim() and x.shape[self.axis] != len(self.mean):
            raise ShapeError(
                "Other features than those that were learned",
                received=f"a tensor of shape {tuple(x.shape)}",
                expected=f"{len(self.mean)} features along axis {self.axis}",
                remedy="Give input that is laid out as the data for adapt were.",
            )

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """Move to a device, but keep float64: float16 holds no mean above 65504."""
        before = dict(self._buffers)
        super()._apply(fn, recurse)
        for name, old in before.items():
            new = self._buffers[name]
            if old is not None and new is not None and new.dtype is not old.dtype:
                self._buffers[name] = old.to(new.device)
        return self

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        """A layer that knows nothing yet takes as many features as come."""
        if not self.adapted:
            for name in ("mean", "divisor"):
                values = state_dict.get(prefix + name)
                if isinstance(values, Tensor):
                    setattr(self, name, getattr(self, name).new_empty(values.shape))
        super()._load_from_state_dict(state_dict, prefix, *args)


def _result_dtype(x: Tensor) -> torch.dtype:
    return x.dtype if x.is_floating_point() else torch.get_default_dtype()


def _array(values: Any) -> Any:
    if not isinstance(values, Tensor):
        return values
    values = values.detach().cpu()
    return (values.float() if values.dtype is torch.bfloat16 else values).numpy()


def _batches(data: Any) -> Any:
    return DataLoader(data, batch_size=SIZE) if isinstance(data, Dataset) else data


def _alike(ours: int | None, behind: int | None) -> bool:
    """Whether a summary's axis, counted from behind, can be the layer's.

    The layer's counted from the front can be any: what it will be given may have any more axes.
    """
    if ours is None or behind is None:
        return ours is behind
    return ours >= 0 or ours == behind


def _checked_way(by: Any) -> By:
    if by not in ("deviation", "range"):
        raise OptionError(
            "No way of scaling",
            received=f"by={by!r}",
            expected="'deviation' or 'range'",
            remedy="By deviation, features have variance 1; by range, values lie within 1 of each "
            "other.",
        )
    return by


def _checked_axis(axis: Any) -> int | None:
    if axis is not None and (not isinstance(axis, int) or isinstance(axis, bool)):
        raise OptionError(
            "No axis of features",
            received=f"axis={axis!r}",
            expected="a whole number or None",
            remedy="-1 is for columns, 1 for the channels of images (N, C, H, W).",
        )
    return axis


def _check_has_axis(shape: Any, axis: int) -> None:
    if not -len(shape) <= axis < len(shape):
        raise ShapeError(
            "No axis of features",
            received=f"shape {tuple(shape)} with axis={axis}",
            expected=f"an axis from {-len(shape)} to {len(shape) - 1}" if len(shape) else "axes",
            remedy="-1 is for columns, 1 for the channels of images (N, C, H, W).",
        )


def _given(
    by: str, axis: int | None, mean: Any, variance: Any, divisor: Any
) -> tuple[Tensor, Tensor] | None:
    """Mean and divisor as the user knows them; None where they are to be learned."""
    if mean is None and variance is None and divisor is None:
        return None
    spreads = [name for name, v in (("variance", variance), ("divisor", divisor)) if v is not None]
    if mean is None or len(spreads) != 1 or (by == "range" and spreads == ["variance"]):
        raise OptionError(
            "What is known of the features does not fit together",
            received=" and ".join(["mean"] * (mean is not None) + spreads) + f" with by={by!r}",
            expected="mean and divisor" + ", or mean and variance" * (by == "deviation"),
            remedy="Give both, or neither and call adapt(data).",
        )
    spread = divisor if variance is None else variance
    values = [torch.as_tensor(value, dtype=torch.float64) for value in (mean, spread)]
    try:
        mean, spread = torch.broadcast_tensors(*values)
    except RuntimeError:
        raise _misfits(axis, *values) from None
    if mean.dim() > (axis is not None) or not mean.numel():
        raise _misfits(axis, *values)
    if not (mean.isfinite().all() and spread.isfinite().all() and (spread >= 0).all()):
        raise OptionError(
            "These are no moments",
            received=f"mean={values[0].tolist()}, {spreads[0]}={values[1].tolist()}",
            expected="finite numbers, and no spread below 0",
            remedy="Check where they come from.",
        )
    spread = spread if variance is None else spread.sqrt()
    return mean, torch.where(spread == 0, 1.0, spread)


def _misfits(axis: int | None, *values: Tensor) -> OptionError:
    return OptionError(
        "Mean and spread do not fit the features",
        received=f"shapes {' and '.join(str(tuple(v.shape)) for v in values)} with axis={axis}",
        expected="one number" if axis is None else "one number, or one a feature",
        remedy="They lie along one axis.",
    )
