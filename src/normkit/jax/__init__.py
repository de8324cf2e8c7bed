"""The norms for JAX: pure functions under jit, grad, vmap, pmap and shard_map.

>>> import jax, jax.numpy as jnp, normkit as nk
>>> from normkit.jax import normalize
>>> x = jnp.arange(12.0).reshape(4, 3)
>>> y, moments = jax.jit(lambda x: normalize(nk.BatchNorm(eps=0.0), x))(x)
>>> [round(float(v), 4) for v in y[:, 0]], moments.mean.tolist()
([-1.3416, -0.4472, 0.4472, 1.3416], [4.5, 5.5, 6.5])
"""

from normkit.jax.functional import (
    BatchStats,
    batch_norm,
    group_norm,
    instance_norm,
    layer_norm,
    rms_norm,
)
from normkit.jax.normalizing import AxisName, normalize

__all__ = [
    "AxisName",
    "BatchStats",
    "batch_norm",
    "group_norm",
    "instance_norm",
    "layer_norm",
    "normalize",
    "rms_norm",
]
