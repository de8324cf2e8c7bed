"""Weights that are standardized before they are used."""

from __future__ import annotations

import inspect
import math
from typing import Any

import keras
from keras import ops

from normkit.errors import NotNormalizableError, ShapeError
from normkit.keras.operations import wide
from normkit.keras.settings import PACKAGE, check_number

__all__ = ["WeightStandardization"]

Tensor = Any
_LAYERS = keras.layers
#: Axes of a kernel along which its filters lie side by side.
_FILTERS: dict[tuple[type, ...], tuple[int, ...]] = {
    (_LAYERS.Dense, _LAYERS.Conv1D, _LAYERS.Conv2D, _LAYERS.Conv3D): (-1,),
    (_LAYERS.Conv1DTranspose, _LAYERS.Conv2DTranspose, _LAYERS.Conv3DTranspose): (-2,),
    (_LAYERS.DepthwiseConv1D, _LAYERS.DepthwiseConv2D): (-2, -1),
}


@keras.saving.register_keras_serializable(PACKAGE)
class WeightStandardization(keras.layers.Wrapper):
    """A layer each of whose filters loses its mean and its scale: (W − μ) / √(σ² + ε).

    Qiao et al. 2019, "Micro-Batch Training with Batch-Channel Normalization and Weight
    Standardization". μ and σ² are over a filter's fan-in. The raw kernel stays the weight that is
    trained and saved. A norm of the activations, such as group norm, belongs behind it.

    Args:
        layer: Dense, a convolution, transposed or depthwise.
        epsilon: ε, at least 0. 1e-10 by default: the paper adds its square root to σ, which leaves
            an infinite derivative at σ = 0.

    Raises:
        NotNormalizableError: the layer has no such kernel.
        ShapeError: when built, a filter has a single weight.

    >>> import keras, numpy as np
    >>> from normkit.keras import WeightStandardization
    >>> layer = WeightStandardization(keras.layers.Conv2D(4, 3))
    >>> layer(np.ones((1, 8, 8, 3), "float32")).shape[-1], len(layer.trainable_weights)
    (4, 2)
    """

    def __init__(self, layer: Any, epsilon: float = 1e-10, **kwargs: Any) -> None:
        super().__init__(layer, **kwargs)
        check_number("WeightStandardization", "epsilon", epsilon)
        self.epsilon = float(epsilon)
        self._filters = _filters(layer)
        self._takes = frozenset(inspect.signature(layer.call).parameters)
        self.supports_masking = layer.supports_masking
        self.activity_regularizer = layer.activity_regularizer

    def build(self, input_shape: Any = None) -> None:
        """Make the layer's weights.

        Raises:
            ShapeError: a filter has a single weight.
        """
        super().build(input_shape)
        shape = tuple(self.layer.kernel.shape)
        if math.prod(shape[axis] for axis in self._inside()) < 2:
            raise ShapeError(
                "A filter of one weight has no variance",
                received=f"a kernel of shape {shape}",
                expected="at least 2 weights for each output",
                remedy="Use the layer without WeightStandardization here.",
            )

    def _inside(self) -> tuple[int, ...]:
        """Axes of one filter, counted from behind."""
        rank = len(self.layer.kernel.shape)
        return tuple(axis for axis in range(-rank, 0) if axis not in self._filters)

    def standardized_kernel(self) -> Tensor:
        """The kernel that inputs meet, in the shape and dtype of the layer's."""
        if getattr(self.layer, "quantization_mode", None):
            raise _not_quantized(f"a layer in {self.layer.quantization_mode}")
        kernel = ops.convert_to_tensor(self.layer.kernel)
        apart = wide(kernel)
        apart = apart - ops.mean(apart, self._inside(), keepdims=True)
        var = ops.mean(ops.square(apart), self._inside(), keepdims=True)
        return ops.cast(apart * ops.rsqrt(var + self.epsilon), kernel.dtype)

    def call(
        self, inputs: Tensor, training: bool | None = None, mask: Tensor | None = None
    ) -> Tensor:
        """The layer's output with standardized filters."""
        # A shallow twin that shares all but the kernel, so that no one else sees the other kernel.
        twin = object.__new__(type(self.layer))
        twin.__dict__.update(self.layer.__dict__)
        name = "_kernel" if "_kernel" in twin.__dict__ else "kernel"
        twin.__dict__[name] = self.standardized_kernel()
        twin.__dict__["lora_enabled"] = False  # its part is in the standardized kernel
        given = {"training": training, "mask": mask}
        return twin.call(inputs, **{k: v for k, v in given.items() if k in self._takes})

    def quantize(self, mode: Any = None, **options: Any) -> None:  # noqa: ARG002
        """Refused.

        Raises:
            NotNormalizableError: always: whole numbers have no such standardization.
        """
        raise _not_quantized(f"quantize({mode!r})")

    def compute_output_shape(self, input_shape: Any) -> Any:
        """The layer's."""
        return self.layer.compute_output_shape(input_shape)

    def get_config(self) -> dict[str, Any]:
        """The layer's options and epsilon."""
        return {**super().get_config(), "epsilon": self.epsilon}


def _not_quantized(received: str) -> NotNormalizableError:
    return NotNormalizableError(
        "A standardized kernel cannot be quantized",
        received=received,
        expected="floating weights",
        remedy="Quantize a network whose kernels were replaced by standardized_kernel().",
    )


def _filters(layer: Any) -> tuple[int, ...]:
    for kinds, axes in _FILTERS.items():
        if isinstance(layer, kinds):
            return axes
    raise NotNormalizableError(
        "Weight standardization is for layers with a kernel",
        received=type(layer).__name__,
        expected="Dense, or a convolution, transposed or depthwise",
        remedy="Wrap the convolutions and dense layers themselves.",
    )
