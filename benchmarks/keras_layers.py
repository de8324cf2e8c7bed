"""Networks of norms alone, of Keras' layers and of normkit's, side by side on one Keras backend.

KERAS_BACKEND=jax python -m benchmarks.keras_layers
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import keras
import numpy as np

import normkit.keras
from benchmarks import figures

__all__ = ["CASES", "main", "ratios"]

#: A layer, its options, and the shape of a batch; channels come last.
CASES: tuple[tuple[str, dict[str, Any], tuple[int, ...]], ...] = (
    ("BatchNormalization", {}, (16, 32, 32, 64)),
    ("BatchNormalization", {}, (1024, 256)),
    ("GroupNormalization", {"groups": 8}, (16, 32, 32, 64)),
    ("LayerNormalization", {}, (16, 128, 256)),
    ("RMSNormalization", {}, (16, 128, 256)),
)
LAYERS, ROUNDS = 4, 15


def network(kit: Any, name: str, options: dict[str, Any], shape: tuple[int, ...]) -> keras.Model:
    """Norms and activations in turn, so that nothing else takes time."""
    x = inputs = keras.Input(shape[1:])
    for _ in range(LAYERS):
        x = keras.layers.Activation("relu")(getattr(kit, name)(**options)(x))
    model = keras.Model(inputs, keras.layers.Dense(1)(x))
    model.compile("sgd", "mse")
    return model


def ratios(name: str, options: dict[str, Any], shape: tuple[int, ...]) -> dict[str, float]:
    """normkit's median time over Keras', of a training step and of a prediction."""
    x = np.random.default_rng(0).normal(size=shape).astype("float32")
    target = np.zeros((*shape[:-1], 1), "float32")
    theirs, ours = (network(kit, name, options, shape) for kit in (keras.layers, normkit.keras))
    steps: dict[str, Callable[[keras.Model], Any]] = {
        "training": lambda model: model.train_on_batch(x, target),
        "prediction": lambda model: model.predict_on_batch(x),
    }
    found = {}
    for what, step in steps.items():
        mine, keras_own = figures.in_turn([partial(step, m) for m in (ours, theirs)], ROUNDS, 2)
        found[what] = mine / keras_own
    return found


def main() -> None:
    """Print a line for each case."""
    print(f"normkit's time over Keras', {keras.config.backend()}, medians of {ROUNDS}")
    for name, options, shape in CASES:
        found = ratios(name, options, shape)
        words = ", ".join(f"{what} {ratio:.2f}" for what, ratio in found.items())
        print(f"{name:20} {shape!s:20} {words}")


if __name__ == "__main__":
    main()
