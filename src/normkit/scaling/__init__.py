"""Input data scaled by mean and range, or by mean and deviation; also data larger than memory.

>>> import numpy as np
>>> from normkit.scaling import scale_by_deviation, scale_by_range
>>> kilometres = np.array([[10.0], [20.0], [60.0]])
>>> scale_by_range(kilometres).ravel()
array([-0.4, -0.2,  0.6])
>>> scale_by_deviation(kilometres).ravel().round(3)
array([-0.926, -0.463,  1.389])

What was learned from one part of the data serves the rest:

>>> from normkit.scaling import Summary
>>> first, second = Summary.of(kilometres[:2]), Summary.of(kilometres[2:])
>>> scale = first.merge(second).scale("range")
>>> scale(np.array([[110.0]])), scale.inverse(np.array([[0.6]]))
(array([[1.6]]), array([[60.]]))

``MeanRangeScaler`` and ``MeanDeviationScaler`` are the same for scikit-learn's pipelines.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from normkit.extras import needed
from normkit.scaling.summary import Scale, Summary, scale_by_deviation, scale_by_range

if TYPE_CHECKING:
    from normkit.scaling.estimators import MeanDeviationScaler, MeanRangeScaler

__all__ = [
    "MeanDeviationScaler",
    "MeanRangeScaler",
    "Scale",
    "Summary",
    "scale_by_deviation",
    "scale_by_range",
]


def __getattr__(name: str) -> Any:
    """The transformers, which need scikit-learn, when they are asked for."""
    if name in ("MeanDeviationScaler", "MeanRangeScaler"):
        needed("sklearn")
        from normkit.scaling import estimators

        return getattr(estimators, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
