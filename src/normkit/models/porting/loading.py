"""Ported weights into a model that is there: each of its layers is then read, run and compared."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from normkit.errors import ModelError, ParityError, is_explained
from normkit.models.opening.named import named_sites
from normkit.models.porting.conventions import convention
from normkit.models.porting.frameworks import owner
from normkit.models.porting.frameworks.base import Framework
from normkit.models.porting.frameworks.flax_linen import flat_variables
from normkit.models.porting.frameworks.torch_nn import weights_of_site
from normkit.models.porting.layer import PortedLayer
from normkit.models.porting.matching import matched
from normkit.models.porting.parity import compare
from normkit.models.porting.weights import NormWeights
from normkit.words import counted, first_line, listed

__all__ = ["check_same", "load", "silence"]


def load(
    ported: Sequence[PortedLayer],
    target: str,
    model: Any,
    names: Mapping[str, str] | None,
    match: str,
    say: Callable[[str], Any],
) -> Any:
    """See :meth:`normkit.models.Ported.into`."""
    there = owner(model)
    if there is None or there.name != target:
        raise ModelError(
            "The model is of another framework",
            received=type(model).__name__ if there is None else there.convention.title,
            expected=convention(target).title,
            remedy="port() to the model's framework.",
        )
    if there.name == "linen" and not there.is_layer(model):
        return _into_variables(there, model, [one.after for one in ported], names, match, say)
    theirs, unread = _readable(there, model)
    pairs = matched({one.after.name: one.after for one in ported}, theirs, names, match)
    new = {pairs[w.name]: _fitted(w, theirs[pairs[w.name]]) for w in (o.after for o in ported)}
    try:
        changed = there.assign(model, new)
        layers = dict(there.layers(changed))
        for name, weights in new.items():
            _prove(there, layers[name], weights)
    except BaseException:
        there.assign(model, {name: theirs[name] for name in new})
        raise
    _say_unfilled(say, [name for name in (*theirs, *unread) if name not in new])
    return changed


def silence(_: str) -> None:
    """Takes a line and leaves it at that."""


def _say_unfilled(say: Callable[[str], Any], names: Sequence[str]) -> None:
    if names:
        say(f"into: not filled: {counted(len(names), 'norm')} of the model ({listed(names, 6)})")


def _into_variables(
    there: Framework,
    variables: Any,
    layers: Sequence[NormWeights],
    names: Mapping[str, str] | None,
    match: str,
    say: Callable[[str], Any],
) -> Any:
    """Linen's variables say what has which shape, and no more: nothing can be run."""
    arrays = {name: torch.from_numpy(v.copy()) for name, v in flat_variables(variables).items()}
    sites = (
        replace(site, kind="layer" if site.var is None else "batch", eps=0.0)
        for site in named_sites(arrays)
    )
    theirs = {site.name: weights_of_site(site, "linen") for site in sites}
    pairs = matched({w.name: _unnamed(w) for w in layers}, theirs, names, match)
    for weights in layers:
        _check_named_kind(weights, pairs[weights.name])
    changed = there.assign(
        variables, {pairs[w.name]: _fitted(w, theirs[pairs[w.name]]) for w in layers}
    )
    say("into: variables do not say what their modules compute: nothing was run there")
    for weights in layers:
        say(f"into: set in the module of {pairs[weights.name]}: {_to_be_set(weights)}")
    _say_unfilled(say, [name for name in theirs if name not in pairs.values()])
    return changed


def _check_named_kind(weights: NormWeights, place: str) -> None:
    """Linen names a layer after its class unless its model does otherwise."""
    found = re.search(r"(?:^|/)(Batch|Layer|RMS|Group|Instance)Norm_\d+$", place)
    if found is not None and found[1].lower() != weights.kind:
        raise ModelError(
            "Two layers that belong together are not alike",
            received=f"a {weights.kind} norm ({weights.name}) for {place}",
            expected=f"a {found[1].lower()} norm",
            remedy="names= says which layer is which.",
        )


def _to_be_set(weights: NormWeights) -> str:
    """What a module of Linen has to be told, as its variables cannot."""
    options = [f"epsilon={weights.eps:g}"]
    if weights.kind == "group":
        options.append(f"num_groups={weights.groups}")
    if weights.kind == "batch" and weights.keep is not None:
        options.append(f"momentum={weights.keep:g}")
    layer = convention("linen").layers[weights.kind]
    return f"{layer}({', '.join(options)})"


def _unnamed(weights: NormWeights) -> NormWeights:
    """Of the kinds those that variables tell apart: with running statistics, and without."""
    return replace(weights, kind="layer" if weights.var is None else "batch", groups=None)


def _readable(there: Framework, model: Any) -> tuple[dict[str, NormWeights], dict[str, str]]:
    """The model's norms that weights can go into, and the others with the reason.

    Raises:
        ModelError: it has none that weights can go into.
    """
    found, unread = {}, {}
    for name, layer in there.layers(model):
        try:
            found[name] = there.read(layer, name)
        except ValueError as error:
            if not is_explained(error):
                raise
            unread[name] = first_line(error)
    if not found:
        reasons = [f"{name}: {why}" for name, why in unread.items()]
        raise ModelError(
            "The model has no norm that weights can go into",
            received=reasons[0] if reasons else f"{type(model).__name__} without a norm",
            expected="norms that are known, and built",
            remedy="Build the model first: run it on an example, or model.build(input_shape).",
        )
    return found, unread


def _fitted(weights: NormWeights, place: NormWeights) -> NormWeights:
    """The weights for a layer that is there: with gamma and beta exactly where it has them."""
    for role, neutral in (("gamma", 1.0), ("beta", 0.0)):
        held, wanted = getattr(weights, role), getattr(place, role)
        if wanted is None and held is not None and not (held == neutral).all():
            raise ModelError(
                f"The model's layer has no {role}",
                received=f"a {role} that is not {neutral:g} for {place.name}",
                expected=f"a layer with {role}",
                remedy="Make the model's norm with it.",
            )
        value = None if wanted is None else np.full(wanted.shape, neutral, np.float32)
        changed: dict[str, Any] = {role: value if wanted is None or held is None else held}
        weights = replace(weights, **changed)
    return replace(
        weights, kind=place.kind, groups=place.groups, name=place.name, channels=place.channels,
        dims=place.dims,
    )  # fmt: skip


def _prove(there: Framework, layer: Any, wanted: NormWeights) -> None:
    """Read and run the model's own layer, now that it has the weights."""
    held = there.read(layer, wanted.name)
    check_same(held, wanted)
    dims = held.dims if held.dims is not None else (0 if wanted.kind in ("layer", "rms") else 2)
    held = replace(held, keep=held.keep if wanted.keep is not None else None)
    own = there.side(layer, held)
    compare(there.side(None, wanted), own, dims)


def check_same(held: NormWeights, wanted: NormWeights) -> None:
    """Whether a layer that was written, when read again, holds what was to be written.

    Raises:
        ParityError: it does not; the message names what differs.
    """
    for name, value in wanted.arrays().items():
        own = getattr(held, name)
        if own is None or not np.allclose(own, value, rtol=2.0**-8 if held.narrow else 0, atol=0):
            raise _unlike(wanted, name, own, value)
    for name in ("eps", "keep"):
        own, value = getattr(held, name), getattr(wanted, name)
        if value is not None and (own is None or abs(own - value) > 1e-6 * max(value, 1e-30)):
            raise _unlike(wanted, name, own, value)
    if held.sets != wanted.sets:
        raise _unlike(wanted, "sets", held.sets, wanted.sets)


def _unlike(wanted: NormWeights, what: str, held: Any, value: Any) -> ParityError:
    return ParityError(
        f"A layer did not take over what was written{wanted.place}",
        received=f"{what}: {held}",
        expected=f"{value}",
        remedy="Nothing was changed. The layer may fix this value by itself.",
    )
