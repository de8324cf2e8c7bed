"""A layer turned into another kind where it stands, all layers of a model or none.

The layer stays the same object, with the same parameters, buffers and hooks: whatever refers to it
(a parent, a list, an optimizer, a hook's handle) goes on to do so.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import nn

from normkit.errors import NormError, OptionError
from normkit.models.conversion.catalogue import Origin, RefusedError
from normkit.models.conversion.reading import Source
from normkit.torch.layers.base import KernelLayer

__all__ = ["Change", "apply", "change"]

Tensors = dict[str, Any]

#: What norms keep as plain attributes; every kind sets its own.
_OWN = (
    "num_features", "num_channels", "num_groups", "eps", "variance_epsilon", "epsilon", "momentum",
    "affine", "track_running_stats", "process_group", "options", "statistics_frozen", "axis",
    "converted_from", "tracker", "place", "common_statistics", "_affine_before_freeze",
)  # fmt: skip
#: What normkit's layers keep of their calls.
_RUNNING = ("tracker", "place", "common_statistics")


@dataclass(frozen=True, eq=False)
class Change:
    """What a layer is to become. Nothing is changed before :func:`apply`.

    Args:
        layer: as it is.
        before: its class's name.
        kind, state: its class and ``__dict__`` to be.
        words: the new kind, for people.
        learns: parameters whose ``requires_grad`` changes, with its value.
        preserves: whether the layer in eval mode computes what it did.
        notes: what else the user should know.
    """

    layer: nn.Module
    before: str
    kind: type[nn.Module]
    state: dict[str, Any]
    words: str
    learns: tuple[tuple[nn.Parameter, bool], ...] = ()
    preserves: bool = True
    notes: tuple[str, ...] = ()


def change(
    source: Source,
    kind: type[nn.Module],
    parameters: Tensors,
    buffers: Tensors,
    attributes: dict[str, Any],
    *,
    origin: Origin | None = None,
    words: str = "",
    **rest: Any,
) -> Change:
    """A norm as a layer of another class, with what else hangs on it.

    Args:
        parameters, buffers, attributes: of the new kind, by name.
        origin: what it is to remember for the way back.
        words, rest: as of :class:`Change`.

    Raises:
        RefusedError: the new class refuses an eps or momentum.
    """
    old = source.module
    base = nn.Module().__dict__ if source.tail else old.__dict__
    state = {name: value for name, value in base.items() if name not in _OWN}
    state["training"] = old.training
    state["_parameters"], state["_buffers"] = parameters, buffers
    state["_non_persistent_buffers_set"] = old._non_persistent_buffers_set & set(buffers)
    state["_modules"] = {} if source.is_foreign else dict(old._modules)
    state.update(attributes)
    if origin is not None:
        state["converted_from"] = origin
    new: Any = kind.__new__(kind)
    new.__dict__.update(state)
    if isinstance(new, KernelLayer):
        _prepare(new, old)
    words = words or kind.__name__
    if not source.tail:
        return Change(old, source.site.type_name, kind, new.__dict__, words, **rest)
    return _with_tail(source, new, words, rest)


def _prepare(new: Any, old: nn.Module) -> None:
    try:
        new._prepare()
    except (OptionError, NormError) as error:
        raise RefusedError(str(error), "Mend the layer first.") from error
    running = {n: old.__dict__[n] for n in _RUNNING if n in old.__dict__ and n in new.__dict__}
    new.__dict__.update(running)


def _with_tail(source: Source, norm: nn.Module, words: str, rest: dict[str, Any]) -> Change:
    """A layer that dropped and activated too becomes a Sequential of its parts."""
    old = source.module
    state = {name: value for name, value in old.__dict__.items() if name not in _OWN}
    state["_parameters"], state["_buffers"] = {}, {}
    state["_non_persistent_buffers_set"] = set()
    parts = OrderedDict([("norm", norm), *source.tail])
    state["_modules"] = parts
    inside = ", ".join(type(part).__name__ for part in parts.values())
    note = (
        f"{source.site.type_name} also does {' and '.join(n for n, _ in source.tail)}: it becomes "
        f'Sequential({inside}), and its entries of state_dict get ".norm" before their last name'
    )
    rest["notes"] = (*rest.get("notes", ()), note)
    words = f"Sequential with {words}"
    return Change(old, source.site.type_name, nn.Sequential, state, words, **rest)


def apply(changes: Iterable[Change]) -> None:
    """Make all the changes; on any exception, an interrupt among them, none."""
    changes = list(changes)
    before = [(c.layer, type(c.layer), c.layer.__dict__) for c in changes]
    learned = [(p, p.requires_grad) for c in changes for p, _ in c.learns]
    try:
        for new in changes:
            _become(new.layer, new.kind, new.state)
            for parameter, learns in new.learns:
                parameter.requires_grad_(learns)
    except BaseException:
        for was in before:
            _become(*was)
        for parameter, learns in learned:
            parameter.requires_grad_(learns)
        raise


def _become(layer: nn.Module, kind: type[nn.Module], state: dict[str, Any]) -> None:
    layer.__class__ = kind
    object.__setattr__(layer, "__dict__", state)
