"""What all layers check, and say, in the same way."""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from numbers import Real
from typing import Any

import keras
from keras import ops

from normkit.errors import OptionError, ShapeError

__all__ = [
    "PACKAGE", "Extended", "NormLayer", "check_axes", "check_number", "floating", "from_front",
    "of_channels", "of_positions",
]  # fmt: skip

Tensor = Any
#: Under which Keras finds the layers again in a file.
PACKAGE = "normkit"


class Extended:
    """In front of one of Keras' layers in the bases: takes what this takes, and options of ours.

    These are what a subclass's ``__init__`` names behind ``*args``.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if issubclass(cls, keras.layers.Layer):
            cls.__signature__ = _signature(cls)  # type: ignore[attr-defined]

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Any:
        """The layer that a configuration describes.

        Raises:
            OptionError: it has options that this version does not know.
        """
        try:
            return super().from_config(config)  # type: ignore[misc]
        except (TypeError, ValueError) as error:
            if "keyword argument" not in str(error):
                raise
            raise OptionError(
                f"A {cls.__name__} of a newer version",
                received=str(error).rsplit("encountered: ")[-1],
                expected=f"options among {', '.join(inspect.signature(cls).parameters)}",
                remedy="Load it with the Keras and normkit that saved it, or newer ones.",
            ) from error


class NormLayer(Extended):
    """What all norms check."""

    axis: Any
    epsilon: float

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        check_number(type(self).__name__, "epsilon", self.epsilon)
        axes = self.axis if isinstance(self.axis, (list, tuple)) else [self.axis]
        if not all(type(axis) is int for axis in axes):
            raise OptionError(
                f"{type(self).__name__} cannot have this axis",
                received=repr(self.axis),
                expected="a whole number",
                remedy="axis=-1 is for channels that come last, axis=1 for channels first.",
            )

    def _affine(self, inputs: Tensor, axis: int, gamma: Any, beta: Any) -> list[Tensor | None]:
        """gamma and beta: a call's, or the layer's own."""
        found: list[Tensor | None] = []
        for name, given in (("gamma", gamma), ("beta", beta)):
            own = getattr(self, name)
            if given is not None:
                found.append(of_channels(name, given, inputs, axis))
            else:
                found.append(None if own is None else ops.convert_to_tensor(own))
        return found

    def build(self, input_shape: Any) -> None:
        """Make the weights for inputs of this shape.

        Raises:
            ShapeError: it has no such axis, or the axis has no known length.
        """
        check_axes(type(self).__name__, self.axis, input_shape)
        super().build(input_shape)  # type: ignore[misc]

    def compute_output_shape(self, input_shape: Any) -> Any:
        """The input's."""
        check_axes(type(self).__name__, self.axis, input_shape)
        return input_shape


def _signature(cls: type) -> inspect.Signature:
    """Keras' arguments, and then the class's own, by keyword."""
    own = dict(inspect.signature(cls.__init__).parameters)  # type: ignore[misc]
    theirs = next(base for base in cls.__mro__ if base.__module__.startswith("keras."))
    if any(one.kind is one.VAR_POSITIONAL for one in own.values()):
        parameters = inspect.signature(theirs.__init__).parameters  # type: ignore[misc]
        own = {**parameters, **{n: p for n, p in own.items() if p.kind is p.KEYWORD_ONLY}}
    return inspect.Signature(sorted(list(own.values())[1:], key=lambda one: one.kind))


# --- arguments ------------------------------------------------------------------------------------


def check_number(owner: str, name: str, value: Any, most: float = math.inf) -> None:
    """A finite number of at least 0.

    Raises:
        OptionError: it is none.
    """
    number = isinstance(value, Real) and not isinstance(value, bool)
    if not number or not 0 <= value <= most or not math.isfinite(value):
        raise OptionError(
            f"{owner} cannot have this {name}",
            received=repr(value),
            expected="a finite number of at least 0" + (f", at most {most:g}" if most < 2 else ""),
            remedy="Leave it away for Keras' default.",
        )


def check_axes(owner: str, axes: int | Sequence[int], shape: Any) -> None:
    """All axes exist in the shape, and their lengths are known.

    Raises:
        ShapeError: one does not, or is unknown.
    """
    axes = (axes,) if isinstance(axes, int) else axes
    for axis in axes:
        if not -len(shape) <= axis < len(shape):
            raise ShapeError(
                f"{owner} is to normalize along an axis that the input does not have",
                received=f"axis={axis} for inputs of shape {tuple(shape)}",
                expected=f"{-len(shape)} to {len(shape) - 1}",
                remedy="axis=-1 is for channels that come last, axis=1 for channels first.",
            )
        if shape[axis] is None:
            raise ShapeError(
                f"{owner} has to know how many channels there are",
                received=f"inputs of shape {tuple(shape)}, axis={axis}",
                expected="a number along that axis",
                remedy="Give it in keras.Input(shape=...), or choose the axis of the channels.",
            )
    if len({axis % len(shape) for axis in axes}) < len(axes):
        raise ShapeError(
            f"{owner} is to normalize along an axis twice",
            received=f"axis={list(axes)} for inputs of shape {tuple(shape)}",
            expected="each axis once",
            remedy="-1 is the last axis by another name.",
        )


def floating(inputs: Tensor) -> Tensor:
    """Whole numbers and truth values as float32."""
    inputs = ops.convert_to_tensor(inputs)  # a call without Keras' __call__ may bring an array
    kind = keras.backend.standardize_dtype(inputs.dtype)
    return inputs if "float" in kind else ops.cast(inputs, "float32")


def from_front(axis: int, inputs: Tensor) -> int:
    """An axis counted from the front."""
    return axis % len(inputs.shape)


def of_positions(name: str, values: Tensor, inputs: Tensor, axis: int) -> Tensor:
    """A mask or weights as one value for each position, from one for each sample, step, ...

    Args:
        values: x's shape without the channel axis, or the first few axes of that.
        axis: of channels, counted from the front.

    Raises:
        ShapeError: they do not fit.
    """
    values = ops.convert_to_tensor(values)
    sizes = [size for a, size in enumerate(inputs.shape) if a != axis]
    given = tuple(values.shape)
    fits = 0 < len(given) <= len(sizes) and all(
        None in pair or pair[0] == pair[1] for pair in zip(given, sizes, strict=False)
    )
    if not fits:
        raise ShapeError(
            f"{name}= does not fit the inputs",
            received=f"shape {given} with inputs of shape {tuple(inputs.shape)}, axis={axis}",
            expected=f"{tuple(sizes)}, the inputs' without the channels, or the first axes of it",
            remedy="Every position of a sample has one value, whichever the channel.",
        )
    dynamic = [size for a, size in enumerate(ops.shape(inputs)) if a != axis]
    values = ops.reshape(values, [*dynamic[: len(given)], *[1] * (len(sizes) - len(given))])
    return ops.broadcast_to(values, dynamic)


def of_channels(name: str, values: Tensor, inputs: Tensor, axis: int) -> Tensor:
    """gamma or beta of a call: (channels,), or (samples, channels).

    Raises:
        ShapeError: they do not fit.
    """
    values = ops.convert_to_tensor(values)
    channels, samples = inputs.shape[axis], inputs.shape[1 if axis == 0 else 0]
    given = tuple(values.shape)
    if given == (1, channels):
        return ops.reshape(values, (channels,))
    rows = len(given) == 2 and given[1] == channels
    if given != (channels,) and not (rows and (samples is None or given[0] in (samples, None))):
        raise ShapeError(
            f"{name}= does not fit the inputs",
            received=f"shape {given} with inputs of shape {tuple(inputs.shape)}, axis={axis}",
            expected=f"({channels},), or ({samples}, {channels}): one row for each sample",
            remedy="A Dense layer with as many units as there are channels makes such rows.",
        )
    return values
