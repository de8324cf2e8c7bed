"""Flax NNX: its modules, and normkit.jax.nnx's, which descend from them."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

from normkit.extras import needed
from normkit.models.porting.conventions import CONVENTIONS, lacks
from normkit.models.porting.frameworks.base import (
    Framework,
    channels_first,
    channels_last,
    refuse,
)
from normkit.models.porting.frameworks.precision import held_by_jax, wide_jax, widened
from normkit.models.porting.parity import Outcome
from normkit.models.porting.weights import NormWeights

__all__ = ["Flax", "check_axes", "common_options", "moved_behind"]

Array = Any
KINDS = {
    "BatchNorm": "batch",
    "LayerNorm": "layer",
    "RMSNorm": "rms",
    "GroupNorm": "group",
    "InstanceNorm": "instance",
}
OTHERS = ("WeightNorm", "SpectralNorm")
_VARIABLES = {"gamma": "scale", "beta": "bias", "mean": "mean", "var": "var"}


class Flax(Framework):
    """flax.nnx.Module."""

    name = "flax"

    def owns(self, source: Any) -> bool:
        nnx = sys.modules.get("flax.nnx")
        return nnx is not None and isinstance(source, nnx.Module)

    def version(self) -> str:
        return f"Flax NNX {needed('flax').__version__}"

    def is_layer(self, source: Any) -> bool:
        return class_name(source) is not None

    def layers(self, model: Any) -> list[tuple[str, Any]]:
        modules = needed("flax.nnx").iter_modules(model)
        found = [(".".join(map(str, p)), m) for p, m in modules if self.is_layer(m)]
        return sorted(found, key=lambda pair: _order(model, pair[0]))

    def read(self, layer: Any, name: str = "") -> NormWeights:
        kind = KINDS.get(class_name(layer) or "")
        if kind is None:
            refuse(
                "flax",
                name,
                f"{type(layer).__name__}, which is no norm that is known",
                "Leave it out, or port it by hand.",
            )
        check_axes(layer, kind, "flax", name)
        held = {what: _value(layer, own) for what, own in _VARIABLES.items()}
        arrays: dict[str, Any] = {
            what: None if v is None else np.asarray(v[...]) for what, v in held.items()
        }
        return NormWeights(
            kind,
            (_features(layer),),
            **arrays,
            **common_options(layer, kind),
            groups=layer.num_groups if kind == "group" else None,
            name=name,
            framework="flax",
        )

    def write(self, weights: NormWeights) -> Any:
        layer = _make(weights)
        _fill(layer, weights)
        if weights.kind == "batch":
            layer.set_attributes(use_running_average=True)
        return layer

    def run(self, layer: Any, weights: NormWeights, x: Array, training: bool) -> Outcome:
        nnx = needed("flax.nnx")
        with wide_jax():
            jax = needed("jax")
            graph, state = nnx.split(layer)
            own = nnx.merge(graph, jax.tree.map(widened, state))
            own.dtype = None  # that of what it is given
            own.axis_name = None  # the devices of a pmap, which there is none of here
            options = {"use_running_average": not training} if weights.kind == "batch" else {}
            behind = moved_behind(weights)
            y = own(jax.numpy.asarray(channels_last(x) if behind else x), **options)
            y = np.array(channels_first(y) if behind else y)
            if not (training and weights.kind == "batch"):
                return Outcome(y)
            return Outcome(y, np.array(own.mean[...]), np.array(own.var[...]))

    def assign(self, model: Any, weights: Mapping[str, NormWeights]) -> Any:
        layers = dict(self.layers(model))
        for name, one in weights.items():
            _fill(layers[name], one)
        return model

    def holds(self, weights: NormWeights) -> NormWeights:
        return held_by_jax(weights)


def class_name(layer: Any) -> str | None:
    """Flax' class that a layer is or descends from."""
    for kind in type(layer).__mro__:
        if kind.__module__.startswith("flax.") and kind.__name__ in (*KINDS, *OTHERS):
            return kind.__name__
    return None


def common_options(layer: Any, kind: str) -> dict[str, Any]:
    """What NNX' and Linen's layers say in the same words."""
    batch = kind == "batch"
    synced = getattr(layer, "axis_name", None) is not None
    notes = (f"axis_name={layer.axis_name!r} stays in Flax: it concerns training",)
    return {
        "eps": float(layer.epsilon),
        "keep": float(layer.momentum) if batch else None,
        "variance": "biased" if batch else None,
        "channels": None
        if kind in ("layer", "rms")
        else ("first" if _axis(layer) == 1 else "last"),
        "notes": notes if synced and batch else (),
    }


def _axis(layer: Any) -> int:
    return getattr(layer, "axis", -1)


def check_axes(layer: Any, kind: str, framework: str, name: str) -> None:
    """Channels at axis 1 or last, and sets as every framework has them.

    Raises:
        ModelError: other axes.
    """
    if kind == "batch":
        if _axis(layer) not in (1, -1):
            refuse(
                framework,
                name,
                f"axis={_axis(layer)}",
                "Other frameworks have channels at axis 1 or last: transpose around it.",
            )
        return
    features = _plural(getattr(layer, "feature_axes", -1))
    reduced = getattr(layer, "reduction_axes", None)
    usual = features if kind in ("layer", "rms") else None
    last = features == tuple(range(-len(features), 0))
    if not last or (reduced is not None and _plural(reduced) != usual):
        refuse(
            framework,
            name,
            f"feature_axes={features}, reduction_axes={reduced}",
            "Move the features behind the other axes, and reduce over the same.",
        )
    if getattr(layer, "axis_name", None) is not None:
        refuse(
            framework,
            name,
            f"axis_name={layer.axis_name!r}: features split over devices",
            "Port the layer without it.",
        )


def _plural(axes: Any) -> tuple[int, ...]:
    return (axes,) if isinstance(axes, int) else tuple(sorted(axes))


def moved_behind(weights: NormWeights) -> bool:
    """Whether the layer has the channels behind, where the input has them at axis 1."""
    return weights.kind not in ("layer", "rms") and weights.channels != "first"


def _value(layer: Any, name: str) -> Any:
    """A variable that the layer has; None without."""
    value = getattr(layer, name, None)
    return value if hasattr(value, "get_metadata") else None


def _features(layer: Any) -> int:
    if hasattr(layer, "group_size"):
        return int(layer.num_groups * layer.group_size)
    return int(layer.num_features)


def _make(weights: NormWeights) -> Any:
    nnx = needed("flax.nnx")
    options = {
        "epsilon": weights.eps,
        "param_dtype": weights.dtype.name,
        "use_scale": weights.gamma is not None,
        "rngs": nnx.Rngs(0),
    }
    if weights.kind == "rms":
        return nnx.RMSNorm(weights.size, **options)
    options["use_bias"] = weights.beta is not None
    if weights.kind == "batch":
        axis = 1 if weights.channels == "first" else -1
        momentum = CONVENTIONS["flax"].kept(weights)
        return nnx.BatchNorm(weights.size, axis=axis, momentum=momentum, **options)
    if weights.kind == "group":
        return nnx.GroupNorm(weights.size, weights.groups, **options)
    return (nnx.LayerNorm if weights.kind == "layer" else nnx.InstanceNorm)(weights.size, **options)


def _fill(layer: Any, weights: NormWeights) -> None:
    jax = needed("jax")
    for what, value in weights.arrays().items():
        variable = _value(layer, _VARIABLES[what])
        if variable is None:
            raise lacks(weights, CONVENTIONS["flax"], f"{what} for a layer without", "Give it one.")
        variable[...] = jax.numpy.asarray(value, variable[...].dtype)
    layer.epsilon = weights.eps
    if weights.kind == "batch" and weights.keep is not None:
        layer.momentum = weights.keep


def _order(model: Any, path: str) -> tuple[Any, ...]:
    """By where attributes were set, as a reader of the model's code sees them."""
    found: list[Any] = []
    for part in path.split("."):
        held = vars(model) if hasattr(model, "__dict__") else {}
        names = [n for n in held if not n.startswith("_")]
        found.append(names.index(part) if part in names else int(part) if part.isdigit() else 0)
        model = getattr(model, part, None) if part in names else _item(model, part)
    return tuple(found)


def _item(model: Any, part: str) -> Any:
    try:
        return model[int(part)] if part.isdigit() else model[part]
    except (KeyError, IndexError, TypeError):
        return None
