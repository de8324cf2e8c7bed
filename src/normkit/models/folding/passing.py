"""What stands between a norm and a layer: whether a scale and a shift of channels pass through it.

The ways are followed without knowing all shapes. What is known is where the channels are: along
which axis of how many, and how often each is repeated there.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any, Protocol

from normkit.models.graphs.graph import Node

__all__ = ["Blocked", "Layout", "Passage", "Shapes", "carried", "is_question", "is_reference"]

Shape = tuple[int, ...]


class Shapes(Protocol):
    """A format's knowledge of its results' shapes."""

    def shape(self, name: str) -> Shape | None:
        """The shape of a node's result; None where it is not known."""


class Blocked(Exception):  # noqa: N818 - an answer, not a mistake
    """Nothing passes here; the text says why."""


@dataclass(frozen=True)
class Layout:
    """Where channels are in a result.

    Args:
        axis: along which, counted from 0.
        rank: axes there are.
        outer, inner: channel c is at (o·C + c)·inner + i along the axis, o < outer, i < inner;
            None where the number depends on shapes that are not known.
    """

    axis: int
    rank: int
    outer: int | None = 1
    inner: int | None = 1

    @property
    def plain(self) -> bool:
        """Whether the axis holds the channels and nothing else."""
        return (self.outer, self.inner) == (1, 1)


@dataclass(frozen=True)
class Passage:
    """What has been learnt on the way: where the channels are now, and what may not come along.

    Args:
        layout: where the channels are.
        shift_stop: why a shift cannot come along; "" where it can.
        order_stop: why a negative scale cannot.
    """

    layout: Layout
    shift_stop: str = ""
    order_stop: str = ""


def is_question(node: Node) -> bool:
    """Whether a node only asks for shape or type, whose answers a norm does not change."""
    if node.function == "getattr":
        return next(iter(node.attributes.get("args", ())), "") in _PROPERTIES
    return node.op == "other" and node.function in _QUESTIONS


_QUESTIONS = ("size", "dim", "numel", "ndimension", "is_contiguous", "stride", "sym_size", "Shape")
_PROPERTIES = ("shape", "ndim", "dtype", "device", "is_cuda", "requires_grad")


def is_reference(user: Node, name: str) -> bool:
    """Whether a node takes only the shape of this one: ``y.reshape_as(x)``."""
    return user.function in _LIKE and user.inputs.index(name) > 0


_LIKE = ("reshape_as", "view_as")


def carried(passage: Passage, node: Node, shapes: Shapes) -> Passage:
    """The passage behind a node that it enters.

    Raises:
        Blocked: neither scale nor shift comes through unchanged.
    """
    name = node.target or node.function or node.name
    if node.obstacle:
        raise Blocked(f"{name} stands between, and {node.obstacle}")
    if node.op == "identity":
        return passage
    if node.op == "dropout":
        return _dropout(passage, node, name)
    if node.op == "reshape":
        return replace(passage, layout=_reshaped(passage.layout, node, shapes, name))
    if node.op in ("pool_average", "pool_max"):
        return _pooled(passage, node, name)
    if node.op == "pad":
        return _padded(passage, node, name)
    if node.function in _SELECTS:
        layout = _SELECTS[node.function](passage.layout, node)
        if layout is None:
            raise Blocked(f"an operation ({name}) takes some of the channels, or mixes them")
        return replace(passage, layout=layout)
    words = {"norm": "another norm", "activation": "an activation", "other": "an operation"}
    raise Blocked(
        f"{words.get(node.op, f'an operation of kind {node.op}')} ({name}) stands between"
    )


def argument(node: Node, position: int, name: str, default: Any = None) -> Any:
    """A call's argument behind its input, by name or by its place."""
    if name in node.attributes:
        return node.attributes[name]
    args = node.attributes.get("args", ())
    return args[position] if len(args) > position else default


# --- operations that change no element ------------------------------------------------------------


def _dropout(passage: Passage, node: Node, name: str) -> Passage:
    active = argument(node, 1, "training", True)
    if active and argument(node, 0, "p", 0.5) != 0:
        raise Blocked(f"{name} drops elements even now: it is in training mode")
    return passage


def _reshaped(layout: Layout, node: Node, shapes: Shapes, name: str) -> Layout:
    before = shapes.shape(node.inputs[0])
    after = shapes.shape(node.name)
    move = _MOVES.get(node.function)
    if move is None and before and after and node.function in _KEEPS_ORDER:
        return _by_shapes(layout, before, after, name)
    move = move or _REGROUPS.get(node.function)
    if move is None:
        raise Blocked(f"{name} does not keep the channels apart, or not in a way that is known")
    found = move(layout, node)
    if found is None:
        raise Blocked(f"{name} puts the channels where they cannot be followed")
    return found


def _by_shapes(layout: Layout, before: Shape, after: Shape, name: str) -> Layout:
    """Elements stay in their order: the axis on which channels change at the same distance."""
    if not layout.plain or len(before) != layout.rank:
        raise Blocked(f"{name} puts the channels where they cannot be followed")
    channels, step = before[layout.axis], math.prod(before[layout.axis + 1 :])
    for axis, size in enumerate(after):
        distance = math.prod(after[axis + 1 :])
        fits = step % distance == 0 and (size * distance) % (channels * step) == 0
        if fits and (size > 1 or channels == 1):
            outer, inner = size * distance // (channels * step), step // distance
            return Layout(axis, len(after), outer, inner)
    raise Blocked(f"{name} does not keep the channels apart")


def _flatten(layout: Layout, node: Node) -> Layout | None:
    first = 1 if node.function == "Flatten" else 0
    start = argument(node, 0, "start_dim", first) % layout.rank
    end = argument(node, 1, "end_dim", -1) % layout.rank
    return _merged(layout, start, end)


def _merged(layout: Layout, start: int, end: int) -> Layout | None:
    rank = layout.rank - (end - start)
    if layout.axis < start or start == end:
        return replace(layout, rank=rank)
    if layout.axis > end:
        return replace(layout, rank=rank, axis=layout.axis - (end - start))
    if start == 0:
        return None  # samples are mixed in
    outer = layout.outer if layout.axis == start else None
    inner = layout.inner if layout.axis == end else None
    return None if (outer, inner) == (None, None) else Layout(start, rank, outer, inner)


def _view(layout: Layout, node: Node) -> Layout | None:
    """view(x.size(0), -1), the usual way to flatten."""
    args = node.attributes.get("args", ())
    sizes = args[0] if len(args) == 1 and isinstance(args[0], (tuple, list)) else args
    kept, *rest = sizes or (None,)
    flat = rest == [-1] and _is_batch_size(kept)
    return _merged(layout, 1, layout.rank - 1) if flat else None


def _is_batch_size(value: Any) -> bool:
    """torch.fx's stand-in for x.size(0) or x.shape[0]."""
    args: Any = getattr(value, "args", ())
    target = str(getattr(value, "target", ""))
    return len(args) > 1 and args[1] == 0 and ("size" in target or "getitem" in target)


def _permute(layout: Layout, node: Node) -> Layout | None:
    args = argument(node, 0, "dims", ())
    dims = args if isinstance(args, (tuple, list)) else node.attributes["args"]
    if len(dims) != layout.rank:
        return None
    return replace(layout, axis=[d % layout.rank for d in dims].index(layout.axis))


def _transpose(layout: Layout, node: Node) -> Layout | None:
    dims = [argument(node, i, f"dim{i}") for i in (0, 1)]
    if not all(isinstance(d, int) and -layout.rank <= d < layout.rank for d in dims):
        return None
    one, other = (d % layout.rank for d in dims)
    swapped = {one: other, other: one}
    return replace(layout, axis=swapped.get(layout.axis, layout.axis))


def _squeeze(layout: Layout, node: Node) -> Layout | None:
    dim = argument(node, 0, "dim")
    if not isinstance(dim, int) or not -layout.rank <= dim < layout.rank:
        return None
    gone = dim % layout.rank
    if gone == layout.axis:
        return None
    return _less(layout, [gone])


def _unsqueeze(layout: Layout, node: Node) -> Layout | None:
    dim = argument(node, 0, "dim")
    if not isinstance(dim, int):
        return None
    new = dim % (layout.rank + 1)
    return replace(layout, rank=layout.rank + 1, axis=layout.axis + (new <= layout.axis))


_MOVES = {"permute": _permute, "transpose": _transpose, "swapaxes": _transpose}
_REGROUPS = {
    "flatten": _flatten, "Flatten": _flatten, "view": _view, "reshape": _view,
    "squeeze": _squeeze, "unsqueeze": _unsqueeze,
}  # fmt: skip
#: With these, elements lie in the same order before and after.
_KEEPS_ORDER = (*_REGROUPS, "unflatten", "Unflatten")


# --- operations along other axes than the channels' -----------------------------------------------


def _indexed(layout: Layout, node: Node) -> Layout | None:
    """x[:, 0], one of the tokens; x[:, 1:], some."""
    given = argument(node, 0, "index")
    index = given if isinstance(given, tuple) else (given,)
    if len(index) > layout.rank or not all(isinstance(i, (int, slice)) for i in index):
        return None
    if len(index) > layout.axis and index[layout.axis] != slice(None):
        return None
    gone = [axis for axis, i in enumerate(index) if isinstance(i, int)]
    return _less(layout, gone)


def _averaged(layout: Layout, node: Node) -> Layout | None:
    """x.mean(1), the average over tokens."""
    given = argument(node, 0, "dim")
    dims = given if isinstance(given, (tuple, list)) else (given,)
    if not all(isinstance(d, int) and -layout.rank <= d < layout.rank for d in dims):
        return None
    gone = {d % layout.rank for d in dims}
    if layout.axis in gone:
        return None
    return layout if argument(node, 1, "keepdim", False) else _less(layout, gone)


def _less(layout: Layout, gone: Collection[int]) -> Layout:
    """Without some other axes."""
    axis = layout.axis - sum(g < layout.axis for g in gone)
    return replace(layout, rank=layout.rank - len(gone), axis=axis)


_SELECTS = {"getitem": _indexed, "mean": _averaged}


# --- operations over neighbouring elements --------------------------------------------------------


def _dims(node: Node, layout: Layout) -> int:
    """Spatial axes that a pooling or padding works on: those that its name tells, or all."""
    found = re.search(r"([123])d", node.function)
    return int(found[1]) if found else layout.rank - 2


def _on_channels(layout: Layout, dims: int, name: str) -> None:
    if layout.axis >= layout.rank - dims or not layout.plain:
        raise Blocked(f"{name} mixes the channels")


def _pooled(passage: Passage, node: Node, name: str) -> Passage:
    _on_channels(passage.layout, _dims(node, passage.layout), name)
    if node.op == "pool_max":
        stop = f"{name} takes maxima, which a negative scale turns into minima"
        return replace(passage, order_stop=passage.order_stop or stop)
    if "adaptive" in node.function.lower():
        return passage
    padded = any(_numbers(argument(node, 2, "padding", 0)))
    counted = argument(node, 4, "count_include_pad", True)
    divisor = argument(node, 5, "divisor_override")
    if divisor is None and not (padded and counted):
        return passage
    return _without_shift(passage, f"{name} averages over zeros of its padding, or not to one")


def _padded(passage: Passage, node: Node, name: str) -> Passage:
    amounts = _numbers(argument(node, 0, "padding" if "padding" in node.attributes else "pad", ()))
    place = 2 * (passage.layout.rank - 1 - passage.layout.axis)  # pairs, the last axis first
    if any(amount != 0 for amount in amounts[place : place + 2]) or not passage.layout.plain:
        raise Blocked(f"{name} mixes the channels")
    if all(amount == 0 for amount in amounts):
        return passage
    mode = str(argument(node, 1, "mode", "constant")) + node.function.lower()
    if any(kind in mode for kind in ("reflect", "replicat", "circular")):
        return passage
    if argument(node, 2, "value") not in (None, 0):
        raise Blocked(f"{name} pads with a constant that is not zero")
    return _without_shift(passage, f"{name} pads with zeros, which a shift would not reach")


def _without_shift(passage: Passage, why: str) -> Passage:
    return replace(passage, shift_stop=passage.shift_stop or why)


def _numbers(value: Any) -> tuple[int, ...]:
    return tuple(value) if isinstance(value, (tuple, list)) else (value,)
