"""Norms that take statistics of one sample at a time: layer, RMS, group and instance norm."""

from __future__ import annotations

import math
from typing import Any

import keras
from keras import ops

from normkit.keras.computing import normalize_samples
from normkit.keras.settings import (
    PACKAGE,
    NormLayer,
    floating,
    from_front,
    of_positions,
)
from normkit.norms import GroupNorm, Norm, RMSNorm, TokenLayerNorm

__all__ = [
    "GroupNormalization",
    "InstanceNormalization",
    "LayerNormalization",
    "RMSNormalization",
]

Tensor = Any


@keras.saving.register_keras_serializable(PACKAGE)
class LayerNormalization(NormLayer, keras.layers.LayerNormalization):
    """keras.layers.LayerNormalization, computed by normkit; its arguments and weights are Keras'.

    >>> import numpy as np
    >>> from normkit.keras import LayerNormalization
    >>> tuple(LayerNormalization()(np.ones((2, 5, 3), "float32")).shape)
    (2, 5, 3)
    """

    def call(self, inputs: Tensor) -> Tensor:
        """Each sample, or position of one, by the axes that the layer normalizes."""
        if self.rms_scaling:  # deprecated, and no norm that has a name
            return super().call(inputs)
        norm = TokenLayerNorm(eps=self.epsilon)
        y = _along(norm, floating(inputs), self.gamma, self.beta, self.axis)
        return ops.cast(y, self.compute_dtype)


@keras.saving.register_keras_serializable(PACKAGE)
class RMSNormalization(NormLayer, keras.layers.RMSNormalization):
    """keras.layers.RMSNormalization, computed by normkit; its arguments and weights are Keras'."""

    def call(self, inputs: Tensor) -> Tensor:
        """Each sample, or position of one, by the root of its mean square."""
        norm = RMSNorm(eps=self.epsilon)
        y = _along(norm, floating(inputs), self.scale, None, self.axis)
        return ops.cast(y, self.compute_dtype)


@keras.saving.register_keras_serializable(PACKAGE)
class GroupNormalization(NormLayer, keras.layers.GroupNormalization):
    """keras.layers.GroupNormalization, computed by normkit; its arguments and weights are Keras'.

    Masked positions, which Keras' own layer counts, count for nothing.
    """

    def call(
        self,
        inputs: Tensor,
        mask: Tensor | None = None,
        *,
        gamma: Tensor | None = None,
        beta: Tensor | None = None,
    ) -> Tensor:
        """Each sample by groups of its channels, over all positions.

        Args:
            inputs: (samples, ..., channels), or with the channels along ``axis``.
            mask: the inputs' shape without the channel axis, or its first axes. Only where it is
                true do inputs count in statistics.
            gamma, beta: in place of the layer's own: (channels,), or (samples, channels), as in
                adaptive instance norm.
        """
        inputs = floating(inputs)
        axis = from_front(self.axis, inputs)
        affine = self._affine(inputs, axis, gamma, beta)
        if mask is not None:
            mask = ops.cast(of_positions("mask", mask, inputs, axis), "bool")
        norm = GroupNorm(self.groups, eps=self.epsilon)
        y = normalize_samples(norm, inputs, *affine, axis=axis, mask=mask)
        return ops.cast(y, self.compute_dtype)


@keras.saving.register_keras_serializable(PACKAGE)
class InstanceNormalization(GroupNormalization):
    """Each channel of each sample by its positions (Ulyanov et al. 2016).

    Args:
        axis, epsilon, center, scale, and initializers, regularizers and constraints of gamma and
            beta: as of GroupNormalization.
    """

    def __init__(
        self,
        axis: int = -1,
        epsilon: float = 1e-3,
        center: bool = True,
        scale: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            groups=-1, axis=axis, epsilon=epsilon, center=center, scale=scale, **kwargs
        )

    def get_config(self) -> dict[str, Any]:
        """The options; as many groups as channels go without saying."""
        config = super().get_config()
        del config["groups"]
        return config


def _along(norm: Norm, x: Tensor, gamma: Any, beta: Any, axes: list[int]) -> Tensor:
    """Sets of single positions, the channels of which lie along one axis or several."""
    axes = sorted(from_front(axis, x) for axis in axes)
    rank = len(x.shape)
    gamma, beta = (None if p is None else ops.convert_to_tensor(p) for p in (gamma, beta))
    if len(axes) == 1 and axes[0] > 0 and rank <= 5:
        return normalize_samples(norm, x, gamma, beta, axis=axes[0])
    order = [*(axis for axis in range(rank) if axis not in axes), *axes]
    turned = x if order == list(range(rank)) else ops.transpose(x, order)
    width = math.prod(x.shape[axis] for axis in axes)
    gamma, beta = (None if p is None else ops.reshape(p, (width,)) for p in (gamma, beta))
    flat = normalize_samples(norm, ops.reshape(turned, (-1, width)), gamma, beta, axis=1)
    y = ops.reshape(flat, ops.shape(turned))
    return y if turned is x else ops.transpose(y, [order.index(axis) for axis in range(rank)])
