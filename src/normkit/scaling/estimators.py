"""The two ways of scaling as transformers of scikit-learn."""

from __future__ import annotations

from typing import Any, ClassVar, Self

import numpy as np
from sklearn.base import BaseEstimator, OneToOneFeatureMixin, TransformerMixin
from sklearn.utils.validation import check_array, check_is_fitted, validate_data

from normkit.scaling.data import is_dask, refuse_masked, refuse_rounded
from normkit.scaling.summary import By, Scale, Summary

__all__ = ["MeanDeviationScaler", "MeanRangeScaler"]

_FLOATS = (np.float64, np.float32)


class _Scaler(OneToOneFeatureMixin, TransformerMixin, BaseEstimator):
    """Learns the scale of each column, and applies it.

    Attributes:
        mean_: of each column, float64.
        scale_: what its deviations from the mean are divided by; 1 where it never changes.
        n_samples_seen_: rows behind them.
        summary_: a :class:`normkit.scaling.Summary`, which merges with those of other machines.
    """

    _by: ClassVar[By]

    def fit(self, X: Any, y: Any = None) -> Self:  # noqa: ARG002 - scikit-learn's names
        """Learn from all rows at once; forgets what was learned before, also where this fails.

        Args:
            X: (rows, columns); NumPy, or a Dask array, which is never held in memory as a whole.
            y: is not looked at.
        """
        for name in ("summary_", "mean_", "scale_", "n_samples_seen_"):
            self.__dict__.pop(name, None)
        return self.partial_fit(X)

    def partial_fit(self, X: Any, y: Any = None) -> Self:  # noqa: ARG002
        """Learn from some more rows; the result is that of all rows at once."""
        known: Summary | None = getattr(self, "summary_", None)
        X = self._checked(X, reset=known is None)
        found = Summary.of(X)
        summary = found if known is None else known.merge(found)
        scale = summary.scale(self._by)
        self.summary_ = summary
        self.mean_, self.scale_ = scale.shift, scale.divisor
        self.n_samples_seen_ = int(np.max(self.summary_.moments.count))
        return self

    def transform(self, X: Any) -> Any:
        """The scaled columns: a new array; of a Dask array a lazy one."""
        check_is_fitted(self)
        return self._scale(self._checked(X))

    def inverse_transform(self, X: Any) -> Any:
        """Columns in their own units again; X is what transform has returned, so without names."""
        check_is_fitted(self)
        if not is_dask(X):
            _refuse_lost(X)
            X = check_array(X, estimator=self, input_name="X", dtype=_FLOATS)
        return self._scale.inverse(X)

    @property
    def _scale(self) -> Scale:
        return self.summary_.scale(self._by)

    def _checked(self, X: Any, reset: bool = False) -> Any:
        if is_dask(X):
            return validate_data(self, X, reset=reset, skip_check_array=True)
        _refuse_lost(X)
        return validate_data(self, X, reset=reset, dtype=_FLOATS)

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "summary_")

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags


def _refuse_lost(X: Any) -> None:
    """Raise for what scikit-learn would lose when it makes an array of floats: masks and digits."""
    refuse_masked(X)
    refuse_rounded(np.asarray(X))


class MeanRangeScaler(_Scaler):
    """(x − mean) / (max − min) of each column: values lie within 1 of each other.

    >>> import numpy as np
    >>> from normkit.scaling import MeanRangeScaler
    >>> MeanRangeScaler().fit_transform(np.array([[1.0], [2.0], [6.0]])).ravel()
    array([-0.4, -0.2,  0.6])
    """

    _by: ClassVar[By] = "range"


class MeanDeviationScaler(_Scaler):
    """(x − mean) / deviation of each column: mean 0, variance 1 (biased, as StandardScaler's).

    >>> import numpy as np
    >>> from normkit.scaling import MeanDeviationScaler
    >>> scaler = MeanDeviationScaler().partial_fit(np.array([[1.0], [2.0]]))
    >>> scaler.partial_fit(np.array([[6.0]])).transform(np.array([[3.0]])), scaler.n_samples_seen_
    (array([[0.]]), 3)
    """

    _by: ClassVar[By] = "deviation"
