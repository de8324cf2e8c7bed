"""Keras 3: its layers in memory, on any backend."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from typing import Any

import numpy as np

from normkit.errors import ModelError
from normkit.extras import needed
from normkit.models.porting.conventions import CONVENTIONS
from normkit.models.porting.frameworks.base import Framework, channels_first, channels_last
from normkit.models.porting.frameworks.keras_config import (
    KINDS,
    is_norm,
    weights_of_config,
)
from normkit.models.porting.frameworks.precision import wide_jax
from normkit.models.porting.parity import Outcome
from normkit.models.porting.weights import NormWeights

__all__ = ["Keras", "layer_of_config"]

Array = Any
_VARIABLES = {
    "gamma": ("gamma", "scale"),
    "beta": ("beta",),
    "mean": ("moving_mean",),
    "var": ("moving_variance",),
}


class Keras(Framework):
    """keras.layers.Layer."""

    name = "keras"
    wide = False  # its batch norm computes in float32 whatever it is given

    def owns(self, source: Any) -> bool:
        held = sys.modules.get("keras")
        return held is not None and isinstance(source, held.layers.Layer)

    def version(self) -> str:
        held = keras()
        return f"Keras {held.__version__} on {held.backend.backend()}"

    def is_layer(self, source: Any) -> bool:
        return _class_name(source) is not None

    def layers(self, model: Any) -> list[tuple[str, Any]]:
        found: dict[int, tuple[str, Any]] = {}
        for name, layer in _walk(model, ""):
            if self.is_layer(layer):
                found.setdefault(id(layer), (name, layer))  # a shared layer once
        return list(found.values())

    def read(self, layer: Any, name: str = "") -> NormWeights:
        name = name or layer.name
        if not layer.built:
            raise ModelError(
                "A layer without weights cannot be ported",
                received=f"{type(layer).__name__} {name}, which was not built",
                expected="a layer that has seen an input's shape",
                remedy="Call it on an example, or layer.build(input_shape).",
            )
        arrays = [np.array(keras().ops.convert_to_numpy(v)) for v in _variables(layer)]
        shape = _input_shape(layer)
        class_name = _class_name(layer) or type(layer).__name__
        return weights_of_config(class_name, layer.get_config(), arrays, shape, name)

    def write(self, weights: NormWeights) -> Any:
        layer = _make(weights, weights.dtype.name)
        _fill(layer, weights)
        return layer

    def run(self, layer: Any, weights: NormWeights, x: Array, training: bool) -> Outcome:
        moves = weights.kind not in ("layer", "rms") and weights.channels != "first"
        with _wide_backend():
            own = _copy(layer, (channels_last(x) if moves else x).shape)
            if weights.kind == "batch":
                own.moving_mean.assign(np.asarray(weights.mean, np.float64))
            given = keras().ops.convert_to_tensor(channels_last(x) if moves else x)
            y = _numpy(own(given, training=True) if training else own(given))
            y = channels_first(y) if moves else y
            if not (training and weights.kind == "batch"):
                return Outcome(y)
            return Outcome(y, _numpy(own.moving_mean), _numpy(own.moving_variance))

    def assign(self, model: Any, weights: Mapping[str, NormWeights]) -> Any:
        layers = dict(self.layers(model))
        for name, one in weights.items():
            _fill(layers[name], one)
        return model

    def unknown_rank(self, weights: NormWeights) -> str:
        ranked = weights.kind not in ("layer", "rms") and weights.dims is None
        return "Keras builds a layer for a number of axes" if ranked else ""


def keras() -> Any:
    """Keras; on PyTorch where nobody says on what, and TensorFlow, its own choice, is missing.

    Raises:
        ModuleNotFoundError: Keras, or what it is to run on, is not installed.
    """
    if "keras" not in sys.modules and find_spec("tensorflow") is None:
        os.environ.setdefault("KERAS_BACKEND", "torch")
    try:
        return needed("keras")
    except ModuleNotFoundError as error:
        if error.name not in ("tensorflow", "jax", "torch", "openvino"):
            raise
        words = (
            f"Keras is to run on {error.name}, which is not installed; set KERAS_BACKEND=torch "
            f"before Keras is imported, or install {error.name}"
        )
        raise ModuleNotFoundError(words, name=error.name) from error


def layer_of_config(class_name: str, config: Mapping[str, Any], shape: Any, arrays: Any) -> Any:
    """One of Keras' own layers from a file's configuration; no other class is made."""
    own = {key: value for key, value in config.items() if key in _MADE_WITH}
    if class_name == "InstanceNormalization":  # normkit's
        class_name, own["groups"] = "GroupNormalization", -1
    layer = getattr(keras().layers, class_name)(**own)
    layer.build(shape)
    layer.set_weights(arrays)
    return layer


_MADE_WITH = ("name", "axis", "momentum", "epsilon", "center", "scale", "groups")


def _walk(model: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    """A model's layers by the names on the way to them; inner ones too, but those of a norm."""
    for layer in getattr(model, "layers", None) or model._layers:
        name = f"{prefix}{layer.name}"
        yield name, layer
        if _class_name(layer) is None:
            yield from _walk(layer, f"{name}/")


def _class_name(layer: Any) -> str | None:
    """The norm that a layer is: its class, or Keras' class that it descends from."""
    names = [kind.__name__ for kind in type(layer).__mro__]
    known = next((name for name in names if name in KINDS), None)
    return known or (names[0] if is_norm(names[0]) else None)


def _variables(layer: Any) -> list[Any]:
    """Gamma, beta, moving mean and variance as far as it has them, then what else it has."""
    named = [getattr(layer, n, None) for names in _VARIABLES.values() for n in names]
    known = [v for v in named if v is not None and hasattr(v, "shape")]
    ids = {id(v) for v in known}
    return known + [v for v in layer.variables if id(v) not in ids]


def _input_shape(layer: Any) -> Any:
    config = layer.get_build_config() or {}
    shape = config.get("input_shape")
    if shape is None and getattr(layer, "input_spec", None) is not None:
        spec = layer.input_spec
        shape = [None] * (spec.ndim or 0) or None
    return shape


def _make(weights: NormWeights, dtype: str) -> Any:
    layers = keras().layers
    options = {"epsilon": weights.eps, "dtype": dtype}
    if weights.kind == "rms":
        layer = layers.RMSNormalization(axis=_last(weights), **options)
        layer.build((None, *weights.shape))
        return layer
    options |= {"scale": weights.gamma is not None, "center": weights.beta is not None}
    if weights.kind == "layer":
        layer = layers.LayerNormalization(axis=_last(weights), **options)
        layer.build((None, *weights.shape))
        return layer
    first = weights.channels == "first"
    options["axis"] = 1 if first else -1
    if weights.kind == "batch":
        options |= {"momentum": CONVENTIONS["keras"].kept(weights)}
        layer = layers.BatchNormalization(**options)
    else:
        groups = -1 if weights.kind == "instance" else weights.groups
        layer = layers.GroupNormalization(groups, **options)
    positions = [None] * (weights.dims or 0)
    layer.build((None, weights.size, *positions) if first else (None, *positions, weights.size))
    return layer


def _last(weights: NormWeights) -> Any:
    axes = list(range(-len(weights.shape), 0))
    return axes[0] if len(axes) == 1 else axes


def _fill(layer: Any, weights: NormWeights) -> None:
    for what, value in weights.arrays().items():
        held = (getattr(layer, name, None) for name in _VARIABLES[what])
        variable = next(v for v in held if v is not None and hasattr(v, "assign"))
        variable.assign(value.astype(keras().backend.standardize_dtype(variable.dtype)))
    layer.epsilon = weights.eps
    if weights.kind == "batch" and weights.keep is not None:
        layer.momentum = weights.keep


def _copy(layer: Any, shape: tuple[int, ...]) -> Any:
    """The same layer in float64, trainable, so that training moves its statistics."""
    config = {**layer.get_config(), "dtype": "float64", "trainable": True}
    if "synchronized" in config:  # which wants several devices
        config["synchronized"] = False
    own = type(layer).from_config(config)
    own.build((None, *shape[1:]))
    # By name rather than by place: variables differ in order where a layer is frozen.
    for variable, held in zip(_variables(own), _variables(layer), strict=True):
        variable.assign(keras().ops.cast(held, "float64"))
    return own


def _numpy(tensor: Any) -> Array:
    return np.array(keras().ops.convert_to_numpy(tensor), np.float64)


@contextlib.contextmanager
def _wide_backend() -> Iterator[None]:
    """JAX computes in float64 only where it is told to."""
    if keras().backend.backend() != "jax":
        yield
        return
    with wide_jax():
        yield
