"""normkit.jax beside the formula as one writes it in JAX, side by side, compiled.

python -m benchmarks.jax_formula
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

import normkit as nk
from benchmarks import figures
from normkit.jax import normalize

__all__ = ["CASES", "formula", "main", "ours"]

Layer = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]

#: What is normalized, the shape, the axis of the channels, and the axes of a set.
CASES: tuple[tuple[str, nk.Norm, tuple[int, ...], int, tuple[int, ...]], ...] = (
    ("batch norm", nk.BatchNorm(), (64, 32, 32, 32), 3, (0, 1, 2)),
    ("batch norm", nk.BatchNorm(), (64, 32, 32, 32), 1, (0, 2, 3)),
    ("layer norm", nk.LayerNorm(), (4096, 512), 1, (1,)),
)
ROUNDS = 9


def formula(axis: int, axes: tuple[int, ...]) -> Layer:
    """(x − mean) / sqrt(var + eps) · gamma + beta, with the variance of what is apart."""

    def layer(x: jax.Array, gamma: jax.Array, beta: jax.Array) -> jax.Array:
        row = [size if i == axis else 1 for i, size in enumerate(x.shape)]
        apart = x - x.mean(axes, keepdims=True)
        y = apart * jax.lax.rsqrt((apart * apart).mean(axes, keepdims=True) + 1e-5)
        return y * gamma.reshape(row) + beta.reshape(row)

    return layer


def ours(norm: nk.Norm, axis: int) -> Layer:
    """The same by normkit."""
    return lambda x, gamma, beta: normalize(norm, x, gamma, beta, axis=axis)[0]


def _alone(layer: Layer, shape: tuple[int, ...], axis: int) -> dict[str, Callable[[], Any]]:
    x, dy = jax.random.normal(jax.random.key(0), (2, *shape))
    gamma, beta = jnp.ones(shape[axis]), jnp.zeros(shape[axis])
    forward = jax.jit(layer)
    both = jax.jit(lambda *given: jax.vjp(layer, *given[:3])[1](given[3]))
    return {
        "forward": lambda: forward(x, gamma, beta),
        "with backward": lambda: both(x, gamma, beta, dy),
    }


def _in_a_network(layer: Layer) -> dict[str, Callable[[], Any]]:
    """The gradient of a small convolutional network, channels last."""

    def loss(kernels: list[jax.Array], x: jax.Array) -> jax.Array:
        for kernel in kernels:
            numbers = ("NHWC", "HWIO", "NHWC")
            x = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=numbers)
            x = jax.nn.relu(layer(x, jnp.ones(32), jnp.zeros(32)))
        return jnp.square(x.mean((1, 2))).sum()

    x = jax.random.normal(jax.random.key(0), (64, 32, 32, 32))
    kernels = [0.1 * jax.random.normal(jax.random.key(i), (3, 3, 32, 32)) for i in range(3)]
    step = jax.jit(jax.grad(loss))
    return {"gradient": lambda: step(kernels, x)}


def _report(what: str, steps: dict[str, Callable[[], Any]], plain: dict[str, Any]) -> None:
    for name, step in steps.items():
        ready = [lambda run=run: jax.block_until_ready(run()) for run in (step, plain[name])]
        mine, theirs = figures.in_turn(ready, ROUNDS, 1)
        print(f"{what:48} {name:14} {1e3 * mine:6.1f} ms, {mine / theirs:.2f} times the formula's")


def main() -> None:
    """Print a line for each case."""
    for name, norm, shape, axis, axes in CASES:
        layers = ours(norm, axis), formula(axis, axes)
        what = f"{name} {shape}, channels on axis {axis}"
        _report(what, *(_alone(layer, shape, axis) for layer in layers))
    last = ours(nk.BatchNorm(), 3), formula(3, (0, 1, 2))
    _report("convolutions with batch norm, channels last", *map(_in_a_network, last))


if __name__ == "__main__":
    main()
