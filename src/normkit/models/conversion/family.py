"""Batch norm in its forms: plain, synchronized, frozen, ghost, renorm. In eval mode all the same.

Whether a layer is frozen is a state of it, as its mode is: only "batch" and "frozen" change it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import nn

from normkit.errors import NormError, OptionError
from normkit.models.conversion.catalogue import BATCH, SYNC, Origin, RefusedError
from normkit.models.conversion.changing import Change, change
from normkit.models.conversion.reading import Source
from normkit.models.conversion.requests import Request
from normkit.torch.options import BatchOptions

__all__ = ["as_batch_norm", "to_batch", "to_frozen", "to_ghost", "to_renorm", "to_sync"]

_PLAIN = BatchOptions()


def to_batch(source: Source, request: Request) -> Change | None:
    """Plain batch norm, thawed."""
    options = replace(source.options, ghost=None, renorm=None)
    library = request.library(source.origin.library)
    plain = source.is_batch and not source.is_sync and not source.site.frozen
    if plain and options == source.options and _made_by(source, request):
        return None
    return as_batch_norm(source, request, options=options, library=library, frozen=False)


def to_sync(source: Source, request: Request) -> Change | None:
    """Statistics of all ranks."""
    group = request.process_group
    if source.is_sync and _made_by(source, request) and group is None and not source.is_foreign:
        return None
    library = request.library(source.origin.library)
    return as_batch_norm(source, request, library=library, sync=True)


def to_frozen(source: Source, request: Request) -> Change | None:
    """Statistics that stand still in training, and no gradients of gamma and beta."""
    if source.site.frozen:
        return None
    if source.is_batch and not source.site.tracks:
        raise RefusedError("it keeps no running statistics to freeze", "only= leaves it out.")
    if source.origin.frozen is not None and source.is_batch:
        return _as_before(source, source.origin)
    return as_batch_norm(source, request, frozen=True)


def to_ghost(source: Source, request: Request) -> Change | None:
    """Statistics of so many samples at a time."""
    if source.is_batch and not source.site.tracks:
        raise RefusedError(
            "it normalizes with the batch's statistics in eval mode too, which ghost batches "
            "would change",
            "only= leaves it out.",
        )
    return _with_options(source, request, ghost=request.ghost)


def to_renorm(source: Source, request: Request) -> Change | None:
    """Batch renormalization (Ioffe 2017)."""
    return _with_options(source, request, renorm=request.renorm or True)


def _with_options(source: Source, request: Request, **changed: Any) -> Change | None:
    try:
        options = replace(source.options, **changed)
        if source.is_batch:
            options.check_tracking(source.site.tracks)
    except (NormError, OptionError) as error:
        raise RefusedError(str(error), "only= leaves it out.") from error
    if options == source.options:
        return None
    return as_batch_norm(source, request, options=options)


def _made_by(source: Source, request: Request) -> bool:
    """Whether a layer is of the library that was asked for, if one was."""
    return request.layers == "same" or (
        request.layers == source.origin.library and not source.is_foreign
    )


# --- the layer ------------------------------------------------------------------------------------


def as_batch_norm(
    source: Source,
    request: Request,
    *,
    options: BatchOptions | None = None,
    library: str | None = None,
    frozen: bool | None = None,
    sync: bool | None = None,
) -> Change:
    """Any norm with channels second as a batch norm.

    Args:
        options: None keeps its own.
        library: None for normkit's, without forgetting whose it was.
        frozen: None leaves it so or not.
        sync: None leaves it so where plain batch norm is not what was asked for.

    Raises:
        RefusedError: it cannot be that.
    """
    if source.site.kind in ("layer", "rms"):
        raise RefusedError(
            f"{source.site.type_name} normalizes the last axis, where batch norm's channels come "
            "second",
            "only= leaves it out.",
        )
    options = source.options if options is None else options
    held = source.site.frozen if frozen is None else frozen
    synced = (source.is_sync and request.to != "batch") if sync is None else sync
    home = replace(source.origin, library=request.library(source.origin.library))
    library = _able(library or "normkit", options, held, request)
    if request.to in ("torch", "normkit"):
        home = replace(home, library=library)
    if not synced:
        home = replace(home, dims=request.surroundings.dims(source))
    attributes, learns = _freezing(source, held, frozen)
    attributes |= _attributes(source, home, options)
    if held:
        attributes["statistics_frozen"] = True
    if synced:
        kind = SYNC[library]
        attributes["process_group"] = request.process_group or getattr(
            source.module, "process_group", None
        )
    else:
        kind = BATCH[library][home.dims or 0]
    at_home = not synced and library == home.library and not held and home.frozen is None
    buffers, fresh = _buffers(source, request)
    return change(
        source, kind, dict(source.parameters), buffers, attributes,
        origin=None if at_home and options == _PLAIN else home,
        words=_words(kind, options, held),
        learns=tuple(learns),
        preserves=not fresh,
        notes=_notes(source, kind, fresh, bool(learns) and not held),
    )  # fmt: skip


def _able(library: str, options: BatchOptions, frozen: bool, request: Request) -> str:
    """The library that can do what is asked of the layer."""
    if library == "normkit" or (options == _PLAIN and not frozen):
        return library
    if request.layers == "torch" or request.to == "torch":
        what = "frozen statistics" if frozen else str(options).strip(", ")
        raise RefusedError(
            f"torch.nn has no batch norm with {what}", 'to="batch" makes it plain first.'
        )
    return "normkit"


def _attributes(source: Source, home: Origin, options: BatchOptions) -> dict[str, Any]:
    tracks = not source.is_batch or source.site.tracks
    found: dict[str, Any] = {
        "num_features": source.channels,
        "eps": source.site.eps,
        "momentum": source.module.momentum if _has_momentum(source) else home.momentum,
        "affine": source.site.gamma is not None,
        "track_running_stats": getattr(source.module, "track_running_stats", tracks)
        if source.is_batch else True,
    }  # fmt: skip
    if options != _PLAIN:
        found["options"] = options
    return found


def _has_momentum(source: Source) -> bool:
    return source.is_batch and hasattr(source.module, "momentum")


def _freezing(source: Source, held: bool, asked: bool | None) -> tuple[dict[str, Any], list[Any]]:
    """What is remembered of who learned, and which ``requires_grad`` change."""
    known = dict(source.module.__dict__.get("_affine_before_freeze", {}))
    present = {name: p for name, p in source.parameters.items() if p is not None}
    if asked is False and source.site.frozen:  # thaw
        return {}, [(present[name], learned) for name, learned in known.items() if name in present]
    if asked and held:
        known = {name: p.requires_grad for name, p in present.items()} | known
        return {"_affine_before_freeze": known}, [(p, False) for p in present.values()]
    return ({"_affine_before_freeze": known} if known else {}), []


def _buffers(source: Source, request: Request) -> tuple[dict[str, Any], bool]:
    """Running statistics as they are, or from the start for a norm that had none."""
    if source.is_batch:
        own = source.module._buffers
        batches = own.get("num_batches_tracked")
        if batches is None and source.site.var is not None and source.is_foreign:
            batches = torch.zeros((), dtype=torch.int64, device=source.site.var.device)
        found = {
            "running_mean": source.site.mean, "running_var": source.site.var,
            "num_batches_tracked": batches,
        }  # fmt: skip
        elements = own.get("num_elements_tracked")
        return found if elements is None else found | {"num_elements_tracked": elements}, False
    gamma = source.site.gamma
    like: dict[str, Any] = (
        request.like if gamma is None else {"dtype": gamma.dtype, "device": gamma.device}
    )
    return {
        "running_mean": torch.zeros(source.channels, **like),
        "running_var": torch.ones(source.channels, **like),
        "num_batches_tracked": torch.zeros((), dtype=torch.int64, device=like.get("device")),
    }, True


def _words(kind: type[nn.Module], options: BatchOptions, frozen: bool) -> str:
    more = [str(options).strip(", ")] if options != _PLAIN else []
    more += ["frozen"] if frozen else []
    return kind.__name__ + (f" ({', '.join(more)})" if more else "")


def _notes(source: Source, kind: type, fresh: bool, thawed: bool) -> tuple[str, ...]:
    notes = []
    if fresh:
        notes.append(
            "running statistics start at mean 0 and variance 1: recalibrate(model, data) before "
            "the model is used in eval mode"
        )
    if source.is_foreign:
        notes.append(f"{source.site.type_name}'s own forward is given up for {kind.__name__}'s")
    if thawed:
        notes.append("gamma and beta take gradients again where they did before the freeze")
    on_cpu = any(t is not None and t.device.type == "cpu" for t in source.parameters.values())
    if kind is SYNC["torch"] and on_cpu:
        notes.append(
            'torch.nn.SyncBatchNorm trains on GPUs only; layers="normkit" gives one that trains '
            "on the CPU too"
        )
    return tuple(notes)


# --- a user's own frozen class --------------------------------------------------------------------


def _as_before(source: Source, origin: Origin) -> Change:
    """The class that it was: gamma and beta are buffers again."""
    assert origin.frozen is not None
    tensors = {
        "weight": source.site.gamma, "bias": source.site.beta,
        "running_mean": source.site.mean, "running_var": source.site.var,
        "num_batches_tracked": source.module._buffers.get("num_batches_tracked"),
    }  # fmt: skip
    buffers = {
        name: tensors[name].detach() if present and tensors.get(name) is not None else None
        for name, present in origin.buffers.items()
    }
    return change(source, origin.frozen, {}, buffers, dict(origin.attributes))
