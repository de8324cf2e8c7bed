"""A norm on whatever backend Keras runs on."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from normkit.keras import operations
from normkit.keras.replicas import Replicas
from normkit.moments import Moments
from normkit.norms import Norm

__all__ = ["normalize", "normalize_samples", "standardize"]

Tensor = Any


def normalize(
    norm: Norm,
    x: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    *,
    axis: int,
    mask: Tensor | None = None,
    weights: Tensor | None = None,
    replicas: Replicas | None = None,
) -> tuple[Tensor, Moments]:
    """Normalize by statistics of x, and say them.

    PyTorch tensors go through normkit.torch (compiled kernels on the CPU), JAX arrays through
    normkit.jax; what TensorFlow has, and what has weights, goes through Keras' own operations.

    Args:
        axis: of channels, counted from the front.
        gamma, beta: (channels,), or (samples, channels).
        mask: x's shape without the channel axis, true where positions count.
        weights: of the same shape: how much they count; instead of a mask.
        replicas: of other replicas; see :mod:`normkit.keras.replicas`.

    Returns:
        y, and count, mean and M2 without gradients: of batch norm for each channel, of ghost
        batches in rows. Other norms' are not for use.
    """
    if weights is None and _has_engine(x):
        if keras.config.backend() == "torch":
            return _by_torch(norm, x, gamma, beta, axis, mask, replicas)
        from normkit.jax import normalize as by_jax

        return by_jax(norm, x, gamma, beta, axis=axis, mask=mask)
    total = None if replicas is None else replicas.total
    weights = mask if weights is None else weights
    return operations.normalize(norm, x, gamma, beta, axis=axis, weights=weights, total=total)


def _has_engine(x: Tensor) -> bool:
    """Whether the backend's own engine takes x: of known sizes, which a trace may rely on."""
    backend = keras.config.backend()
    if backend == "tensorflow" or not 2 <= len(x.shape) <= 5:
        return False
    if backend == "torch":
        from normkit.torch.transforms import is_recorded

        return not is_recorded()
    return all(isinstance(size, int) for size in x.shape)


def _by_torch(
    norm: Norm, x: Tensor, gamma: Any, beta: Any, axis: int, mask: Any, replicas: Replicas | None
) -> tuple[Tensor, Moments]:
    from normkit.torch.calls import Plan, run

    reducer = None if replicas is None else replicas.reducer(x, axis, mask)
    return run(Plan(norm, axis=axis, mask=mask, reducer=reducer), x, gamma, beta)


def normalize_samples(
    norm: Norm,
    x: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    *,
    axis: int,
    mask: Tensor | None = None,
) -> Tensor:
    """y alone, of a norm that has no running statistics; by PyTorch's operators where quicker."""
    if keras.config.backend() == "torch" and _has_engine(x):
        from normkit.torch.functional import normalize as by_torch

        return by_torch(norm, x, gamma, beta, axis=axis, mask=mask)
    return normalize(norm, x, gamma, beta, axis=axis, mask=mask)[0]


def standardize(
    x: Tensor,
    mean: Tensor,
    var: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    *,
    axis: int,
    eps: float,
) -> Tensor:
    """(x − mean) / sqrt(var + eps) · gamma + beta with one given value for each channel."""
    if keras.config.backend() == "torch" and _has_engine(x):
        from normkit.torch import native
        from normkit.torch.calls import Plan, run

        norm, given = Norm(eps=eps), (ops.convert_to_tensor(mean), ops.convert_to_tensor(var))
        y = native.standardize(norm, x, *given, gamma, beta, axis)
        return run(Plan(norm, axis, statistics=given), x, gamma, beta)[0] if y is None else y
    return operations.standardize(x, mean, var, gamma, beta, axis=axis, eps=eps)
