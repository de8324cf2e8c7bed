"""Batch norm in JAX: statistics are a value that goes in and comes out, under jit and grad.

A pure function takes the running statistics and returns new ones, so a training step can be jitted
as a whole. The data lie at a mean of 10,000 deviations, where the formula E[x²] − E[x]², which is
common for being quick, has lost every digit in float32.
"""

import jax
import jax.numpy as jnp
import numpy as np

from normkit.jax import BatchStats, batch_norm

rng = np.random.default_rng(0)
hidden = rng.normal(size=(512, 1))
x = jnp.asarray(1e4 + hidden + 0.5 * rng.normal(size=(512, 8)), jnp.float32)
y = jnp.asarray(np.tanh(hidden[:, 0]), jnp.float32)

naive = (x**2).mean(0) - x.mean(0) ** 2
exact = np.asarray(x, np.float64).var(0)
_, seen = batch_norm(x, BatchStats.start(8), training=True, momentum=0.0)
print(f"variance of the first column: {exact[0]:.3f}")
print(f"largest error of normkit: {abs(np.asarray(seen.var) - exact).max():.0e}")
print(f"largest error of E[x²] − E[x]²: {abs(np.asarray(naive) - exact).max():.1f}")


def loss(weights: jax.Array, stats: BatchStats) -> tuple[jax.Array, BatchStats]:
    features, stats = batch_norm(x, stats, training=True, momentum=0.9)
    return jnp.mean((jnp.tanh(features @ weights) - y) ** 2), stats


@jax.jit
def step(weights: jax.Array, stats: BatchStats) -> tuple[jax.Array, BatchStats, jax.Array]:
    (value, stats), slope = jax.value_and_grad(loss, has_aux=True)(weights, stats)
    return weights - 0.1 * slope, stats, value


weights, stats = jnp.zeros(8), BatchStats.start(8)
for number in range(200):
    weights, stats, value = step(weights, stats)
    if number in (0, 199):
        print(f"loss after {number} steps: {value:.3f}")


features, _ = batch_norm(x, stats, training=False)  # each sample alone, with what was gathered
print(f"loss at test time: {jnp.mean((jnp.tanh(features @ weights) - y) ** 2):.3f}")
