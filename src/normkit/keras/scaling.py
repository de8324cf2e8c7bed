"""Input data scaled inside of a model, by statistics of the training data."""

from __future__ import annotations

import math
from typing import Any, Literal

import keras
import ml_dtypes
import numpy as np

from normkit.errors import DataError, OptionError, ShapeError
from normkit.keras.settings import PACKAGE, Extended
from normkit.scaling.data import check_samples, inputs, numbers
from normkit.scaling.summary import Scale, Summary

__all__ = ["Normalization"]

#: How far off the divisor may be, relatively, and a value, as a part of it, in the layer's dtype.
DIVISOR_ERROR, VALUE_ERROR = 0.01, 0.1


@keras.saving.register_keras_serializable(PACKAGE)
class Normalization(Extended, keras.layers.Normalization):
    """keras.layers.Normalization, also by mean and range.

    Statistics are taken in float64 and merged exactly, also of batches of different lengths. They
    are kept and used as Keras does, mean and variance in the layer's dtype, so that weights go to
    and from Keras' own layer; ``adapt`` refuses features that this dtype cannot scale. A feature
    that never changes becomes 0, and is divided by 1.

    Args:
        axis, mean, variance, invert: Keras'.
        by: ``"deviation"``, or ``"range"``: (x − mean) / (max − min).

    Raises:
        OptionError: by is neither, or ``"range"`` with a given variance.

    >>> import numpy as np
    >>> from normkit.keras import Normalization
    >>> layer = Normalization(by="range")
    >>> layer.adapt(np.array([[10.0], [20.0], [60.0]]))
    >>> keras.ops.convert_to_numpy(layer(np.array([[10.0], [110.0]]))).ravel().round(2)
    array([-0.4,  1.6], dtype=float32)
    """

    def __init__(
        self, *args: Any, by: Literal["deviation", "range"] = "deviation", **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        given = self.input_mean is not None
        if by not in ("deviation", "range") or (given and by == "range"):
            raise OptionError(
                "No way of scaling",
                received=f"by={by!r}" + (" with a given mean and variance" if given else ""),
                expected="'deviation'" + ("" if given else " or 'range'"),
                remedy="To scale by a range that is known, give its square as the variance."
                if given else "By range, values lie within 1 of each other.",
            )  # fmt: skip
        self.by: Literal["deviation", "range"] = by

    def adapt(self, data: Any) -> None:
        """Learn mean and divisor of each feature from data.

        Args:
            data: an array or tensor, or batches of them: a list, a generator, a
                ``tf.data.Dataset``, a ``keras.utils.PyDataset``; of batches that are tuples, the
                first entry counts.

        Raises:
            OptionError: mean and variance were given.
            DataError: there are no data, it is not clear which count, or some are not finite or
                masked; or in the layer's dtype a value may be a tenth of the divisor off, or the
                divisor, of which Keras keeps the square, a hundredth of itself.
            DTypeError: these are no real numbers.
            ShapeError: they have other features than the layer, or no axis of samples.
        """
        if self.input_mean is not None:
            raise OptionError(
                "The layer has its statistics already",
                received="adapt() after mean= and variance=",
                expected="one of the two",
                remedy="Make the layer without mean and variance.",
            )
        found = Summary.of_parts(map(self._rows, inputs(data, _array, _batches)))
        scale = found.scale(self.by)
        _check_kept(found, scale, self.compute_dtype)
        shape = self.adapt_mean.shape
        self.adapt_mean.assign(np.reshape(scale.shift, shape))
        self.adapt_variance.assign(np.reshape(scale.divisor, shape) ** 2)
        self.finalize_state()

    def _rows(self, part: Any) -> Any:
        """A part with the features that are kept apart in one last axis."""
        part = numbers(part)
        check_samples(part.shape, len(self.axis))
        if not self.built:
            self.build(part.shape)
        expected = self._build_input_shape
        kept = self._keep_axis
        if part.ndim != len(expected) or any(part.shape[a] != expected[a] for a in kept):
            raise ShapeError(
                "Other features than the layer's",
                received=f"data of shape {part.shape}",
                expected=f"shape {tuple(expected)}, the same along the axes {kept}",
                remedy="Adapt to data that are laid out as the layer's inputs.",
            )
        samples = part.ndim - len(kept)
        rows = np.moveaxis(part, kept, range(samples, part.ndim))
        return rows.reshape(math.prod(rows.shape[:samples]), math.prod(rows.shape[samples:]))

    def get_config(self) -> dict[str, Any]:
        """Keras' options and ours."""
        return {**super().get_config(), "by": self.by}


def _check_kept(found: Summary, scale: Scale, dtype: str) -> None:
    """Raise for features that Keras' formula cannot scale in this dtype.

    Raises:
        DataError: there are some.
    """
    ends = np.stack([found.low, found.high])
    with np.errstate(over="ignore"):
        fits = np.isfinite(_kept(ends, dtype)).all(0)
        divisor = np.maximum(np.sqrt(_kept(scale.divisor**2, dtype)), keras.backend.epsilon())
    rounding = np.abs(ends).max(0) * float(ml_dtypes.finfo(dtype).eps) / 2
    still = found.low == found.high  # its values are rounded as its mean is
    fits &= still | (rounding <= VALUE_ERROR * scale.divisor)
    fits &= np.abs(divisor - scale.divisor) <= DIVISOR_ERROR * scale.divisor
    lost = np.flatnonzero(~fits)
    if len(lost):
        first = lost[0]
        raise DataError(
            f"In {dtype} the layer cannot scale {len(lost)} features",
            received=f"values from {found.low[first]:g} to {found.high[first]:g} with the divisor "
            f"{scale.divisor[first]:g} in feature number {first}",
            expected="values that it tells apart, and a divisor whose square it holds, of at least "
            f"{keras.backend.epsilon():g}",
            remedy="Move the values near zero or change their unit in float64, before the layer: "
            "normkit.scaling does.",
        )


def _kept(values: np.ndarray, dtype: str) -> np.ndarray:
    """What is left of values in another dtype."""
    return values.astype(np.dtype(dtype)).astype(np.float64)


def _array(values: Any) -> Any:
    return keras.ops.convert_to_numpy(values) if keras.ops.is_tensor(values) else values


def _batches(data: Any) -> Any:
    """Of a PyDataset its batches; of a ``tf.data.Dataset`` of single rows some at a time."""
    if isinstance(data, keras.utils.PyDataset):
        return (data[i] for i in range(len(data)))
    spec = getattr(data, "element_spec", None)
    shape = getattr(spec[0] if isinstance(spec, tuple) else spec, "shape", None)
    return data if shape is None or len(shape) > 1 else data.batch(128)
