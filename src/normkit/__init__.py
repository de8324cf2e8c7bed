"""Normalization for neural networks: every norm from its set, forward and backward.

>>> import numpy as np, normkit as nk
>>> x = np.array([[1.0, 10.0], [3.0, 30.0]])
>>> y, saved = nk.BatchNorm(eps=0.0).forward(x)
>>> y
array([[-1., -1.],
       [ 1.,  1.]])
"""

from normkit import errors
from normkit.coefficients import Renorm
from normkit.engine import Gradients, GradientSums, Saved, explain_backend
from normkit.epilogues import Activation, activation_names, register_activation
from normkit.kernels.memory import cache_size, empty_cache, set_cache_limit
from normkit.kernels.threads import get_num_threads, set_num_threads
from normkit.kernels.warm import warm_up
from normkit.layout import ALL, Split
from normkit.moments import CumulativeAverage, ExponentialAverage, Moments, PopulationAverage
from normkit.norms import (
    BatchGroupNorm,
    BatchNorm,
    ChannelLayerNorm,
    GhostBatchNorm,
    GroupNorm,
    InstanceNorm,
    LayerNorm,
    MeanOnlyBatchNorm,
    Norm,
    RMSNorm,
    TokenLayerNorm,
)
from normkit.trace import Trace

__version__ = "0.1.0"

__all__ = [
    "ALL",
    "Activation",
    "BatchGroupNorm",
    "BatchNorm",
    "ChannelLayerNorm",
    "CumulativeAverage",
    "ExponentialAverage",
    "GhostBatchNorm",
    "GradientSums",
    "Gradients",
    "GroupNorm",
    "InstanceNorm",
    "LayerNorm",
    "MeanOnlyBatchNorm",
    "Moments",
    "Norm",
    "PopulationAverage",
    "RMSNorm",
    "Renorm",
    "Saved",
    "Split",
    "TokenLayerNorm",
    "Trace",
    "__version__",
    "activation_names",
    "cache_size",
    "empty_cache",
    "errors",
    "explain_backend",
    "get_num_threads",
    "register_activation",
    "set_cache_limit",
    "set_num_threads",
    "warm_up",
]
