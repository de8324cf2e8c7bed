"""A norm on whatever backend Keras runs on."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from normkit.keras import operations
from normkit.keras.company import Company
from normkit.moments import Moments
from normkit.norms import Norm

__all__ = ["normalize", "standardize"]

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
    company: Company | None = None,
) -> tuple[Tensor, Moments]:
    """Normalize by statistics of x, and say them.

    PyTorch tensors go through normkit.torch (compiled kernels on the CPU), JAX arrays through
    normkit.jax; what TensorFlow has, and what has weights, goes through Keras' own operations.

    Args:
        axis: of channels, counted from the front.
        gamma, beta: (channels,), or (samples, channels).
        mask: x's shape without the channel axis, true where positions count.
        weights: of the same shape: how much they count; instead of a mask.
        company: of other replicas; see :mod:`normkit.keras.company`.

    Returns:
        y, and count, mean and M2 without gradients: of batch norm for each channel, of ghost
        batches in rows. Other norms' are not for use.
    """
    backend = keras.config.backend()
    if backend == "torch" and weights is None:
        from normkit.torch.calls import Plan, run

        reducer = None if company is None else company.reducer(x, axis, mask)
        return run(Plan(norm, axis=axis, mask=mask, reducer=reducer), x, gamma, beta)
    if backend == "jax" and weights is None:
        from normkit.jax import normalize as under_jax

        return under_jax(norm, x, gamma, beta, axis=axis, mask=mask)
    total = None if company is None else company.total
    weights = mask if weights is None else weights
    return operations.normalize(norm, x, gamma, beta, axis=axis, weights=weights, total=total)


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
    if keras.config.backend() == "torch":
        from normkit.torch.calls import Plan, run

        given = ops.convert_to_tensor(mean), ops.convert_to_tensor(var)
        return run(Plan(Norm(eps=eps), axis=axis, statistics=given), x, gamma, beta)[0]
    return operations.standardize(x, mean, var, gamma, beta, axis=axis, eps=eps)
