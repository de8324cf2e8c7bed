"""The same norm as torch.nn's class or as normkit's."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from normkit.models.conversion.catalogue import (
    NORMKIT_OF,
    TORCH_OF,
    Origin,
    RefusedError,
)
from normkit.models.conversion.changing import Change, change
from normkit.models.conversion.family import as_batch_norm
from normkit.models.conversion.reading import Source
from normkit.models.conversion.requests import Request
from normkit.torch.options import BatchOptions

__all__ = ["to_normkit", "to_torch"]

#: Attributes that both classes have; normkit's others, of a layer like torch.nn's, are at their
#: defaults.
_KEPT = (
    "num_features", "num_channels", "num_groups", "eps", "momentum", "affine",
    "track_running_stats", "process_group", "_affine_before_freeze",
)  # fmt: skip


def to_normkit(source: Source, request: Request) -> Change | None:
    """normkit's class."""
    if source.is_foreign:
        return as_batch_norm(source, request, library="normkit")
    kind = NORMKIT_OF.get(type(source.module))
    return None if kind is None else _swapped(source, kind, "normkit")


def to_torch(source: Source, request: Request) -> Change | None:
    """torch.nn's class."""
    if source.is_foreign:
        return as_batch_norm(source, request, library="torch")
    if type(source.module) in NORMKIT_OF:
        return None
    kind = TORCH_OF.get(type(source.module))
    if kind is None:
        raise RefusedError(f"torch.nn has no {source.site.type_name}", "only= leaves it out.")
    if source.module.__dict__.get("statistics_frozen"):
        raise RefusedError(
            "torch.nn has no norm with frozen statistics",
            'to="batch", or normkit.torch.unfreeze(model), makes it plain first.',
        )
    options = source.options
    if options != BatchOptions():
        raise RefusedError(
            f"torch.nn has no batch norm with {str(options).strip(', ')}",
            'to="batch" takes ghost and renorm away.'
            if replace(options, ghost=None, renorm=None) == BatchOptions()
            else "only= leaves it out.",
        )
    return _swapped(source, kind, "torch")


def _swapped(source: Source, kind: Any, library: str) -> Change:
    module = source.module
    plain = {k: v for k, v in module.__dict__.items() if k in _KEPT}
    known = module.__dict__.get("converted_from")
    origin = replace(known, library=library) if isinstance(known, Origin) else None
    return change(
        source, kind, dict(module._parameters), dict(module._buffers), plain,
        origin=origin, words=f"{library}'s {kind.__name__}",
    )  # fmt: skip
