"""Flax NNX's norms, computed by normkit: the same arguments, variables and conventions.

>>> import jax.numpy as jnp
>>> from flax import nnx
>>> from normkit.jax.nnx import BatchNorm
>>> layer = BatchNorm(3, rngs=nnx.Rngs(0))
>>> isinstance(layer, nnx.BatchNorm), layer(jnp.ones((4, 3))).shape
(True, (4, 3))
"""

from __future__ import annotations

from typing import Any

from jax import numpy as jnp

from normkit import norms
from normkit.errors import OptionError, ShapeError
from normkit.extras import needed
from normkit.jax.functional import BatchStats, batch_norm
from normkit.jax.normalizing import normalize
from normkit.norms import Norm

__all__ = ["BatchNorm", "GroupNorm", "InstanceNorm", "LayerNorm", "RMSNorm"]

Array = Any
nnx = needed("flax.nnx")


class BatchNorm(nnx.BatchNorm):  # type: ignore[name-defined]
    """flax.nnx.BatchNorm, right also where the mean is far from zero, with less kept for backward.

    ``axis_name`` merges the statistics of all devices exactly. Arguments are Flax's;
    ``use_fast_variance`` makes no difference.
    """

    def __call__(
        self, x: Array, use_running_average: bool | None = None, *, mask: Array | None = None
    ) -> Array:
        """Normalized by the batch, whose statistics the running ones follow; or by these.

        Args:
            x: (..., num_features), or with the features along ``axis``.
            use_running_average: instead of what the layer was told.
            mask: which positions count; broadcasts to x, and is the same for all features.
        """
        _check_groups(self)
        running = self.use_running_average if use_running_average is None else use_running_average
        if running is None:
            return super().__call__(x, None)  # Flax's error says what to do
        x, scale, bias = _promoted(self, x)
        y, after = batch_norm(
            x, BatchStats(self.mean[...], self.var[...]), scale, bias, training=not running,
            momentum=self.momentum, eps=self.epsilon, axis=self.axis, axis_name=self.axis_name,
            mask=_without_features(mask, x, self.axis),
        )  # fmt: skip
        if not running:
            self.mean[...], self.var[...] = after
        return y


class LayerNorm(nnx.LayerNorm):  # type: ignore[name-defined]
    """flax.nnx.LayerNorm over the features of each position."""

    def __call__(self, x: Array, *, mask: Array | None = None) -> Array:
        """Each position by its own features."""
        return _alone(self, norms.TokenLayerNorm(eps=self.epsilon), x, mask, of_features=True)


class RMSNorm(nnx.RMSNorm):  # type: ignore[name-defined]
    """flax.nnx.RMSNorm over the features of each position."""

    def __call__(self, x: Array, mask: Array | None = None) -> Array:
        """Each position by the root of the mean square of its features."""
        return _alone(self, norms.RMSNorm(eps=self.epsilon), x, mask, of_features=True)


class InstanceNorm(nnx.InstanceNorm):  # type: ignore[name-defined]
    """flax.nnx.InstanceNorm: each feature of each sample by its positions."""

    def __call__(self, x: Array, *, mask: Array | None = None) -> Array:
        """Normalized, with the features along the last axis."""
        return _alone(self, norms.InstanceNorm(eps=self.epsilon), x, mask)


class GroupNorm(nnx.GroupNorm):  # type: ignore[name-defined]
    """flax.nnx.GroupNorm: each sample by groups of its features, over all positions."""

    def __call__(self, x: Array, *, mask: Array | None = None) -> Array:
        """Normalized, with the features along the last axis."""
        return _alone(self, norms.GroupNorm(self.num_groups, eps=self.epsilon), x, mask)


def _alone(
    layer: Any, norm: Norm, x: Array, mask: Array | None, of_features: bool = False
) -> Array:
    """What no other sample has a part in."""
    _check_groups(layer)
    _check_axes(layer, of_features, x.ndim)
    if of_features and layer.axis_name is not None:
        raise OptionError(
            "Features that are split over devices",
            received=f"axis_name={layer.axis_name!r}",
            expected="None",
            remedy=f"flax.nnx.{type(layer).__name__} takes it.",
        )
    x, scale, bias = _promoted(layer, x)
    alone = x.ndim == 1 and of_features  # one token, as under vmap
    y, _ = normalize(
        norm, x[None] if alone else x, scale, bias, axis=-1, axis_name=layer.axis_name,
        mask=_without_features(mask, x, -1),
    )  # fmt: skip
    return y[0] if alone else y


def _promoted(layer: Any, x: Array) -> tuple[Array, Array | None, Array | None]:
    """Input and parameters in the dtype that Flax computes in."""
    scale, bias = (getattr(layer, name, None) for name in ("scale", "bias"))
    values = (x, *(None if one is None else one[...] for one in (scale, bias)))
    promoted: tuple[Array, Array | None, Array | None] = layer.promote_dtype(
        values, dtype=layer.dtype
    )
    return promoted


def _without_features(mask: Array | None, x: Array, axis: int) -> Array | None:
    """A mask of positions, as normkit has it, from one that broadcasts to x."""
    if mask is None:
        return None
    mask = jnp.expand_dims(mask, tuple(range(x.ndim - mask.ndim)))
    whole = jnp.broadcast_to(mask, jnp.broadcast_shapes(mask.shape, x.shape))
    if mask.shape[axis] != 1:
        raise ShapeError(
            "A mask of single features",
            received=f"shape {mask.shape} for x of shape {x.shape}",
            expected=f"1 along axis {axis}: whole positions count, or do not",
            remedy="Flax's own layer takes such a mask.",
        )
    return jnp.take(whole, 0, axis=axis)


def _check_groups(layer: Any) -> None:
    if layer.axis_index_groups is not None:
        raise OptionError(
            "Groups of devices",
            received=f"axis_index_groups={layer.axis_index_groups!r}",
            expected="None: statistics reach over all devices of axis_name",
            remedy="Map over two axes and name the one, or use Flax's own layer.",
        )


def _check_axes(layer: Any, of_features: bool, ndim: int) -> None:
    reduced = getattr(layer, "reduction_axes", None)
    features = getattr(layer, "feature_axes", -1)
    last = (-1, ndim - 1)
    whole = reduced is None or (of_features and _single(reduced) in last)
    if not whole or _single(features) not in last:
        raise OptionError(
            "Other axes than the usual ones",
            received=f"reduction_axes={reduced!r}, feature_axes={features!r}",
            expected="features along the last axis, and the axes that Flax takes by default",
            remedy="normkit.jax.normalize takes any set; flax's own layer these axes.",
        )


def _single(axes: Any) -> int | None:
    axes = (axes,) if isinstance(axes, int) else tuple(axes)
    return axes[0] if len(axes) == 1 else None
