"""Input data scaled inside of a model, by statistics of the training data."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Literal

import keras
import numpy as np

from normkit.errors import OptionError, ShapeError
from normkit.keras.settings import PACKAGE, Extended
from normkit.scaling import Summary

__all__ = ["Normalization"]

Tensor = Any


@keras.saving.register_keras_serializable(PACKAGE)
class Normalization(Extended, keras.layers.Normalization):
    """keras.layers.Normalization, also by mean and range.

    Statistics are taken in float64 and merged exactly, also of data far from zero and of batches of
    different lengths. A feature that never changes becomes 0, and is divided by 1.

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
            DataError: there are no data, or none that are numbers.
            ShapeError: they have other features than the layer.
        """
        if self.input_mean is not None:
            raise OptionError(
                "The layer has its statistics already",
                received="adapt() after mean= and variance=",
                expected="one of the two",
                remedy="Make the layer without mean and variance.",
            )
        found = Summary.of_parts(self._rows(part) for part in _parts(data))
        scale = found.scale(self.by)
        shape = self.adapt_mean.shape
        self.adapt_mean.assign(np.reshape(scale.shift, shape))
        self.adapt_variance.assign(np.reshape(scale.divisor, shape) ** 2)
        self.finalize_state()

    def _rows(self, part: Any) -> Any:
        """A part with the features that are kept apart in one last axis."""
        part = _array(part)
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
        rows = np.moveaxis(part, kept, range(part.ndim - len(kept), part.ndim))
        features = int(np.prod([part.shape[a] for a in kept]))
        return rows.reshape(-1, features)

    def get_config(self) -> dict[str, Any]:
        """Keras' options and ours."""
        return {**super().get_config(), "by": self.by}


def _parts(data: Any) -> Iterator[Any]:
    if isinstance(data, np.ndarray) or keras.ops.is_tensor(data):
        yield data
    elif isinstance(data, keras.utils.PyDataset):
        yield from (_first(data[i]) for i in range(len(data)))
    elif isinstance(data, Iterable):
        yield from (_first(batch) for batch in _batched(data))
    else:
        raise OptionError(
            "No data to adapt to",
            received=type(data).__name__,
            expected="an array, a tensor, or batches of them",
            remedy="A list of arrays, a generator and a dataset are batches.",
        )


def _batched(data: Any) -> Any:
    """A ``tf.data.Dataset`` of single rows in batches; anything else as it is."""
    spec = getattr(data, "element_spec", None)
    return data if spec is None or len(_first(spec).shape) > 1 else data.batch(128)


def _first(batch: Any) -> Any:
    return batch[0] if isinstance(batch, (tuple, list)) else batch


def _array(values: Any) -> np.ndarray:
    return keras.ops.convert_to_numpy(values) if keras.ops.is_tensor(values) else np.asarray(values)
