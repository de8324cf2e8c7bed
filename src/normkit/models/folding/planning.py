"""Which norms of a graph can go into which layers, and why the others cannot.

Nothing is computed on data and nothing is changed: a plan is a list of folds in the order in which
they are to be made, and the changes that they add up to for each layer. It serves every format that
has a graph.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, TypeVar

import torch

from normkit.models.folding.algebra import Affine, Change, Layer, changed
from normkit.models.folding.ends import (
    LAYER_OPS,
    Form,
    called,
    check_passage,
    entered,
    ranks_of,
    spread,
    usable,
)
from normkit.models.folding.passing import (
    Blocked,
    Layout,
    Passage,
    Shapes,
    carried,
    is_question,
    is_reference,
)
from normkit.models.graphs.graph import Graph, Node
from normkit.models.sites import NormSite

__all__ = ["LAYER_OPS", "Fold", "Form", "Layers", "Plan", "plan"]


class Layers(Shapes, Protocol):
    """What a format knows of the layers in its graph. Nodes are asked for one at a time.

    Both answers may be a string instead: why this call's weights are not to be changed, as a clause
    that follows the layer's name and "cannot change: ".
    """

    def layer(self, node: Node) -> Layer | str:
        """The weights of a conv, conv_transpose or linear node that no other node takes."""

    def form(self, node: Node, site: NormSite) -> Form | str:
        """The norm at this node, if it computes what its kind says, and nothing at call time."""


@dataclass(frozen=True, eq=False)
class Fold:
    """One norm, or its gamma and beta, taken into the layer before it or the layers after it.

    Args:
        norm: its node.
        site: the norm itself.
        into: the layers' nodes; one for ``"before"``.
        direction: where those layers are, seen from the norm.
        through: the nodes between, which stay.
        whole: whether nothing is left of the norm but what its form calls the tail; where not, its
            statistics stay, without gamma and beta.
        form: of the norm.
    """

    norm: Node
    site: NormSite
    into: tuple[Node, ...]
    direction: str
    through: tuple[Node, ...] = ()
    whole: bool = True
    form: Form = field(default_factory=Form)

    @property
    def tail(self) -> str:
        """What its place still has to do; "" for nothing."""
        return self.form.tail


@dataclass(frozen=True, eq=False)
class Plan:
    """What is to be done.

    Args:
        folds: in the order in which they are to be made.
        changes: for each layer by its node's name, what :func:`algebra.changed` takes.
        refused: for each other norm by its site's name, why it stays.
    """

    folds: list[Fold] = field(default_factory=list)
    changes: dict[str, list[Change]] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)


def plan(graph: Graph, sites: Iterable[NormSite], layers: Layers) -> Plan:
    """All the folds that leave the function of a graph in inference what it is.

    Args:
        sites: its norms; ``target`` of a norm's node is the name of its site.
    """
    planner = _Planner(graph, layers)
    waiting = list(sites)
    while waiting:  # a fold clears the way for others: norms in a row
        before = len(planner.plan.folds)
        waiting = [site for site in waiting if not planner.folds(site)]
        if len(planner.plan.folds) == before:
            break
    return planner.plan


class _Planner:
    def __init__(self, graph: Graph, layers: Layers) -> None:
        self.graph, self.layers = graph, layers
        self.plan = Plan()
        self.order = {node.name: position for position, node in enumerate(graph)}
        self.gone: set[str] = set()  # nodes of norms of which nothing is left
        self.answers: set[str] = set()  # nodes that hold shapes and the like
        for node in graph:
            derived = bool(node.inputs) and self.answers.issuperset(node.inputs)
            if is_question(node) or derived:
                self.answers.add(node.name)

    def folds(self, site: NormSite) -> bool:
        """Whether the norm was folded; else its reason is noted."""
        try:
            fold, changes = self.fold(site)
        except Blocked as why:
            self.plan.refused[site.name] = str(why)
            return False
        self.plan.refused.pop(site.name, None)
        self.plan.folds.append(fold)
        for name, change in changes.items():
            self.plan.changes.setdefault(name, []).append(change)
        if fold.whole and not fold.tail:
            self.gone.add(fold.norm.name)
        return True

    def fold(self, site: NormSite) -> tuple[Fold, dict[str, Change]]:
        node = self.node_of(site)
        affine = usable(site)
        form = self.layers.form(node, site)
        if isinstance(form, str):
            raise Blocked(form)
        norm = _Norm(node, affine, self.layouts(node, site, form))
        reasons = []
        if site.tracks:  # else its statistics come between the layer and gamma
            try:
                return self.made(norm, site, form, "before", self.before(norm))
            except Blocked as why:
                reasons.append(f"not into the layer before it: {why}")
        try:
            if form.tail:
                raise Blocked(f"its own {form.tail} comes first")
            return self.made(norm, site, form, "after", self.after(norm))
        except Blocked as why:
            reasons.append(f"not into the layers after it: {why}")
        raise Blocked("; ".join(reasons))

    @staticmethod
    def made(
        norm: _Norm, site: NormSite, form: Form, direction: str, found: _Found
    ) -> tuple[Fold, dict[str, Change]]:
        into, through, changes = found
        return Fold(norm.node, site, into, direction, through, site.tracks, form), changes

    def layouts(self, node: Node, site: NormSite, form: Form) -> list[Layout]:
        """Where the norm's channels may be, the likeliest first."""
        shape = self.layers.shape(node.name) or self.layers.shape(node.inputs[0])
        ranks = ranks_of(site, form) if shape is None else (len(shape),)
        return [Layout(form.axis % rank, rank) for rank in ranks]

    def node_of(self, site: NormSite) -> Node:
        calls = self.graph.calls(site.name)
        if len(calls) > 1:
            raise Blocked(f"it is called {len(calls)} times")
        if not calls:
            raise Blocked(self.why_unseen(site.name))
        if len(self.data(calls[0])) != 1:
            raise Blocked("it is called with more than its input")
        if calls[0].obstacle:
            raise Blocked(calls[0].obstacle)
        return calls[0]

    def data(self, node: Node) -> list[str]:
        """The inputs that hold elements, not shapes."""
        return [name for name in node.inputs if name not in self.answers]

    def takers(self, node: Node) -> list[Node]:
        """The nodes that take a node's elements; those that ask for its shape do not."""
        return [
            user
            for user in self.graph.users(node.name)
            if user.name not in self.answers and not is_reference(user, node.name)
        ]

    def why_unseen(self, name: str) -> str:
        around = [p for p in self.graph.unknown if not p or name.startswith(f"{p}.")]
        around += [n.target for n in self.graph if n.target and name.startswith(f"{n.target}.")]
        if not around:
            return "the model's forward does not call it"
        path = max(around, key=len)
        why = self.graph.unknown.get(path, "its inside is not followed")
        return f"what surrounds it, {path or 'the model'}, is not known: {why}"

    # --- the layers that a norm can go into -----------------------------------------------------

    def before(self, norm: _Norm) -> _Found:
        """The layer whose result the norm takes."""
        end, way = self.way_back(norm.node)
        layer = self.layer(end)
        if layer.outputs != len(norm.affine.scale):
            raise Blocked(f"{called(end)} has {layer.outputs} output channels for its own")
        passage = self.first(self.starts(end, layer), lambda start: self.led(start, way, norm))
        check_passage(passage, norm.affine)
        change = Change(norm.affine, "outputs")
        self.check_weights(end, layer, change)
        return (end,), way, {end.name: change}

    def way_back(self, node: Node) -> tuple[Node, tuple[Node, ...]]:
        """The nearest layer before a node and the nodes between, all of which lead there only."""
        way: list[Node] = []
        while True:
            user, node = node, self.graph[self.data(node)[0]]
            if any(other is not user for other in self.takers(node)):
                raise Blocked("what it takes is used elsewhere too")
            if node.op in LAYER_OPS:
                return node, tuple(reversed(way))
            if node.op in ("input", "constant"):
                raise Blocked("there is only the model's input")
            if node.op in _JOINS:
                raise Blocked(f"several results come together there ({node.op})")
            if len(self.data(node)) != 1:
                raise Blocked(f"{called(node)} stands between")
            if node.name not in self.gone:
                way.append(node)

    def starts(self, node: Node, layer: Layer) -> list[Layout]:
        """Where a layer's output channels may be."""
        if node.op != "linear":
            return [Layout(1, layer.weight.dim())]
        shape = self.layers.shape(node.name)
        ranks = (2, 3, 4, 5) if shape is None else (len(shape),)
        return [Layout(rank - 1, rank) for rank in ranks]

    def led(self, start: Layout, way: tuple[Node, ...], norm: _Norm) -> Passage:
        """The passage from a layer to the norm behind it."""
        passage = Passage(start)
        for node in way:
            passage = carried(passage, node, self.layers)
        there = passage.layout
        apart = there.outer in (1, None) and there.inner in (1, None)
        if there not in [replace(n, outer=there.outer, inner=there.inner) for n in norm.layouts]:
            raise Blocked("its output channels are along another axis than the norm's")
        if not apart:
            raise Blocked("its output channels are spread over the norm's")
        return passage

    def after(self, norm: _Norm) -> _Found:
        """The layers that take the norm's result, if nothing else does."""
        return self.first(norm.layouts, lambda layout: self.after_as(norm, layout))

    def after_as(self, norm: _Norm, layout: Layout) -> _Found:
        found = list(self.ends(norm.node, Passage(layout)))
        if not found:
            raise Blocked("nothing takes its result")
        changes: dict[str, Change] = {}
        through: dict[Node, None] = {}
        for end, way, passage in found:
            layer = self.layer(end)
            if layer.opaque:
                raise Blocked(f"{called(end)} cannot change: {layer.opaque}")
            change = Change(spread(norm.affine, passage.layout, end, layer), "inputs")
            check_passage(entered(passage, end, layer), norm.affine)
            self.check_weights(end, layer, change)
            changes[end.name] = change
            through |= dict.fromkeys(way)
        self.check_aliases(norm.node, [end for end, _, _ in found])
        return tuple(end for end, _, _ in found), tuple(through), changes

    def check_aliases(self, node: Node, ends: list[Node]) -> None:
        """Without the norm, the layers see its input itself: nothing may write on it meanwhile."""
        last = max(self.order[end.name] for end in ends)
        for other in self.takers(self.graph[self.data(node)[0]]):
            if _writes(other) and self.order[other.name] < last:
                raise Blocked(f"{called(other)} changes its input in place")

    @staticmethod
    def first(layouts: Sequence[Layout], attempt: Callable[[Layout], T]) -> T:
        """What the attempt gives for the first layout that makes sense all the way."""
        reasons = []
        for layout in layouts:
            try:
                return attempt(layout)
            except Blocked as why:
                reasons.append(why)
        raise reasons[0]

    def ends(
        self, node: Node, passage: Passage, way: tuple[Node, ...] = ()
    ) -> Iterator[tuple[Node, tuple[Node, ...], Passage]]:
        """Every layer to which a result goes, with the way there."""
        for user in self.takers(node):
            if user.op == "output":
                raise Blocked("its result is an output of the model")
            if user.op in _JOINS:
                raise Blocked(f"its result goes into another operation too ({user.op})")
            if len(self.data(user)) != 1:
                raise Blocked(f"its result goes into {called(user)}")
            if user.op == "conv_transpose":
                raise Blocked(f"{called(user)} is a transposed convolution")
            if user.op in LAYER_OPS:
                yield user, way, passage
            elif user.name in self.gone:
                yield from self.ends(user, passage, way)
            else:
                passed = carried(passage, user, self.layers)
                yield from self.ends(user, passed, (*way, user))

    # --- a layer's weights ----------------------------------------------------------------------

    def layer(self, node: Node) -> Layer:
        calls = len(self.graph.calls(node.target))
        if calls > 1:
            raise Blocked(f"{called(node)} is called {calls} times")
        layer = node.obstacle or self.layers.layer(node)
        if isinstance(layer, str):
            raise Blocked(f"{called(node)} cannot change: {layer}")
        if not layer.weight.is_floating_point():
            raise Blocked(f"{called(node)} cannot change: its weights are {layer.weight.dtype}")
        return layer

    def check_weights(self, node: Node, layer: Layer, change: Change) -> None:
        """The new weights are finite in the dtype in which they are kept."""
        if not _is_finite(layer, layer.weight.dtype):
            raise Blocked(f"{called(node)} has weights that are not finite")
        new = changed(layer, [*self.plan.changes.get(node.name, ()), change])
        if not _is_finite(new, layer.weight.dtype):
            dtype = str(layer.weight.dtype).removeprefix("torch.")
            raise Blocked(f"the weights of {called(node)} would overflow in {dtype}")


T = TypeVar("T")
#: Layers, the nodes between, and each layer's change by its node's name.
_Found = tuple[tuple[Node, ...], tuple[Node, ...], dict[str, Change]]
_JOINS = ("concatenate", "add", "multiply")


@dataclass(frozen=True, eq=False)
class _Norm:
    """A norm that may be folded: its node, what it does to a channel, where channels may be."""

    node: Node
    affine: Affine
    layouts: list[Layout]


def _writes(node: Node) -> bool:
    """Whether a call writes its result over its input."""
    by_name = node.function.endswith("_") or node.function in ("iadd", "isub", "imul", "itruediv")
    return by_name or bool(node.attributes.get("inplace"))


def _is_finite(layer: Layer, dtype: torch.dtype) -> bool:
    kept = [layer.weight, *([] if layer.bias is None else [layer.bias])]
    return all(bool(t.to(dtype).isfinite().all()) for t in kept)
