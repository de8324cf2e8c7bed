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

needed("keras")  # says what to install

from keras.layers import SpectralNormalization, UnitNormalization  # noqa: E402

from normkit.keras.batch import BatchNormalization  # noqa: E402
from normkit.keras.samples import (  # noqa: E402
    GroupNormalization,
    InstanceNormalization,
    LayerNormalization,
    RMSNormalization,
)
from normkit.keras.scaling import Normalization  # noqa: E402
from normkit.keras.weights import WeightStandardization  # noqa: E402

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
