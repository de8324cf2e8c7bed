"""The norms by their names, as pure functions; batch norm with its statistics as a value."""

from __future__ import annotations

from typing import Any, NamedTuple

from jax import lax
from jax import numpy as jnp

from normkit import norms
from normkit.errors import OptionError, ShapeError
from normkit.jax.normalizing import AxisName, normalize

__all__ = ["BatchStats", "batch_norm", "group_norm", "instance_norm", "layer_norm", "rms_norm"]

Array = Any


class BatchStats(NamedTuple):
    """Running mean and variance of each channel; a pytree."""

    mean: Array
    var: Array

    @classmethod
    def start(cls, channels: int, dtype: Any = jnp.float32) -> BatchStats:
        """Before the first batch: mean 0, variance 1."""
        return cls(jnp.zeros(channels, dtype), jnp.ones(channels, dtype))


def batch_norm(
    x: Array,
    stats: BatchStats,
    gamma: Array | None = None,
    beta: Array | None = None,
    *,
    training: bool,
    momentum: float = 0.99,
    eps: float = 1e-5,
    unbiased: bool = False,
    axis: int = -1,
    axis_name: AxisName | None = None,
    mask: Array | None = None,
    activation: str | None = None,
) -> tuple[Array, BatchStats]:
    """Batch norm: by the batch in training, which moves the statistics; else by the statistics.

    Args:
        x: (..., channels), or with the channels along ``axis``.
        stats: running mean and variance.
        gamma, beta: (channels,).
        training: known when the function is traced.
        momentum: weight of the old statistics, as in Flax and Keras; PyTorch's is one minus this.
        unbiased: average the batches' variances with m/(m - 1), as PyTorch does; Flax and Keras
            do not.
        axis_name: see :func:`normalize`; the statistics then move alike on all devices.
        mask, activation: see :func:`normalize`.

    Returns:
        y, and the statistics after this batch: the given ones where training is False.

    >>> import jax.numpy as jnp
    >>> from normkit.jax import BatchStats, batch_norm
    >>> x = jnp.array([[1.0], [3.0]])
    >>> y, stats = batch_norm(x, BatchStats.start(1), training=True, momentum=0.9, eps=0.0)
    >>> y.ravel().tolist(), [round(float(v[0]), 6) for v in stats]
    ([-1.0, 1.0], [0.2, 1.0])
    """
    if not 0.0 <= momentum <= 1.0:
        raise OptionError(
            "No momentum of an average",
            received=repr(momentum),
            expected="a number from 0 to 1, the weight of the old statistics",
            remedy="PyTorch's 0.1 is 0.9 here.",
        )
    x = jnp.asarray(x)
    channels = x.shape[axis]
    for name, values in stats._asdict().items():
        if values.shape != (channels,):
            raise ShapeError(
                f"The running {name} does not fit the channels",
                received=f"shape {values.shape}",
                expected=f"({channels},) for x of shape {x.shape}, axis={axis}",
                remedy="BatchStats.start(channels) makes statistics.",
            )
    norm = norms.BatchNorm(eps=eps)
    if not training:
        y, _ = norm.forward(
            x, gamma, beta, axis=axis, mask=mask, activation=activation,
            statistics=(stats.mean, stats.var),
        )  # fmt: skip
        return y, stats
    y, found = normalize(
        norm, x, gamma, beta, axis=axis, axis_name=axis_name, mask=mask, activation=activation
    )
    var = found.population_var if unbiased else found.var
    # An empty batch, or one that is masked as a whole, moves nothing.
    seen = jnp.broadcast_to(found.count, found.mean.shape).reshape(channels) > 0

    def moved(old: Array, new: Array) -> Array:
        new = new.reshape(channels).astype(old.dtype)
        return jnp.where(seen, momentum * old + (1 - momentum) * new, old)

    after = BatchStats(moved(stats.mean, found.mean), moved(stats.var, var))
    return y, BatchStats(*map(lax.stop_gradient, after))


def layer_norm(
    x: Array,
    gamma: Array | None = None,
    beta: Array | None = None,
    *,
    eps: float = 1e-6,
    axis: int = -1,
    activation: str | None = None,
) -> Array:
    """Each token by its own channels, as transformers have it; eps as in Flax."""
    return _alone(norms.TokenLayerNorm(eps=eps), x, gamma, beta, axis, activation)


def rms_norm(x: Array, gamma: Array | None = None, *, eps: float = 1e-6, axis: int = -1) -> Array:
    """Each token by the root of the mean square of its channels; eps as in Flax."""
    return _alone(norms.RMSNorm(eps=eps), x, gamma, None, axis, None)


def group_norm(
    x: Array,
    groups: int,
    gamma: Array | None = None,
    beta: Array | None = None,
    *,
    eps: float = 1e-6,
    axis: int = -1,
    activation: str | None = None,
) -> Array:
    """Each sample by groups of its channels over all positions; eps as in Flax."""
    return _alone(norms.GroupNorm(groups, eps=eps), x, gamma, beta, axis, activation)


def instance_norm(
    x: Array,
    gamma: Array | None = None,
    beta: Array | None = None,
    *,
    eps: float = 1e-6,
    axis: int = -1,
    activation: str | None = None,
) -> Array:
    """Each channel of each sample by its positions; eps as in Flax."""
    return _alone(norms.InstanceNorm(eps=eps), x, gamma, beta, axis, activation)


def _alone(
    norm: Any, x: Array, gamma: Array, beta: Array, axis: int, activation: str | None
) -> Array:
    x = jnp.asarray(x)
    if x.ndim == 1 and norm.positions == 1:  # one token, as under vmap
        return normalize(norm, x[None], gamma, beta, axis=axis, activation=activation)[0][0]
    return normalize(norm, x, gamma, beta, axis=axis, activation=activation)[0]
