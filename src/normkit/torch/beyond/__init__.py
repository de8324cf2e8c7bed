"""PyTorch layers that normalize without "a set of elements whose mean and variance are used".

Some reparametrize weights instead of standardizing activations (weight norm, weight
standardization), some divide by another thing than a standard deviation or by nothing at all
(filter response norm, global response norm, EvoNorm, dynamic tanh), one mixes the statistics of
several sets (switchable norm).

All are plain differentiable torch operators: derivatives of any order, ``torch.func``,
``torch.compile`` and every device and memory format work as they do for torch's own. Inputs
narrower than float32 are normalized in float32; the result has the input's dtype.
"""

from __future__ import annotations

from normkit.torch.beyond.evonorm import EvoNormB0, EvoNormS0
from normkit.torch.beyond.gains import activation_gain
from normkit.torch.beyond.initialization import data_dependent_init
from normkit.torch.beyond.responses import (
    DynamicTanh,
    FilterResponseNorm,
    GlobalResponseNorm,
    ThresholdedLinearUnit,
)
from normkit.torch.beyond.standardized import (
    ScaledWSConv1d,
    ScaledWSConv2d,
    ScaledWSConv3d,
    ScaledWSLinear,
    WSConv1d,
    WSConv2d,
    WSConv3d,
    WSLinear,
)
from normkit.torch.beyond.switchable import SwitchableNorm
from normkit.torch.beyond.weights import WeightNorm, remove_weight_norm, weight_norm

__all__ = [
    "DynamicTanh",
    "EvoNormB0",
    "EvoNormS0",
    "FilterResponseNorm",
    "GlobalResponseNorm",
    "ScaledWSConv1d",
    "ScaledWSConv2d",
    "ScaledWSConv3d",
    "ScaledWSLinear",
    "SwitchableNorm",
    "ThresholdedLinearUnit",
    "WSConv1d",
    "WSConv2d",
    "WSConv3d",
    "WSLinear",
    "WeightNorm",
    "activation_gain",
    "data_dependent_init",
    "remove_weight_norm",
    "weight_norm",
]
