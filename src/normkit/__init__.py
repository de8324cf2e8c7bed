"""Normalization for neural networks: every norm from its set, forward and backward.

>>> import numpy as np, normkit as nk
>>> x = np.array([[1.0, 10.0], [3.0, 30.0]])
>>> y, saved = nk.BatchNorm(eps=0.0).forward(x)
>>> y
array([[-1., -1.],
       [ 1.,  1.]])
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
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

_HOMES = {
    "coefficients": ("Renorm",),
    "engine": ("Gradients", "GradientSums", "Saved", "explain_backend"),
    "epilogues": ("Activation", "activation_names", "register_activation"),
    "kernels.memory": ("cache_size", "empty_cache", "set_cache_limit"),
    "kernels.threads": ("get_num_threads", "set_num_threads"),
    "kernels.warm": ("warm_up",),
    "layout": ("ALL", "Split"),
    "moments": ("CumulativeAverage", "ExponentialAverage", "Moments", "PopulationAverage"),
    "norms": (
        "BatchGroupNorm", "BatchNorm", "ChannelLayerNorm", "GhostBatchNorm", "GroupNorm",
        "InstanceNorm", "LayerNorm", "MeanOnlyBatchNorm", "Norm", "RMSNorm",
        "TokenLayerNorm",
    ),
    "trace": ("Trace",),
}  # fmt: skip
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}
_SUBMODULES = {"errors", *(home.split(".")[0] for home in _HOMES)}

if not TYPE_CHECKING:  # checkers see the imports above

    def __getattr__(name: str) -> object:
        """A public name, imported when it is first asked for: the command line starts at once."""
        if name in _SUBMODULES:
            return importlib.import_module(f"normkit.{name}")
        if name not in _HOME_OF:
            raise AttributeError(f"module 'normkit' has no attribute {name!r}")
        found = getattr(importlib.import_module(f"normkit.{_HOME_OF[name]}"), name)
        globals()[name] = found
        return found

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
