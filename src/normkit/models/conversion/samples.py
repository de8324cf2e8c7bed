"""Batch norm's replacements that look at one sample only: group, layer, instance norm, FRN.

Gamma, beta and eps are kept; what they are applied to is normalized over another set, so the
network's function changes and has to be trained on.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import nn

from normkit.models.conversion.catalogue import GROUP, INSTANCE, RefusedError
from normkit.models.conversion.changing import Change, change
from normkit.models.conversion.reading import Source
from normkit.models.conversion.requests import Request
from normkit.torch.beyond import FilterResponseNorm

__all__ = ["auto_groups", "to_frn", "to_group", "to_instance", "to_layer"]

_MOST_GROUPS = 32
_LEAST_CHANNELS = 2
_LEAST_ELEMENTS = 16


def auto_groups(channels: int, positions: int | None = None) -> int:
    """How many groups ``groups="auto"`` takes: the largest divisor of ``channels`` that fits.

    At most 32, the number that Wu & He 2018 found best; at least 2 channels in each, and, with the
    positions of a sample known, at least 16 elements, their smallest group. One group where none
    fits.

    Args:
        channels: of the layer.
        positions: elements a channel in one sample, as far as known: 1 for (N, C) input.

    >>> [auto_groups(channels) for channels in (256, 64, 96, 48, 7)]
    [32, 32, 32, 24, 1]
    >>> auto_groups(256, positions=1), auto_groups(10, positions=1)
    (16, 1)
    """
    for groups in reversed(_divisors(channels)):
        size = channels // groups
        small = positions is not None and size * positions < _LEAST_ELEMENTS
        if groups <= _MOST_GROUPS and size >= _LEAST_CHANNELS and not small:
            return groups
    return 1


def _divisors(number: int) -> list[int]:
    return [d for d in range(1, number + 1) if number % d == 0]


def to_group(source: Source, request: Request) -> Change | None:
    """Group norm."""
    _check(source)
    channels, (positions, sure) = source.channels, request.surroundings.positions(source)
    groups = auto_groups(channels, positions) if request.groups == "auto" else int(request.groups)
    fitting = [d for d in _divisors(channels) if positions is None or channels // d * positions > 1]
    if groups not in fitting:
        raise RefusedError(
            f"{channels} channels do not divide into {groups} groups"
            if channels % groups
            else f"{groups} groups of {channels} channels leave one element a set"
            + _input_words(sure)
            + ", and of one element only beta is left",
            f"Group counts that fit: {_listed(fitting)}."
            + ("" if sure else " Or pass example=, an input of the model."),
        )
    return _as_group(source, request, groups)


def to_layer(source: Source, request: Request) -> Change | None:
    """Layer norm over a sample's channels and positions, which is group norm with one group."""
    _check(source)
    positions, sure = request.surroundings.positions(source)
    if positions == 1 and source.channels == 1:
        raise RefusedError(
            f"one channel leaves one element a set{_input_words(sure)}", "only= leaves it out."
        )
    return _as_group(source, request, 1)


def to_instance(source: Source, request: Request) -> Change | None:
    """Instance norm."""
    _check(source)
    _check_positions(source, request)
    library, dims = request.library(source.origin.library), request.surroundings.dims(source)
    kind = INSTANCE[library][dims]
    if type(source.module) is kind and not source.site.tracks:
        return None
    attributes = {
        "num_features": source.channels, "eps": source.site.eps, "momentum": 0.1,
        "affine": source.site.gamma is not None, "track_running_stats": False,
    }  # fmt: skip
    none: dict[str, Any] = dict.fromkeys(("running_mean", "running_var", "num_batches_tracked"))
    return _changed(source, request, kind, none, attributes, "")


def to_frn(source: Source, request: Request) -> Change | None:
    """Filter response norm."""
    _check(source)
    _check_positions(source, request)
    if type(source.module) is FilterResponseNorm:
        return None
    if source.site.gamma is None or source.site.beta is None:
        raise RefusedError(
            "it has no gamma and beta, which a FilterResponseNorm always has",
            "only= leaves it out.",
        )
    attributes = {"num_features": source.channels, "eps": source.site.eps, "axis": 1}
    note = (
        "FilterResponseNorm does not centre: its authors put a "
        "normkit.torch.beyond.ThresholdedLinearUnit behind it in place of a ReLU"
    )
    return _changed(source, request, FilterResponseNorm, {}, attributes, "", note)


def _as_group(source: Source, request: Request, groups: int) -> Change | None:
    kind: Any = GROUP[request.library(source.origin.library)]
    if type(source.module) is kind and source.module.num_groups == groups:
        return None
    attributes = {
        "num_groups": groups, "num_channels": source.channels, "eps": source.site.eps,
        "affine": source.site.gamma is not None,
    }  # fmt: skip
    words = f"GroupNorm ({groups} group{'s' if groups > 1 else ''})"
    return _changed(source, request, kind, {}, attributes, words)


def _changed(
    source: Source, request: Request, kind: type[nn.Module], buffers: dict[str, Any],
    attributes: dict[str, Any], words: str, note: str = "",
) -> Change:  # fmt: skip
    known = source.module.__dict__.get("_affine_before_freeze")
    if known:
        attributes["_affine_before_freeze"] = known
    parameters = dict(source.parameters)
    if kind is FilterResponseNorm:
        parameters["learned_eps"] = None
    home = replace(source.origin, library=request.library(source.origin.library))
    notes = [
        "gamma, beta and eps are kept, but the network's function is another: train it on",
        note,
    ]
    if source.site.tracks:
        notes.append("running statistics are gone; a conversion back cannot restore them")
    return change(
        source, kind, parameters, buffers, attributes,
        origin=home, words=words, preserves=False, notes=tuple(n for n in notes if n),
    )  # fmt: skip


# --- what does not fit ----------------------------------------------------------------------------


def _check(source: Source) -> None:
    if source.site.kind in ("layer", "rms"):
        raise RefusedError(
            f"{source.site.type_name} normalizes the last axis, and this kind has its channels "
            "second",
            "only= leaves it out.",
        )
    if source.options.domains is not None:
        raise RefusedError(
            "it is called with domain=, which this kind does not know", "only= leaves it out."
        )


def _check_positions(source: Source, request: Request) -> None:
    positions, sure = request.surroundings.positions(source)
    if positions != 1:
        return
    raise RefusedError(
        "each set would be one element, the only one of its channel in a sample"
        + _input_words(sure),
        'to="group" or to="layer" normalize over channels.'
        + ("" if sure else " Or pass example=, an input of the model."),
    )


def _input_words(sure: bool) -> str:
    return "" if sure else " should its input be (N, C), and nothing tells that it is not"


def _listed(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers)) or "none"
