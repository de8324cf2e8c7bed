"""JAX in float64 for as long as a comparison takes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from normkit.extras import needed
from normkit.models.porting.weights import NormWeights

__all__ = ["held_by_jax", "wide_jax", "widened"]


@contextlib.contextmanager
def wide_jax() -> Iterator[None]:
    """float64 in JAX within the block."""
    jax = needed("jax")
    old = not hasattr(jax, "enable_x64")
    enable = needed("jax.experimental").enable_x64 if old else jax.enable_x64
    with enable(True):
        yield


def widened(leaf: Any) -> Any:
    """A leaf of a pytree in float64; for use within :func:`wide_jax`."""
    jnp = needed("jax.numpy")
    kind = getattr(leaf, "dtype", None)
    if kind is not None and jnp.issubdtype(kind, jnp.floating):
        return jnp.asarray(np.asarray(leaf), "float64")
    counts = kind is not None and jnp.issubdtype(kind, jnp.integer) and not leaf.shape
    return jnp.array(int(leaf)) if counts else leaf  # as wide as a 1 that is added to it


def held_by_jax(weights: NormWeights) -> NormWeights:
    """The weights as JAX holds them: float64 only where the user has enabled it."""
    if weights.dtype == np.float32 or needed("jax").config.jax_enable_x64:
        return weights
    narrow = weights.rounded(np.float32)
    return narrow.noted("float64 rounded to float32: jax_enable_x64 is off")
