"""What scaling needs to know of data, in one pass and in parts; and the scaling itself."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from normkit.errors import DataError, DTypeError, OptionError, ShapeError
from normkit.extras import needed
from normkit.moments import Moments

__all__ = ["By", "Scale", "Summary", "is_dask", "scale_by_deviation", "scale_by_range"]

#: What the deviations from the mean are divided by.
By = Literal["range", "deviation"]

BLOCK = 1 << 20  # elements that are looked at, or scaled, at a time: float64 copies stay small


@dataclass(frozen=True, eq=False)
class Summary:
    """Count, mean, spread, and the ends of each feature; of parts, the summary of all.

    Args:
        moments: of each feature, in float64.
        low, high: its smallest and its largest value.
        axis: the features' axis; None where all values share one scale.

    >>> summary = Summary.of([[1.0, 5.0], [3.0, 5.0]])
    >>> summary.moments.mean, summary.high - summary.low
    (array([2., 5.]), array([2., 0.]))
    """

    moments: Moments
    low: Any
    high: Any
    axis: int | None = -1

    @classmethod
    def of(cls, x: Any, axis: int | None = -1) -> Summary:
        """One pass over an array: NumPy's, also memory-mapped, or Dask's, in its blocks.

        Args:
            x: numbers of any shape; samples may lie along any number of axes.
            axis: whose entries are scaled separately: -1 for columns, 1 for channels of images
                (N, C, H, W); None for one scale in all.

        Raises:
            ShapeError: no such axis.
            DTypeError: no real numbers.
            DataError: there are no values, or some are not finite.
        """
        if is_dask(x):
            return _of_dask(x, axis)
        x = _numbers(x)
        axis = _checked_axis(x.ndim, axis)
        if x.size == 0:
            raise _nothing(f"an array of shape {x.shape}")
        parts = [cls._of_block(block, axis) for block in _blocks(x, axis)]
        return parts[0].merge(*parts[1:])

    @classmethod
    def of_parts(cls, parts: Iterable[Any], axis: int | None = -1) -> Summary:
        """Of arrays that come one after the other, such as files that do not fit memory together.

        Raises:
            DataError: there are none; and what :meth:`of` raises.
        """
        found: Summary | None = None
        for part in parts:
            one = cls.of(part, axis)
            found = one if found is None else found.merge(one)
        if found is None:
            raise _nothing("no parts")
        return found

    @classmethod
    def _of_block(cls, block: np.ndarray[Any, Any], axis: int | None) -> Summary:
        others = tuple(i for i in range(block.ndim) if i != axis)
        low, high = (np.asarray(f(block, others), np.float64) for f in (np.min, np.max))
        spoilt = np.flatnonzero(~(np.isfinite(low) & np.isfinite(high)))
        if len(spoilt):
            raise DataError(
                "Some values are not finite",
                received=f"NaN or infinity in {len(spoilt)} features, the first is number "
                f"{spoilt[0]}",
                expected="finite numbers",
                remedy="Drop those samples or fill them in first.",
            )
        return cls(
            Moments.of(block, others), low, high, axis if axis is None else axis - block.ndim
        )

    def merge(self, *others: Summary) -> Summary:
        """The summary of all parts together: exact, and in any order.

        Raises:
            ShapeError: they have different features, or along another axis.
        """
        axes = {one.axis for one in (self, *others)}
        if len(axes) > 1:
            raise ShapeError(
                "Summaries of other layouts cannot merge",
                received=f"features along the axes {sorted(axes, key=str)}",
                expected="one axis, counted from behind",
                remedy="Summarize parts that are laid out alike.",
            )
        moments = self.moments.merge(*(other.moments for other in others))
        both = (self, *others)
        low = np.minimum.reduce([one.low for one in both])
        high = np.maximum.reduce([one.high for one in both])
        return Summary(moments, low, high, self.axis)

    def scale(self, by: By = "deviation") -> Scale:
        """How to scale: by mean and range, or by mean and (biased) deviation.

        A feature that never changes is divided by 1, and so becomes 0.

        Raises:
            OptionError: neither.
        """
        if by == "range":
            divisor = self.high - self.low
        elif by == "deviation":
            divisor = np.sqrt(self.moments.var)
        else:
            raise OptionError(
                "No way of scaling",
                received=repr(by),
                expected="'range' or 'deviation'",
                remedy="By range, values lie within 1 of each other; by deviation, their "
                "variance is 1.",
            )
        still = self.high == self.low
        shift = np.where(still, self.low, self.moments.mean)  # whose last digit may be rounded
        return Scale(shift, np.where(still | (divisor == 0), 1.0, divisor), self.axis)


@dataclass(frozen=True, eq=False)
class Scale:
    """x ↦ (x − shift) / divisor for each feature, and back.

    Args:
        shift, divisor: one number a feature, float64.
        axis: the features' axis, from behind; None for one scale in all.
    """

    shift: Any
    divisor: Any
    axis: int | None = -1

    def __call__(self, x: Any) -> Any:
        """The scaled values: a new array; of whole numbers float64, else of x's dtype.

        Differences from the mean are taken in float64, so that float32 data far from zero keep
        their digits. Dask arrays stay lazy.

        Raises:
            ShapeError: x has other features than the data that the scale was made from.
        """
        return self._mapped(x, lambda values, shift, divisor: (values - shift) / divisor)

    def inverse(self, y: Any) -> Any:
        """The values that were scaled to these."""
        return self._mapped(y, lambda values, shift, divisor: values * divisor + shift)

    def _mapped(self, x: Any, formula: Any) -> Any:
        if is_dask(x):
            return self._mapped_dask(x, formula)
        x = _numbers(x)
        axis = _checked_axis(x.ndim, self.axis)
        self._check_features(x.shape)
        shift, divisor = self._along(x.ndim)
        out = np.empty(x.shape, x.dtype if x.dtype.kind == "f" else np.float64)
        for block, place in zip(_blocks(x, axis), _blocks(out, axis), strict=True):
            place[...] = formula(block.astype(np.float64, copy=False), shift, divisor)
        return out

    def _mapped_dask(self, x: Any, formula: Any) -> Any:
        _checked_axis(x.ndim, self.axis)
        self._check_features(x.shape)
        dtype = x.dtype if x.dtype.kind == "f" else np.dtype(np.float64)
        values = formula(x.astype(np.float64), *self._along(x.ndim))
        return values.astype(dtype)

    def _along(self, ndim: int) -> tuple[Any, Any]:
        if self.axis is None:
            return self.shift, self.divisor
        shape = [1] * ndim
        shape[self.axis] = -1
        return self.shift.reshape(shape), self.divisor.reshape(shape)

    def _check_features(self, shape: tuple[int, ...]) -> None:
        if self.axis is not None and shape[self.axis] != len(self.shift):
            raise ShapeError(
                "Other features than those that were learned",
                received=f"an array of shape {shape}",
                expected=f"{len(self.shift)} features along axis {self.axis}",
                remedy="Scale arrays that are laid out as the data that the scale was made from.",
            )


def scale_by_range(x: Any, axis: int | None = -1) -> Any:
    """(x − mean) / (max − min) of each feature.

    Args:
        x, axis: see :meth:`Summary.of`.

    >>> scale_by_range([[0.0], [1.0], [2.0]]).ravel()
    array([-0.5,  0. ,  0.5])
    """
    return Summary.of(x, axis).scale("range")(x)


def scale_by_deviation(x: Any, axis: int | None = -1) -> Any:
    """(x − mean) / deviation of each feature, with the biased deviation, as scikit-learn's.

    Args:
        x, axis: see :meth:`Summary.of`.

    >>> scale_by_deviation([[0.0], [1.0], [2.0]]).ravel().round(4)
    array([-1.2247,  0.    ,  1.2247])
    """
    return Summary.of(x, axis).scale("deviation")(x)


def is_dask(x: Any) -> bool:
    """Whether it is a Dask array; without importing Dask."""
    return type(x).__module__.startswith("dask.array")


def _of_dask(x: Any, axis: int | None) -> Summary:
    """A summary a block, wherever it is computed; only they travel."""
    delayed, compute = needed("dask").delayed, needed("dask").compute
    axis = _checked_axis(x.ndim, axis)
    whole = x if axis is None else x.rechunk({axis: -1})
    blocks = list(whole.to_delayed().ravel())
    behind = None if axis is None else axis - x.ndim
    parts = compute(*(delayed(_of_part)(block, behind) for block in blocks))
    known = [part for part in parts if part is not None]
    if not known:
        raise _nothing(f"a Dask array of shape {x.shape}")
    return known[0].merge(*known[1:])


def _nothing(received: str) -> DataError:
    return DataError(
        "There is nothing to scale by",
        received=received,
        expected="at least one value of each feature",
        remedy="Leave empty parts out; an iterator serves once.",
    )


def _of_part(block: Any, axis: int | None) -> Summary | None:
    return Summary.of(block, axis) if block.size else None


def _numbers(x: Any) -> np.ndarray[Any, Any]:
    array = np.asarray(x)
    if array.dtype.kind not in "fiub":
        raise DTypeError(
            "Scaling is for real numbers",
            received=f"an array of {array.dtype}",
            expected="floats or whole numbers",
            remedy="Encode categories first; of complex numbers, scale the parts.",
        )
    return array


def _checked_axis(ndim: int, axis: int | None) -> int | None:
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


def _blocks(x: np.ndarray[Any, Any], axis: int | None) -> Iterator[np.ndarray[Any, Any]]:
    """Views of x that are small, along its longest axis of samples."""
    along = [i for i in range(x.ndim) if i != axis]
    if not along or x.size <= BLOCK:
        yield x
        return
    longest = max(along, key=lambda i: x.shape[i])
    step = max(1, BLOCK * x.shape[longest] // x.size)
    for begin in range(0, x.shape[longest], step):
        yield x[(slice(None),) * longest + (slice(begin, begin + step),)]
