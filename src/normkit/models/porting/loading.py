"""Ported weights into a model that is there: each of its layers is then read, run and compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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

__all__ = ["check_same", "load"]


def load(
    ported: Sequence[PortedLayer],
    target: str,
    model: Any,
    names: Mapping[str, str] | None,
    match: str,
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
    if there.name == "linen":
        return _into_variables(there, model, [one.after for one in ported], names, match)
    theirs = _readable(there, model)
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
    return changed


def _into_variables(
    there: Framework,
    variables: Any,
    layers: Sequence[NormWeights],
    names: Mapping[str, str] | None,
    match: str,
) -> Any:
    """Linen's variables say what has which shape, and no more: nothing can be run."""
    arrays = {name: torch.from_numpy(v.copy()) for name, v in flat_variables(variables).items()}
    sites = (
        replace(site, kind="layer" if site.var is None else "batch", eps=0.0)
        for site in named_sites(arrays)
    )
    theirs = {site.name: weights_of_site(site, "linen") for site in sites}
    pairs = matched({w.name: _unnamed(w) for w in layers}, theirs, names, match)
    return there.assign(
        variables, {pairs[w.name]: _fitted(w, theirs[pairs[w.name]]) for w in layers}
    )


def _unnamed(weights: NormWeights) -> NormWeights:
    """Of the kinds those that variables tell apart: with running statistics, and without."""
    return replace(weights, kind="layer" if weights.var is None else "batch", groups=None)


def _readable(there: Framework, model: Any) -> dict[str, NormWeights]:
    """The model's norms that weights can go into; the others are not asked for."""
    found = {}
    for name, layer in there.layers(model):
        try:
            found[name] = there.read(layer, name)
        except ValueError as error:
            if not is_explained(error):
                raise
    return found


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
    narrow = any("widened" in note for note in held.notes)
    for name, value in wanted.arrays().items():
        own = getattr(held, name)
        if own is None or not np.allclose(own, value, rtol=2.0**-8 if narrow else 0, atol=0):
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
