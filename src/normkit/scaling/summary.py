"""What scaling needs to know of data, in one pass and in parts; and the scaling itself."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce
from typing import Any, Literal

import numpy as np

from normkit.errors import DataError, OptionError, ShapeError
from normkit.extras import needed
from normkit.moments import Moments
from normkit.scaling.data import (
    as_float64,
    blocks,
    check_real,
    check_samples,
    checked_axis,
    is_dask,
    numbers,
)

__all__ = ["By", "Scale", "Summary", "scale_by_deviation", "scale_by_range"]

#: What the deviations from the mean are divided by.
By = Literal["range", "deviation"]

FAN = 16  # summaries that merge at a time, of a Dask array's blocks

#: What overflows is not warned of on the way: scale() raises.
_silent = np.errstate(over="ignore", invalid="ignore")


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
            ShapeError: no such axis, or none beside it.
            DTypeError: no real numbers.
            DataError: there are no values; or some are not finite, are masked, or are whole
                numbers that float64 does not hold.
        """
        if is_dask(x):
            return _of_dask(x, axis)
        x = numbers(x)
        axis = checked_axis(x.ndim, axis)
        if x.size == 0:
            raise _nothing(f"an array of shape {x.shape}")
        check_samples(x.shape, axis is not None)
        # One by one: of wide data, each block's summary is as large as the block.
        return reduce(cls.merge, (cls._of_block(block, axis) for block in blocks(x, axis)))

    @classmethod
    def of_parts(cls, parts: Iterable[Any], axis: int | None = -1) -> Summary:
        """Of arrays that come one after the other, such as files that do not fit memory together.

        Raises:
            DataError: there are none; and what :meth:`of` raises.
        """
        summaries = (cls.of(part, axis) for part in parts)
        first = next(summaries, None)
        if first is None:
            raise _nothing("no parts")
        return reduce(cls.merge, summaries, first)

    @classmethod
    @_silent
    def _of_block(cls, block: np.ndarray[Any, Any], axis: int | None) -> Summary:
        block = as_float64(block)
        others = tuple(i for i in range(block.ndim) if i != axis)
        low, high = np.min(block, others), np.max(block, others)
        spoilt = np.flatnonzero(~(np.isfinite(low) & np.isfinite(high)))
        if len(spoilt):
            raise DataError(
                "Some values are not finite",
                received=f"NaN or infinity in {_features(spoilt)}",
                expected="finite numbers",
                remedy="Drop those samples or fill them in first.",
            )
        return cls(
            Moments.of(block, others), low, high, axis if axis is None else axis - block.ndim
        )

    @_silent
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

    @_silent
    def scale(self, by: By = "deviation") -> Scale:
        """How to scale: by mean and range, or by mean and (biased) deviation.

        A feature that never changes is divided by 1, and so becomes 0.

        Raises:
            OptionError: neither.
            DataError: values are so large that float64 does not hold their mean or spread.
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
        too_large = np.flatnonzero(~(np.isfinite(shift) & np.isfinite(divisor)))
        if len(too_large):
            raise DataError(
                "Some values are too large to scale",
                received=f"a mean or {by} that is not finite in {_features(too_large)}",
                expected="mean and spread within float64's range, by deviation its square too",
                remedy="Divide these features by a large number first.",
            )
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
            DTypeError: no real numbers.
            DataError: some are masked, or are whole numbers that float64 does not hold.
        """
        return self._mapped(x, lambda values, shift, divisor: (values - shift) / divisor)

    def inverse(self, y: Any) -> Any:
        """The values that were scaled to these."""
        return self._mapped(y, lambda values, shift, divisor: values * divisor + shift)

    def _mapped(self, x: Any, formula: Any) -> Any:
        lazy = is_dask(x)
        if not lazy:
            x = numbers(x)
        check_real(x.dtype)
        axis = checked_axis(x.ndim, self.axis)
        self._check_features(x.shape)
        shift, divisor = self._along(x.ndim)
        dtype = x.dtype if x.dtype.kind == "f" else np.dtype(np.float64)
        if lazy:
            meta = np.empty((0,) * x.ndim)
            return formula(x.map_blocks(_block, meta=meta), shift, divisor).astype(dtype)
        out = np.empty(x.shape, dtype)
        for block, place in zip(blocks(x, axis), blocks(out, axis), strict=True):
            place[...] = formula(as_float64(block), shift, divisor)
        return out

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


def _of_dask(x: Any, axis: int | None) -> Summary:
    """A summary a block, wherever it is computed; only they travel, and merge as they come."""
    delayed, compute = needed("dask").delayed, needed("dask").compute
    check_real(x.dtype)
    axis = checked_axis(x.ndim, axis)
    check_samples(x.shape, axis is not None)
    whole = x if axis is None else x.rechunk({axis: -1})
    behind = None if axis is None else axis - x.ndim
    parts = [delayed(_of_part)(block, behind) for block in whole.to_delayed().ravel()]
    while len(parts) > 1:
        parts = [delayed(_merged)(parts[i : i + FAN]) for i in range(0, len(parts), FAN)]
    (found,) = compute(*parts)
    if found is None:
        raise _nothing(f"a Dask array of shape {x.shape}")
    return found


def _of_part(block: Any, axis: int | None) -> Summary | None:
    return Summary.of(block, axis) if block.size else None


def _merged(parts: list[Summary | None]) -> Summary | None:
    known = [part for part in parts if part is not None]
    return reduce(Summary.merge, known) if known else None


def _block(block: Any) -> np.ndarray[Any, Any]:
    return as_float64(numbers(block))


def _nothing(received: str) -> DataError:
    return DataError(
        "There is nothing to scale by",
        received=received,
        expected="at least one value of each feature",
        remedy="Leave empty parts out; an iterator serves once.",
    )


def _features(found: np.ndarray[Any, Any]) -> str:
    return f"{len(found)} features, the first is number {found[0]}"
