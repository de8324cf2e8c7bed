"""remove(): the norms that insert() put in, taken into their layers."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from normkit.errors import ModelError
from normkit.models.batches import example_batch
from normkit.models.conversion.catalogue import RefusedError
from normkit.models.conversion.reading import read
from normkit.models.folding.algebra import Affine, Change, Layer, affine_of, changed
from normkit.models.folding.replacing import Edits
from normkit.models.inserting.pairs import (
    LAYERS,
    SHOWN,
    compared,
    deviation,
    op_of,
    pairs_of,
    sayer,
)
from normkit.models.proof import copied
from normkit.models.selecting import chosen
from normkit.models.sites import NormSite
from normkit.models.wrappers import HOOKS
from normkit.words import counted, listed

__all__ = ["remove"]

Tensor = torch.Tensor


def remove(
    model: nn.Module,
    only: str | Iterable[str] | Callable[[NormSite], Any] | None = None,
    *,
    example: Any = None,
    inplace: bool = False,
    report: Callable[[str], Any] | None = print,
) -> Any:
    """Take out the norms that :func:`insert` put in; the network in eval mode computes the same.

    What a norm does goes into the weights and bias of its layer, and names in ``state_dict`` are as
    before. Right after :func:`insert` the weights come back as they were, and biases that were
    dropped to rounding. (:func:`normkit.models.fold` takes out any norm that can be.)

    Args:
        model: with layers that insert() made: an ``nn.Sequential`` of ``layer`` and ``norm``.
        only: names of the layers, patterns, or a function of the norm's site; None for all.
        example: an input of the model (a tensor, a tuple of arguments or a dictionary of them), on
            which its output before and after is compared.
        inplace: change the model itself, not a copy.
        report: takes the lines that say what was done; None for silence.

    Returns:
        The model without norms. Where the model is itself such a pair, its layer.

    Raises:
        ModelError: a norm cannot go into its layer, or the function is not the same. Nothing is
            changed.
        DataError: the model does not take the example.

    >>> from normkit.models.inserting import insert
    >>> net = nn.Sequential(nn.Linear(3, 4), nn.ReLU())
    >>> with_norm = insert(net, "linear", torch.randn(32, 3), report=None)
    >>> bare = remove(with_norm, example=torch.randn(2, 3))
    remove: 1 norm taken into its layer: 0
    remove: verified in eval mode: outputs differ by at most ... in float64, ... in float32
    >>> all(torch.equal(t, net.state_dict()[name]) for name, t in bare.state_dict().items())
    True
    """
    say = sayer("remove", model, report)
    sites = {name: site for name, (_, site) in pairs_of(model).items()}
    names = chosen(sites, only, "only")
    if not names:
        say("nothing to do: there is no norm of insert()'s")
        return model if inplace else copied(model)
    tried = example is not None
    trial = _without(copied(model), names, tried) if tried or not inplace else model
    words = "not verified; pass example=, an input of the model"
    if tried:
        apart = compared(
            "remove", model, trial, lambda: _exact(model, names), example_batch(example, model)
        )
        words = f"verified in eval mode: {apart}"
    result = _without(model, names, tried) if inplace else trial
    where = "its layer" if len(names) == 1 else "their layers"
    say(f"{counted(len(names), 'norm')} taken into {where}: {listed(names)}")
    say(words)
    return result


def _exact(model: nn.Module, names: list[str]) -> tuple[nn.Module, nn.Module]:
    """The model with and without the norms in float64, where an identity is one exactly."""
    wide, pairs = copied(model).double(), pairs_of(model)
    for name in names:
        norm, new = pairs[name][0].norm, wide.get_submodule(f"{name}.norm".lstrip("."))
        if norm.weight is not None:
            unit = norm.weight == deviation(norm)
            with torch.no_grad():
                new.weight.copy_(torch.where(unit, deviation(new), new.weight))
    return wide, _without(copied(wide), names, True)


def _without(model: nn.Module, names: list[str], tried: bool) -> nn.Module:
    """The model with these norms taken into their layers.

    Args:
        tried: whether the result is compared on an input.

    Raises:
        ModelError: one of them cannot be.
    """
    edits, pairs = Edits(), pairs_of(model)
    result: Any = model
    refused = []
    for name in names:
        pair, site = pairs[name]
        try:
            _check_pair(pair, site)
            new = _taken_in(pair, site)
            if "weight" in new:
                _check_weight(model, pair.layer, tried)
        except RefusedError as why:
            refused.append(f"{site.name}: {why}")
            continue
        for part, value in new.items():
            edits.tensor(pair.layer, part, value)
        if pair is model:
            result = pair.layer
        else:
            edits.replace(model, pair, pair.layer)
    if refused:
        raise ModelError(
            f"{counted(len(refused), 'norm')} cannot be taken out; nothing was changed",
            received="; ".join(refused[:SHOWN]),
            expected="batch norms with running statistics, as insert() makes them",
            remedy="only= names others.",
        )
    edits.make()
    return result


def _check_pair(pair: Any, site: NormSite) -> None:
    if site.kind != "batch" or not site.tracks:
        raise _refused("it normalizes with statistics of its input, not with running ones")
    source = read(site)
    if source.is_foreign or source.options.mean_only or source.options.domains is not None:
        raise _refused("it is no batch norm as insert() makes them")
    if any(getattr(module, hooks) for module in (pair, pair.norm) for hooks in HOOKS):
        raise _refused("it has hooks, which would be lost")


def _taken_in(pair: Any, site: NormSite) -> dict[str, Tensor]:
    """The weight and bias of the layer that change, in float64."""
    layer, affine = pair.layer, _affine(site)
    groups = getattr(layer, "groups", 1)
    before = Layer(op_of(layer), layer.weight, layer.bias, groups)
    after = changed(before, [Change(affine, "outputs")])
    found = {}
    if bool((affine.scale != 1).any()):
        found["weight"] = after.weight
    bias = after.bias
    if bias is None and vars(pair).get("dropped_bias", False):
        bias = torch.zeros_like(affine.shift)
    same = bias is None or (layer.bias is not None and torch.equal(bias, layer.bias.double()))
    if bias is not None and not same:
        found["bias"] = bias
    return found


def _affine(site: NormSite) -> Affine:
    """What the norm does; a gamma that insert() set is 1, whatever the rounding of its root."""
    affine = affine_of(site)
    if site.gamma is None:
        return affine
    assert site.mean is not None
    scale = torch.where(site.gamma.detach() == deviation(site.module), 1.0, affine.scale)
    beta = 0.0 if site.beta is None else site.beta.detach().double()
    return Affine(scale, beta - site.mean.double() * scale)


def _check_weight(model: nn.Module, layer: nn.Module, tried: bool) -> None:
    if hasattr(layer, "parametrizations"):
        raise _refused("its layer's weight is parametrized")
    if type(layer) not in LAYERS and not tried:
        raise _refused(
            f"its layer is a {type(layer).__name__}, which may make its weight from another; "
            "example= would tell"
        )
    holders = [m for m in model.modules() if any(p is layer.weight for p in m._parameters.values())]
    if len(holders) > 1:
        raise _refused("its layer shares its weight with another")


def _refused(reason: str) -> RefusedError:
    return RefusedError(reason, "only= names others.")
