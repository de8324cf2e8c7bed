"""Keras 3's norm layers, computed by normkit on the backend that Keras runs on.

The names, arguments, weights and conventions are Keras'; an import changes, nothing else:

>>> import keras
>>> from normkit.keras import BatchNormalization
>>> model = keras.Sequential(
...     [keras.Input((4,)), keras.layers.Dense(8), BatchNormalization(), keras.layers.ReLU()]
... )
>>> model.count_params(), isinstance(model.layers[1], keras.layers.BatchNormalization)
(72, True)

Under PyTorch the layers run on normkit's kernels, under JAX through :mod:`normkit.jax`, under
TensorFlow through Keras' operations. ``.keras`` files that hold them load once this module is
imported. ``UnitNormalization`` and ``SpectralNormalization`` are Keras' own.
"""

from __future__ import annotations

from normkit.extras import needed

try:
    needed("keras")  # says what to install
except ModuleNotFoundError as error:
    if error.name not in ("tensorflow", "torch", "jax"):
        raise
    words = (
        f"Keras is to run on {error.name}, which is not installed; install it, or set the "
        "environment variable KERAS_BACKEND to torch, jax or tensorflow before Keras is imported"
    )
    raise ModuleNotFoundError(words, name=error.name) from error

from keras.layers import SpectralNormalization, UnitNormalization

from normkit.keras.batch import BatchNormalization
from normkit.keras.samples import (
    GroupNormalization,
    InstanceNormalization,
    LayerNormalization,
    RMSNormalization,
)
from normkit.keras.scaling import Normalization
from normkit.keras.weights import WeightStandardization

__all__ = [
    "BatchNormalization",
    "GroupNormalization",
    "InstanceNormalization",
    "LayerNormalization",
    "Normalization",
    "RMSNormalization",
    "SpectralNormalization",
    "UnitNormalization",
    "WeightStandardization",
]
