"""What data can be: arrays of many libraries, whole or in batches, as real numbers of NumPy's."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from normkit.errors import DataError, DTypeError, ShapeError

__all__ = [
    "as_float64", "blocks", "check_real", "check_samples", "checked_axis", "inputs", "is_dask",
    "numbers", "refuse_masked", "refuse_rounded",
]  # fmt: skip

Array = np.ndarray[Any, Any]

BLOCK = 1 << 20  # elements that are looked at, or scaled, at a time: float64 copies stay small
EXACT = 1 << 53  # the largest whole number up to which float64 holds all


def inputs(
    data: Any, to_array: Callable[[Any], Any], batches: Callable[[Any], Any]
) -> Iterator[Any]:
    """The inputs in what a user calls data, one array after the other.

    Args:
        data: an array or a tensor; or batches of them, or of tuples and lists that begin with one.
        to_array: makes an array of a framework's tensor, and leaves other arrays as they are.
        batches: makes batches of a framework's dataset, and leaves other data as they are.

    Raises:
        DataError: it is not clear which are the inputs.
    """
    if hasattr(data, "__array__"):  # also a frame, which would be iterated by its columns' names
        yield to_array(_with_axes(data))
        return
    data = batches(data)
    if isinstance(data, tuple | Mapping | str | bytes) or not isinstance(data, Iterable):
        raise DataError(
            "It is not clear what to learn from",
            received=f"a {type(data).__name__}",
            expected="a tensor, an array, or something that gives batches, such as a DataLoader",
            remedy="Of (inputs, labels) pass the inputs alone; two batches go into a list.",
        )
    for batch in data:
        yield to_array(_with_axes(batch[0] if isinstance(batch, tuple | list) and batch else batch))


def _with_axes(values: Any) -> Any:
    if not hasattr(values, "__array__") or not len(getattr(values, "shape", ())):
        raise DataError(
            "A batch holds no inputs",
            received=f"{type(values).__name__}: {values!r:.60}",
            expected="a tensor or an array with axes, or a pair that begins with one",
            remedy="numpy.array makes an array of nested lists; of dictionaries a generator takes "
            "the inputs out: adapt(batch['image'] for batch in loader).",
        )
    return values


def is_dask(x: Any) -> bool:
    """Whether it is a Dask array; without importing Dask."""
    return type(x).__module__.startswith("dask.array")


def numbers(x: Any) -> Array:
    """An array of real numbers, of anything that NumPy makes one of.

    Raises:
        DTypeError: these are no real numbers.
        DataError: some of them are masked.
    """
    refuse_masked(x)
    array = np.asarray(x)
    if array.dtype == object and _has_columns_of_numbers(x):
        array = x.to_numpy(np.float64, na_value=np.nan)
    if array.dtype.name == "bfloat16":  # JAX's, which NumPy does not know for a float
        array = array.astype(np.float32)
    check_real(array.dtype)
    return array


def _has_columns_of_numbers(x: Any) -> bool:
    """Whether it is a frame with columns of different kinds, such as bool beside float."""
    kinds = getattr(x, "dtypes", ())
    columns = list(kinds) if np.iterable(kinds) else []
    return bool(columns) and all(getattr(kind, "kind", "O") in "fiub" for kind in columns)


def refuse_masked(x: Any) -> None:
    """Raise for a masked array that masks something: as an array it would show what is behind.

    Raises:
        DataError: it does.
    """
    if isinstance(x, np.ma.MaskedArray) and np.ma.is_masked(x):
        raise DataError(
            "Some values are masked",
            received=f"a mask over {np.ma.count_masked(x)} of {x.size} values",
            expected="an array that masks nothing",
            remedy="Drop those samples, or fill them in first: x.filled(value).",
        )


def check_real(dtype: Any) -> None:
    """Raise where elements of this dtype are no real numbers.

    Raises:
        DTypeError: so it is.
    """
    if dtype.kind not in "fiub":
        raise DTypeError(
            "Scaling is for real numbers",
            received=f"an array of {dtype}",
            expected="floats or whole numbers",
            remedy="Encode categories first; of complex numbers, scale the parts.",
        )


def as_float64(x: Array) -> Array:
    """The same numbers in float64; without a copy where they are.

    Raises:
        DataError: whole numbers are so large that float64 would round them.
    """
    refuse_rounded(x)
    return x.astype(np.float64, copy=False)


def refuse_rounded(x: Array) -> None:
    """Raise for whole numbers that are so large that float64 would round them.

    Raises:
        DataError: there are some.
    """
    wide = x.dtype.kind in "iu" and x.dtype.itemsize == 8 and x.size
    if wide and (x.max() > EXACT or x.min() < -EXACT):
        raise DataError(
            "Whole numbers are too large to scale",
            received=f"{x.dtype} from {x.min()} to {x.max()}",
            expected=f"at most {EXACT} (2**53) in size, up to which float64 holds all",
            remedy="Subtract a whole number near them first; where the last digits do not matter, "
            "x.astype(float) rounds them.",
        )


def checked_axis(ndim: int, axis: int | None) -> int | None:
    """The features' axis, counted from the front.

    Raises:
        ShapeError: there is no such axis.
    """
    if axis is None:
        return None
    whole = isinstance(axis, int | np.integer) and not isinstance(axis, bool)
    if not whole or not -ndim <= axis < ndim:
        raise ShapeError(
            "No axis of features",
            received=f"axis={axis!r} of an array with {ndim} axes",
            expected=f"a number from {-ndim} to {ndim - 1}, or None" if ndim else "None",
            remedy="-1 is for columns, 1 for the channels of images (N, C, H, W).",
        )
    return int(axis) % ndim


def check_samples(shape: tuple[int, ...], features: int) -> None:
    """Raise where axes of features leave none for samples: no value could be told from its mean.

    Args:
        shape: of the data.
        features: how many of its axes are the features'.

    Raises:
        ShapeError: there is no other axis.
    """
    if len(shape) <= features:
        raise ShapeError(
            "There is no axis of samples beside that of the features",
            received=f"values of shape {tuple(shape)}",
            expected=f"{features + 1} axes or more, or axis=None",
            remedy="axis=None is one scale for all; x.reshape(-1, 1) makes one feature of x.",
        )


def blocks(x: Array, axis: int | None) -> Iterator[Array]:
    """Views of x that are small, along its longest axis of samples."""
    along = [i for i in range(x.ndim) if i != axis]
    if not along or x.size <= BLOCK:
        yield x
        return
    longest = max(along, key=lambda i: x.shape[i])
    step = max(1, BLOCK * x.shape[longest] // x.size)
    for begin in range(0, x.shape[longest], step):
        yield x[(slice(None),) * longest + (slice(begin, begin + step),)]
