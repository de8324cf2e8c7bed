"""Which layer of one model is which of another."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping

from normkit.errors import ModelError, OptionError
from normkit.models.porting.weights import NormWeights
from normkit.words import counted, listed

__all__ = ["matched", "renamed"]

_Layers = Mapping[str, NormWeights]


def matched(
    ours: _Layers, theirs: _Layers, names: Mapping[str, str] | None, match: str
) -> dict[str, str]:
    """For each of our layers, the name of theirs.

    Args:
        ours: the layers that were read.
        theirs: the norms of the model that takes them.
        names: theirs by ours, for layers that are called differently; the rest goes by name.
        match: ``"names"``: by name, or by kind and shape where there is one of each; ``"order"``:
            the first goes into the first, if kinds and shapes agree all along.

    Raises:
        ModelError: it cannot be told which is which, or two that belong together do not fit.
        OptionError: no such way of matching, or names that are not there.

    >>> one = NormWeights("rms", (2,), 1e-6)
    >>> matched({"a": one}, {"b": one}, None, "names")
    {'a': 'b'}
    """
    if match not in ("names", "order"):
        raise OptionError(
            "No such way to match layers",
            received=f"match={match!r}",
            expected="'names' or 'order'",
            remedy="names= says for each layer which of the model's it is.",
        )
    pairs = _pairs(ours, theirs, names, match)
    for mine, other in pairs.items():
        _check_fit(ours[mine], theirs[other], mine, other)
    return pairs


def _pairs(
    ours: _Layers, theirs: _Layers, names: Mapping[str, str] | None, match: str
) -> dict[str, str]:
    if names is not None:
        return _by_mapping(ours, theirs, names)
    if set(ours) <= set(theirs):
        return {name: name for name in ours}
    if match == "order":
        return _by_order(ours, theirs)
    found = _by_shape(ours, theirs)
    if found is None:
        missing = [name for name in ours if name not in theirs]
        raise ModelError(
            "The models call their norms differently, and shapes do not tell them apart",
            received=f"{listed(missing, 3)} from the source",
            expected=f"names of the model's norms: {listed(list(theirs), 6)}",
            remedy='names={"name here": "name there", …} says which is which; match="order" '
            "takes them in their order, where that is the same.",
        )
    return found


def renamed(ours: Iterable[str], names: Mapping[str, str] | None) -> dict[str, str]:
    """New names of layers, for a file.

    Raises:
        OptionError: a name that is not there, or one for two layers.

    >>> renamed(["a", "b"], {"a": "stem"})
    {'a': 'stem', 'b': 'b'}
    """
    held, names = list(ours), names or {}
    return _by_mapping(held, [*held, *names.values()], names)


def _by_mapping(
    ours: Collection[str], theirs: Collection[str], names: Mapping[str, str]
) -> dict[str, str]:
    strange = [name for name in names if name not in ours]
    pairs = {name: names.get(name, name) for name in ours}
    lost = [other for other in pairs.values() if other not in theirs]
    if strange or lost:
        raise OptionError(
            "names= speaks of layers that are not there",
            received=listed([*strange, *lost]),
            expected=f"names in the source ({listed(list(ours), 3)}) for names in the model "
            f"({listed(list(theirs), 3)})",
            remedy="Layers that names= leaves out have to have the same name in both.",
        )
    twice = [name for name, times in Counter(pairs.values()).items() if times > 1]
    if twice:
        raise OptionError(
            "Two layers go into one",
            received=listed(twice),
            expected="a name, or a layer of the model, for each of the source",
            remedy="Give each a name of its own in names=.",
        )
    return pairs


def _by_order(ours: _Layers, theirs: _Layers) -> dict[str, str]:
    if len(ours) != len(theirs):
        raise ModelError(
            "The models have different numbers of norms",
            received=f"{counted(len(ours), 'norm')} for {len(theirs)} in the model",
            expected="as many",
            remedy="only= takes some of the source's; names= says which is which.",
        )
    return dict(zip(ours, theirs, strict=True))


def _by_shape(ours: _Layers, theirs: _Layers) -> dict[str, str] | None:
    """By what each norm's sets and weights are, if that is unlike for all of them."""
    places = {weights.sets: name for name, weights in theirs.items()}
    wanted = {name: weights.sets for name, weights in ours.items()}
    alone = len(places) == len(theirs) and len(set(wanted.values())) == len(wanted)
    if not alone or not set(wanted.values()) <= set(places):
        return None
    return {name: places[sets] for name, sets in wanted.items()}


def _check_fit(mine: NormWeights, other: NormWeights, name: str, there: str) -> None:
    if mine.sets != other.sets:
        raise ModelError(
            "Two layers that belong together are not alike",
            received=f"{name}: {_described(mine)}; {there}: {_described(other)}",
            expected="the same kind, shape and groups",
            remedy="names= says which layer is which.",
        )


def _described(weights: NormWeights) -> str:
    kind, shape, groups = weights.sets
    return f"{kind} norm of {shape}" + (f" in {groups} groups" if groups else "")
