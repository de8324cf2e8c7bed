"""Flax Linen: a module with its variables, or the variables of a whole model."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

from normkit.errors import ModelError
from normkit.extras import needed
from normkit.models.porting.conventions import CONVENTIONS
from normkit.models.porting.frameworks.base import (
    Framework,
    channels_first,
    channels_last,
    refuse,
)
from normkit.models.porting.frameworks.flax_nnx import (
    KINDS,
    check_axes,
    class_name,
    common_options,
    moved_behind,
)
from normkit.models.porting.frameworks.precision import held_by_jax, wide_jax
from normkit.models.porting.parity import Outcome
from normkit.models.porting.weights import NormWeights

__all__ = ["Linen", "flat_variables"]

Array = Any
_PLACES = {
    "gamma": ("params", "scale"),
    "beta": ("params", "bias"),
    "mean": ("batch_stats", "mean"),
    "var": ("batch_stats", "var"),
}


class Linen(Framework):
    """(flax.linen.Module, variables), and pytrees of variables."""

    name = "linen"

    def owns(self, source: Any) -> bool:
        return self.is_layer(source) or _is_variables(source)

    def version(self) -> str:
        return f"Flax Linen {needed('flax').__version__}"

    def is_layer(self, source: Any) -> bool:
        linen = sys.modules.get("flax.linen")
        pair = isinstance(source, tuple) and len(source) == 2
        return pair and linen is not None and isinstance(source[0], linen.Module)

    def layers(self, model: Any) -> list[tuple[str, Any]]:
        """A norm with its variables; variables alone do not say what their layers compute."""
        return [("", model)] if self.is_layer(model) else []

    def read(self, layer: Any, name: str = "") -> NormWeights:
        module, variables = layer
        kind = KINDS.get(class_name(module) or "")
        if kind is None:
            refuse(
                "linen",
                name,
                f"{type(module).__name__}, which is no norm that is known",
                "Of a model, port the variables, with eps=.",
            )
        check_axes(module, kind, "linen", name)
        held: dict[str, Any] = {what: _get(variables, *place) for what, place in _PLACES.items()}
        known = [v for v in held.values() if v is not None]
        if not known:
            raise ModelError(
                "The number of channels is not known",
                received=f"{type(module).__name__} without scale, bias and statistics",
                expected="variables that say it",
                remedy="Such a layer has nothing to move: make it in the other framework.",
            )
        arrays: dict[str, Any] = {w: None if v is None else np.asarray(v) for w, v in held.items()}
        return NormWeights(
            kind,
            tuple(known[0].shape),
            **arrays,
            **common_options(module, kind),
            groups=_groups(module, known[0].shape[-1]) if kind == "group" else None,
            name=name,
            framework="linen",
        )

    def write(self, weights: NormWeights) -> Any:
        variables: dict[str, dict[str, Any]] = {}
        for what, value in weights.arrays().items():
            collection, own = _PLACES[what]
            variables.setdefault(collection, {})[own] = needed("jax.numpy").asarray(value)
        return _module(weights), variables

    def run(self, layer: Any, weights: NormWeights, x: Array, training: bool) -> Outcome:
        module, variables = layer
        with wide_jax():
            jnp = needed("jax.numpy")
            module = module.clone(dtype=None, param_dtype="float64", axis_name=None)
            wide = {
                collection: {n: jnp.asarray(np.asarray(v), "float64") for n, v in held.items()}
                for collection, held in variables.items()
            }
            behind, batch = moved_behind(weights), weights.kind == "batch"
            given = jnp.asarray(channels_last(x) if behind else x)
            if batch:
                module = module.clone(use_running_average=not training)
            moving = ["batch_stats"] if batch and training else False
            result = module.apply(wide, given, mutable=moving)
            y, moved = result if moving else (result, None)
            y = np.array(channels_first(y) if behind else y)
            if moved is None:
                return Outcome(y)
            return Outcome(y, *(np.array(moved["batch_stats"][n]) for n in ("mean", "var")))

    def assign(self, model: Any, weights: Mapping[str, NormWeights]) -> Any:
        if self.is_layer(model):
            module, variables = model
            return module, self.assign(variables, weights)
        changed = _copied(model)
        for name, one in weights.items():
            for what, value in one.arrays().items():
                collection, own = _PLACES[what]
                place = _inner(changed.get(collection, {}), name)
                if place is None or own not in place:
                    raise ModelError(
                        "The variables have no place for a weight",
                        received=f"{what} of {name}",
                        expected=f"{own} in {collection}",
                        remedy="Make the model's norm with use_scale, use_bias as in the source.",
                    )
                place[own] = needed("jax.numpy").asarray(value, place[own].dtype)
        return changed

    def holds(self, weights: NormWeights) -> NormWeights:
        return held_by_jax(weights)


def flat_variables(variables: Any) -> dict[str, Array]:
    """Variables by their paths: ``params/block/bn/scale``."""
    found: dict[str, Array] = {}

    def visit(tree: Any, path: str) -> None:
        for name, value in tree.items():
            below = f"{path}/{name}" if path else str(name)
            if isinstance(value, Mapping):
                visit(value, below)
            else:
                found[below] = np.asarray(getattr(value, "value", value))

    visit(variables, "")
    return found


def _is_variables(source: Any) -> bool:
    return isinstance(source, Mapping) and isinstance(source.get("params"), Mapping)


def _get(variables: Any, collection: str, name: str) -> Any:
    return variables.get(collection, {}).get(name)


def _groups(module: Any, channels: int) -> int:
    return int(module.num_groups or channels // module.group_size)


def _module(weights: NormWeights) -> Any:
    linen = needed("flax.linen")
    options: dict[str, Any] = {"epsilon": weights.eps, "use_scale": weights.gamma is not None}
    axes = tuple(range(-len(weights.shape), 0))
    if weights.kind == "rms":
        return linen.RMSNorm(reduction_axes=axes, feature_axes=axes, **options)
    options["use_bias"] = weights.beta is not None
    if weights.kind == "layer":
        return linen.LayerNorm(reduction_axes=axes, feature_axes=axes, **options)
    if weights.kind == "group":
        return linen.GroupNorm(weights.groups, **options)
    if weights.kind == "instance":
        return linen.InstanceNorm(**options)
    axis = 1 if weights.channels == "first" else -1
    momentum = CONVENTIONS["linen"].kept(weights)
    return linen.BatchNorm(True, axis=axis, momentum=momentum, **options)


def _copied(tree: Any) -> Any:
    return {k: _copied(v) if isinstance(v, Mapping) else v for k, v in tree.items()}


def _inner(tree: Any, path: str) -> Any:
    for part in path.split("/") if path else ():
        tree = tree.get(part) if isinstance(tree, Mapping) else None
    return tree
