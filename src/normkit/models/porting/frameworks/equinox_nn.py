"""Equinox: modules, with an ``equinox.nn.State`` where they are batch norms."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

from normkit.errors import ModelError
from normkit.extras import needed
from normkit.models.porting.frameworks.base import Framework, refuse
from normkit.models.porting.frameworks.precision import held_by_jax, wide_jax, widened
from normkit.models.porting.parity import Outcome
from normkit.models.porting.weights import NormWeights, whole_sizes

__all__ = ["Equinox"]

Array = Any
KINDS = {"BatchNorm": "batch", "LayerNorm": "layer", "RMSNorm": "rms", "GroupNorm": "group"}
OTHERS = ("SpectralNorm", "WeightNorm")
_AXIS = "batch"  # of a new batch norm: the name that Equinox' documentation gives the vmapped axis


class Equinox(Framework):
    """equinox.Module, alone or as (module, state)."""

    name = "equinox"

    def owns(self, source: Any) -> bool:
        eqx = sys.modules.get("equinox")
        return eqx is not None and isinstance(_split(source)[0], eqx.Module)

    def version(self) -> str:
        return f"Equinox {needed('equinox').__version__}"

    def is_layer(self, source: Any) -> bool:
        return _class_name(_split(source)[0]) is not None

    def layers(self, model: Any) -> list[tuple[str, Any]]:
        module, state = _split(model)
        return [(name, (layer, state)) for name, layer in _named(module).items()]

    def read(self, layer: Any, name: str = "") -> NormWeights:
        module, state = _split(layer)
        kind = KINDS.get(_class_name(module) or "")
        if kind is None:
            refuse(
                "equinox",
                name,
                f"{type(module).__name__}, which is no norm that is known",
                "Leave it out, or port it by hand.",
            )
        common: dict[str, Any] = {
            "eps": float(module.eps),
            "gamma": _array(getattr(module, "weight", None)),
            "beta": _array(getattr(module, "bias", None)),
            "name": name,
            "framework": "equinox",
        }
        if kind == "batch":
            return _read_batch(module, state, common)
        if kind == "group":
            shape = whole_sizes((module.channels,), name)
            return NormWeights(kind, shape, groups=module.groups, channels="first", **common)
        return NormWeights(kind, whole_sizes(module.shape, name), **common)

    def write(self, weights: NormWeights) -> Any:
        nn, dtype = needed("equinox").nn, weights.dtype
        affine = weights.gamma is not None
        if weights.kind == "batch":
            keep = self.convention.kept(weights)
            layer, state = nn.make_with_state(nn.BatchNorm)(
                weights.size, _AXIS, weights.eps, affine, keep, True, dtype, mode="batch"
            )
            return _fill(layer, state, weights)
        if weights.kind in ("group", "instance"):
            groups = weights.groups if weights.kind == "group" else weights.size
            layer = nn.GroupNorm(groups, weights.size, weights.eps, affine, dtype)
        else:
            made = nn.LayerNorm if weights.kind == "layer" else nn.RMSNorm
            biased = weights.beta is not None
            layer = made(weights.shape, weights.eps, affine, biased, dtype)
        return _fill(layer, None, weights)[0]

    def run(self, layer: Any, weights: NormWeights, x: Array, training: bool) -> Outcome:
        module, state = _split(layer)
        with wide_jax():
            jax = needed("jax")
            module, state = jax.tree.map(widened, (module, state))
            given = jax.numpy.asarray(x)
            if weights.kind != "batch":
                return Outcome(np.array(jax.vmap(module)(given)))
            module = _with(module, axis_name=_AXIS)  # of several names, all but one are devices'
            y, after = jax.vmap(
                lambda one: module(one, state, inference=not training),
                axis_name=_AXIS, out_axes=(0, None),
            )(given)  # fmt: skip
            if not training:
                return Outcome(np.array(y))
            return Outcome(np.array(y), *map(np.array, _statistics(module, after)[:2]))

    def assign(self, model: Any, weights: Mapping[str, NormWeights]) -> Any:
        module, state = _split(model)
        layers = _named(module)
        new = {}
        state = _copied(state)
        for name, one in weights.items():
            new[name], state = _fill(layers[name], state, one)
        eqx = needed("equinox")
        # Names are walked again in the tree that tree_at hands over.
        changed = eqx.tree_at(
            lambda tree: [_named(tree)[name] for name in new], module, list(new.values()),
            is_leaf=lambda node: node is None,
        )  # fmt: skip
        return changed if _split(model)[1] is None else (changed, state)

    def holds(self, weights: NormWeights) -> NormWeights:
        if weights.kind == "batch" and weights.keep == 1.0:
            refuse(
                "equinox",
                weights.name,
                "statistics that never move (weight 1 of the old)",
                "Equinox divides by one minus it: choose a weight below 1.",
            )
        if weights.kind == "batch" and _settling(self.convention.kept(weights)) >= 2**31:
            refuse(
                "equinox",
                weights.name,
                f"statistics that hardly move (weight {weights.keep} of the old)",
                "Equinox counts batches in 32 bits, too few to debias: choose a smaller weight.",
            )
        return held_by_jax(weights)


def _split(source: Any) -> tuple[Any, Any]:
    pair = isinstance(source, tuple) and len(source) == 2
    return (source[0], source[1]) if pair else (source, None)


def _class_name(module: Any) -> str | None:
    for kind in type(module).__mro__:
        own = kind.__module__.startswith("equinox.")
        if own and kind.__name__ in (*KINDS, *OTHERS):
            return kind.__name__
    return None


def _named(module: Any) -> dict[str, Any]:
    """The norm layers within a module by their paths."""
    leaves, _ = needed("jax").tree_util.tree_flatten_with_path(
        module, is_leaf=lambda node: _class_name(node) is not None
    )
    found = [(path, node) for path, node in leaves if _class_name(node) is not None]
    return {".".join(_word(key) for key in path): node for path, node in found}


def _word(key: Any) -> str:
    for attribute in ("name", "idx", "key"):
        if hasattr(key, attribute):
            return str(getattr(key, attribute))
    return str(key)


def _array(value: Any) -> Array | None:
    return None if value is None else np.asarray(value)


def _read_batch(module: Any, state: Any, common: dict[str, Any]) -> NormWeights:
    if state is None:
        raise ModelError(
            "A batch norm of Equinox keeps its statistics in a state",
            received="a module alone",
            expected="(module, state)",
            remedy="make_with_state gives both: port((module, state), …).",
        )
    mean, var, seen = _statistics(module, state)
    notes = ["its state has seen no batch"] if seen == 0 else []
    if not isinstance(module.axis_name, str):
        notes.append(f"axis_name={module.axis_name!r} stays in Equinox: it concerns training")
    return NormWeights(
        "batch",
        (module.input_size,),
        mean=np.asarray(mean),
        var=np.asarray(var),
        keep=float(module.momentum),
        variance="biased",
        channels="first",
        seen=seen if module.mode == "batch" and not _settled(module, seen) else None,
        lagging=module.mode == "ema",
        notes=tuple(notes),
        **common,
    )


def _statistics(module: Any, state: Any) -> tuple[Any, Any, int]:
    """Mean and variance as inference uses them, and the batches that have been seen."""
    if module.mode == "ema":
        mean, var = state.get(module.ema_state_index)
        fresh = bool(state.get(module.ema_first_time_index))
        if fresh:
            raise ModelError(
                "The layer has no running statistics yet",
                received="a batch norm in mode='ema' whose state has seen no batch",
                expected="statistics of at least one batch",
                remedy="Run it on a batch in training first.",
            )
        return mean, var, 1
    seen = int(state.get(module.batch_counter))
    mean, var = state.get(module.batch_state_index)
    if seen == 0:
        return mean, var, seen
    # Zero-debiasing, as equinox.nn.BatchNorm does it in inference; in float64, rounded once later.
    scale = 1.0 - module.momentum**seen
    return *(np.asarray(value, np.float64) / scale for value in (mean, var)), seen


def _settled(module: Any, seen: int) -> bool:
    return seen >= _settling(module.momentum)


def _settling(keep: float) -> int:
    """Batches after which debiasing divides by 1 in float64: the statistics are then as stored."""
    return 1 if keep <= 0.0 else math.ceil(-60 * math.log(2.0) / math.log(keep))


def _fill(layer: Any, state: Any, weights: NormWeights) -> tuple[Any, Any]:
    """The layer and its state with these weights; both new."""
    eqx, jnp = needed("equinox"), needed("jax.numpy")
    for name, value in (("weight", weights.gamma), ("bias", weights.beta)):
        if value is not None:
            held = getattr(layer, name)
            new = jnp.asarray(value, held.dtype)
            layer = eqx.tree_at(lambda tree, name=name: getattr(tree, name), layer, new)
    layer = _with(layer, eps=weights.eps)
    if weights.kind != "batch":
        return layer, state
    if weights.keep is not None:
        layer = _with(layer, momentum=weights.keep)
    ema = layer.mode == "ema"
    place = layer.ema_state_index if ema else layer.batch_state_index
    old = state.get(place)
    new = tuple(
        jnp.asarray(v, o.dtype) for v, o in zip((weights.mean, weights.var), old, strict=True)
    )
    state = state.set(place, new)
    if ema:
        return layer, state.set(layer.ema_first_time_index, jnp.array(False))
    settled = state.get(layer.batch_counter) * 0 + _settling(layer.momentum)  # of the same dtype
    return layer, state.set(layer.batch_counter, settled)


def _with(layer: Any, **options: Any) -> Any:
    """A copy with other static fields."""
    if all(getattr(layer, name) == value for name, value in options.items()):
        return layer
    made = object.__new__(type(layer))
    for name, value in {**vars(layer), **options}.items():
        object.__setattr__(made, name, value)
    return made


def _copied(state: Any) -> Any:
    """State.set makes the state that it is called on invalid; the user keeps his."""
    if state is None:
        return None
    jax = needed("jax")
    leaves, structure = jax.tree.flatten(state)
    return jax.tree.unflatten(structure, leaves)
