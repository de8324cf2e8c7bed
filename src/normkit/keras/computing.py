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
        from normkit.torch.calls import Plan, run

        given = ops.convert_to_tensor(mean), ops.convert_to_tensor(var)
        norm = Norm(eps=eps)
        if _is_small_and_constant(norm, x, axis, *given, gamma, beta):
            return _in_place(x, *given, gamma, beta, axis, eps)
        return run(Plan(norm, axis=axis, statistics=given), x, gamma, beta)[0]
    return operations.standardize(x, mean, var, gamma, beta, axis=axis, eps=eps)


#: Bytes of x up to which PyTorch's operators take less than a call of the kernels: for (1024, 256)
#: in float32 68 µs against 219 on two cores.
_SMALL = 1 << 20


def _is_small_and_constant(norm: Norm, x: Any, axis: int, *parameters: Any) -> bool:
    """Whether nothing will be differentiated, and PyTorch's operators are quicker."""
    import torch

    from normkit.torch.native import is_small

    return (
        not torch.is_grad_enabled()
        and x.dtype in (torch.float32, torch.float64)
        and x.numel() * x.element_size() <= _SMALL
        and is_small(norm, x, axis)
        and all(p is None or (p.ndim == 1 and p.dtype == x.dtype) for p in parameters)
    )


def _in_place(x: Any, mean: Any, var: Any, gamma: Any, beta: Any, axis: int, eps: float) -> Any:
    """By PyTorch's operators; its batch norm would fold the mean into beta and cancel digits."""
    slope = (var + eps).rsqrt()
    slope = slope if gamma is None else slope * gamma
    y = (x - operations.placed(mean, x, axis)).mul_(operations.placed(slope, x, axis))
    return y if beta is None else y.add_(operations.placed(beta, x, axis))
