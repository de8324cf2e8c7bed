"""Batch norm: Keras' layer, and what it lacks."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from normkit.errors import OptionError
from normkit.keras.computing import normalize, standardize
from normkit.keras.operations import placed, wide_dtype
from normkit.keras.replicas import Replicas
from normkit.keras.settings import (
    PACKAGE,
    NormLayer,
    check_number,
    floating,
    from_front,
    of_positions,
)
from normkit.moments import Moments, merge_along
from normkit.norms import Norm

__all__ = ["BatchNormalization"]

Tensor = Any


@keras.saving.register_keras_serializable(PACKAGE)
class BatchNormalization(NormLayer, keras.layers.BatchNormalization):
    """keras.layers.BatchNormalization, computed by normkit.

    Arguments, weights and what ``trainable = False`` means are Keras'. Masks serve for channels
    along any axis; ``synchronized=True`` serves on every backend; batches that are empty, or masked
    as a whole, leave the moving statistics alone.

    Args:
        ghost: samples in a ghost batch (Hoffer et al. 2017); the last one may have fewer.

    Raises:
        OptionError: an option has a value that it cannot have.

    >>> import numpy as np
    >>> from normkit.keras import BatchNormalization
    >>> layer = BatchNormalization(ghost=16)
    >>> y = layer(np.random.default_rng(0).normal(5, 2, size=(32, 3)), training=True)
    >>> first = keras.ops.convert_to_numpy(y)[:16]
    >>> isinstance(layer, keras.layers.BatchNormalization), bool(abs(first.mean()) < 1e-5)
    (True, True)
    """

    def __init__(
        self, *args: Any, ghost: int | None = None, synchronized: bool = False, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.ghost, self.synchronized = ghost, bool(synchronized)
        check_number("BatchNormalization", "momentum", self.momentum, most=1.0)
        if ghost is not None and (type(ghost) is not int or ghost < 1):
            raise OptionError(
                "BatchNormalization cannot have such ghost batches",
                received=f"ghost={ghost!r}",
                expected="a whole number of at least 1, or None",
                remedy="32 is usual.",
            )
        if ghost is not None and self.synchronized:
            raise OptionError(
                "Two options contradict each other",
                received=f"ghost={ghost} and synchronized=True",
                expected="one of them",
                remedy="Ghost batches are parts of one replica's batch.",
            )
        self._replicas = Replicas(self.name) if self.synchronized else None

    def call(
        self,
        inputs: Tensor,
        training: bool | None = None,
        mask: Tensor | None = None,
        *,
        sample_weight: Tensor | None = None,
        gamma: Tensor | None = None,
        beta: Tensor | None = None,
    ) -> Tensor:
        """Normalized by the batch in training, which moves the statistics; else by these.

        Args:
            inputs: of two axes or more, with the channels along ``axis``.
            training: by the batch; not while the layer's ``trainable`` is False.
            mask: the inputs' shape without the channel axis, or its first axes: (samples,),
                (samples, steps), ... Only where it is true do inputs count in statistics.
            sample_weight: of such a shape too: how much inputs count in statistics; those whose
                weight is not above 0 do not.
            gamma, beta: in place of the layer's own: (channels,), or (samples, channels) for
                conditional batch norm.
        """
        inputs = floating(inputs)
        axis = from_front(self.axis, inputs)
        affine = self._affine(inputs, axis, gamma, beta)
        if not (training and self.trainable):
            y = standardize(
                inputs, self.moving_mean, self.moving_variance, *affine, axis=axis,
                eps=self.epsilon,
            )  # fmt: skip
            return ops.cast(y, self.compute_dtype)
        counted: dict[str, Any] = {"axis": axis, "replicas": self._replicas}
        if mask is not None:
            counted["mask"] = ops.cast(of_positions("mask", mask, inputs, axis), "bool")
        if sample_weight is not None:
            weights = of_positions("sample_weight", sample_weight, inputs, axis)
            weights = ops.cast(weights, wide_dtype(inputs))
            counts = weights > 0
            if mask is not None:
                counts = ops.logical_and(counts, counted.pop("mask"))
            counted["weights"] = ops.where(counts, weights, ops.zeros_like(weights))
        y = self._by_batch(inputs, affine, counted)
        return ops.cast(y, self.compute_dtype)

    def _by_batch(
        self, inputs: Tensor, affine: list[Tensor | None], counted: dict[str, Any]
    ) -> Tensor:
        norm = Norm(samples=self.ghost or "all", eps=self.epsilon)
        if not self.renorm:
            y, moments = normalize(norm, inputs, *affine, **counted)
            self._record(moments)
            return y
        x_hat, moments = normalize(norm, inputs, None, None, **counted)
        y = self._renormalized(x_hat, moments, affine, counted["axis"])
        self._record(moments)
        return y

    # --- renormalization ------------------------------------------------------------------------

    def _renormalized(
        self, x_hat: Tensor, moments: Moments, affine: list[Tensor | None], axis: int
    ) -> Tensor:
        """(x_hat · r + d) · gamma + beta (Ioffe 2017, Algorithm 1), with Keras' limits."""
        count, mean, m2 = self._numbers(moments)
        # Copies: what is read in backward must not be what the moving statistics become.
        usual, old_mean = ops.copy(self.renorm_stddev), ops.copy(self.renorm_mean)
        clip = self.renorm_clipping or {}
        deviation = ops.sqrt(m2 / _some(count) + self.epsilon)
        usual = ops.maximum(usual, self.epsilon**0.5)
        r, d = deviation / usual, (mean - old_mean) / usual
        r = r if clip.get("rmin") is None else ops.maximum(r, clip["rmin"])
        r = r if clip.get("rmax") is None else ops.minimum(r, clip["rmax"])
        d = d if clip.get("dmax") is None else ops.clip(d, -clip["dmax"], clip["dmax"])
        samples = ops.shape(x_hat)[1 if axis == 0 else 0]
        if self.ghost is not None:  # from a row for each ghost batch, one for each sample
            r, d = (ops.repeat(values, self.ghost, axis=0)[:samples] for values in (r, d))
        r, d = ops.stop_gradient(r), ops.stop_gradient(d)
        gamma, beta = (None if a is None else ops.cast(a, r.dtype) for a in affine)
        scale = r if gamma is None else r * gamma
        shift = d if gamma is None else d * gamma
        shift = shift if beta is None else shift + beta
        scale, shift = (placed(values, x_hat, axis) for values in (scale, shift))
        return ops.cast(ops.cast(x_hat, scale.dtype) * scale + shift, x_hat.dtype)

    # --- moving statistics ----------------------------------------------------------------------

    def _numbers(self, moments: Moments) -> tuple[Tensor, Tensor, Tensor]:
        """Count, mean and M2 of one shape, as the variables are kept; counts may lie below 1."""
        dtype = wide_dtype(self.moving_mean)
        mean, m2 = (ops.cast(values, dtype) for values in (moments.mean, moments.m2))
        return ops.broadcast_to(ops.cast(moments.count, dtype), ops.shape(mean)), mean, m2

    def _whole(self, moments: Moments) -> tuple[Tensor, Tensor, Tensor]:
        """Count, mean and biased variance of each channel, of all ghost batches together."""
        count, mean, m2 = self._numbers(moments)
        if len(mean.shape) == 1:
            return count, mean, m2 / _some(count)
        total = ops.sum(count, axis=0)
        mean, m2 = merge_along(ops, count, mean, m2, 0, _some(total))
        return total, mean, m2 / _some(total)

    def _record(self, moments: Moments) -> None:
        count, mean, var = self._whole(moments)
        if not self.renorm:
            self._move(count, self.momentum, {"moving_mean": mean, "moving_variance": var})
            return
        deviation = ops.sqrt(var + self.epsilon)
        self._move(count, self.renorm_momentum, {"renorm_mean": mean, "renorm_stddev": deviation})
        self._move(count, self.momentum, {"moving_mean": mean, "moving_stddev": deviation})
        var = ops.square(self.moving_stddev) - self.epsilon
        self.moving_variance.assign(ops.relu(var))

    def _move(self, count: Tensor, momentum: float, found: dict[str, Tensor]) -> None:
        for name, new in found.items():
            variable = getattr(self, name)
            old = ops.convert_to_tensor(variable)
            moved = old * momentum + ops.cast(new, old.dtype) * (1.0 - momentum)
            variable.assign(ops.where(count > 0, moved, old))

    def get_config(self) -> dict[str, Any]:
        """Keras' options and ours."""
        return {**super().get_config(), "synchronized": self.synchronized, "ghost": self.ghost}


def _some(count: Tensor) -> Tensor:
    return ops.where(count > 0, count, ops.ones_like(count))
