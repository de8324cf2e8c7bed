"""Folds made in a copy of an ONNX model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from normkit.extras import needed
from normkit.models.folding.algebra import Layer, changed
from normkit.models.folding.planning import Fold, Plan
from normkit.models.folding.stored import StoredLayers
from normkit.models.graphs.onnx_values import captured, rename, tensor_of
from normkit.models.graphs.reading import Call

__all__ = ["edited"]

Tensor = torch.Tensor


def edited(proto: Any, layers: StoredLayers, plan: Plan) -> tuple[Any, dict[str, str]]:
    """A model with the folds of a plan made, and which of its values stay what they are.

    Those are the changed layers' results, or of norms behind them: names in the old model, with
    those in the new one. The old model is only read.
    """
    editor = _Editor(proto, layers)
    for fold in plan.folds:
        editor.take_out(fold)
    for name, changes in plan.changes.items():
        before = layers.layer(layers.reading.graph[name])
        assert isinstance(before, Layer)
        editor.set_layer(name, changed(before, changes), before.weight.dtype)
    return editor.model(), {before: editor.now(after) for before, after in editor.same.values()}


@dataclass(eq=False)
class _New:
    """A tensor that a node is to take, under this name if it is free once unused ones are gone."""

    node: Any
    place: int
    value: Tensor
    name: str


class _Editor:
    def __init__(self, proto: Any, layers: StoredLayers) -> None:
        self.reading, self.old = layers.reading, proto
        self.weights = {tensor.name for tensor in proto.graph.initializer}
        self.nodes = [_copied(node) for node in proto.graph.node]
        self.makers = {name: node for node in self.nodes for name in node.output if name}
        self.taken_before = self.taken()
        self.moved: dict[str, str] = {}  # values in whose place another stands
        self.same: dict[str, tuple[str, str]] = {}  # by layer: a value before, and after
        self.new: list[_New] = []

    def now(self, name: str) -> str:
        """The value that stands for one of the old model."""
        while name in self.moved:
            name = self.moved[name]
        return name

    # -- norms --------------------------------------------------------------------------------

    def take_out(self, fold: Fold) -> None:
        """Remove a norm, or its gamma and beta."""
        call = self.reading.calls[fold.norm.name]
        result = call.end.output[0]
        node = self.makers[result]
        if fold.whole or call.plain:
            source = node.input[0] if fold.whole else self.now(call.plain)
            self.nodes = [other for other in self.nodes if other is not node]
            self.put_in_place(source, result)
            if fold.direction == "before":
                self.same[fold.into[0].name] = result, source
            return
        ones = torch.ones_like(call.stored["weight"].handle)
        self.take(node, 1, ones, f"ones_{ones.numel()}_{str(ones.dtype)[6:]}")
        if "bias" in call.stored and node.op_type == "LayerNormalization":
            del node.input[2:]
        elif "bias" in call.stored:
            zeros = torch.zeros_like(call.stored["bias"].handle)
            self.take(node, 2, zeros, f"zeros_{zeros.numel()}_{str(zeros.dtype)[6:]}")

    def put_in_place(self, value: str, result: str) -> None:
        """Let a value stand where another was; a result of the model keeps its name."""
        if any(output.name == result for output in self.old.graph.output):
            value, result = result, value
        self.moved[result] = value
        rename(self.nodes, result, value)

    # -- layers -------------------------------------------------------------------------------

    def set_layer(self, name: str, layer: Layer, dtype: torch.dtype) -> None:
        """Give a layer's node new weights."""
        call, layer_node = self.reading.calls[name], self.reading.graph[name]
        end = call.end.output[0]
        self.same.setdefault(name, (end, end))
        weight, node = call.stored["weight"], self.makers[layer_node.handle.output[0]]
        value = layer.weight.t() if weight.turned else layer.weight
        target = layer_node.target.removesuffix(".weight")
        self.take(node, 1, value.to(dtype), self.name_of(weight.name, f"{target}.weight"))
        if layer.bias is not None:
            self.set_bias(node, call, layer.bias.to(dtype), f"{target}.bias")

    def name_of(self, old: str, otherwise: str) -> str:
        """A weight's own name; another for what was computed."""
        return old if old in self.weights else otherwise

    def set_bias(self, node: Any, call: Call, value: Tensor, name: str) -> None:
        stored = call.stored.get("bias")
        name = name if stored is None else self.name_of(stored.name, name)
        if node.op_type != "MatMul":
            node.input.extend([""] * (3 - len(node.input)))
            self.take(node, 2, value, name)
        elif stored is not None:
            adds = self.makers[call.end.output[0]]
            self.take(adds, list(adds.input).index(stored.name), value, name)
        else:
            self.add_behind(node, value, name)

    def add_behind(self, node: Any, value: Tensor, name: str) -> None:
        """A product takes its bias in a node of its own."""
        result = node.output[0]
        node.output[0] = f"{result}_without_bias"
        make = needed("onnx").helper.make_node
        adds = make("Add", [node.output[0], ""], [result], f"{node.name or result}_bias")
        place = next(i for i, other in enumerate(self.nodes) if other is node)
        self.nodes.insert(place + 1, adds)
        self.take(adds, 1, value, name)

    def take(self, node: Any, place: int, value: Tensor, name: str) -> None:
        """Let a node take a new tensor."""
        node.input[place] = ""
        self.new.append(_New(node, place, value.contiguous(), name))

    # -- the model ----------------------------------------------------------------------------

    def model(self) -> Any:
        """The edited model; weights that nothing takes any more are gone."""
        self.drop_idle_nodes()
        unused = self.taken_before - self.taken()
        proto = _without(self.old, unused)
        names = _names(proto, self.nodes)
        made: dict[str, tuple[str, Tensor]] = {}
        for new in self.new:
            name, value = made.get(new.name, ("", new.value))
            if not name or value.shape != new.value.shape or not torch.equal(value, new.value):
                name = _free(new.name, names)
                made[new.name] = name, new.value
                _add_weight(proto, name, new.value)
            new.node.input[new.place] = name
        proto.graph.node.extend(self.nodes)
        known = _names(proto, self.nodes)
        proto.graph.value_info.extend(v for v in self.old.graph.value_info if v.name in known)
        return proto

    def drop_idle_nodes(self) -> None:
        """Remove nodes that made weights of which folding took the last user."""
        while True:
            unused = self.taken_before - self.taken()
            kept = [n for n in self.nodes if not n.output or not unused.issuperset(n.output)]
            if len(kept) == len(self.nodes):
                return
            self.nodes = kept

    def taken(self) -> set[str]:
        """The values that something takes."""
        found = {name for node in self.nodes for name in (*node.input, *captured(node))}
        return found | {output.name for output in self.old.graph.output}


def _copied(message: Any) -> Any:
    new = type(message)()
    new.CopyFrom(message)
    return new


def _without(proto: Any, unused: set[str]) -> Any:
    """A copy without nodes, what is said of values, and weights of these names."""
    new, graph = type(proto)(), type(proto.graph)()
    for field, value in proto.ListFields():
        if field.name != "graph":
            _set(new, field, value)
    for field, value in proto.graph.ListFields():
        if field.name in ("initializer", "input"):
            weights = unused & {t.name for t in proto.graph.initializer}
            getattr(graph, field.name).extend(t for t in value if t.name not in weights)
        elif field.name not in ("node", "value_info"):
            _set(graph, field, value)
    new.graph.CopyFrom(graph)
    return new


def _set(message: Any, field: Any, value: Any) -> None:
    held = getattr(message, field.name)
    if hasattr(held, "extend"):
        held.extend(value)
    elif hasattr(held, "CopyFrom"):
        held.CopyFrom(value)
    else:
        setattr(message, field.name, value)


def _names(proto: Any, nodes: list[Any]) -> set[str]:
    return {
        *(t.name for t in (*proto.graph.initializer, *proto.graph.input, *proto.graph.output)),
        *(name for node in nodes for name in (*node.input, *node.output)),
    }


def _free(name: str, taken: set[str]) -> str:
    """The name, or one like it that is not taken; taken from now on."""
    found, number = name, 1
    while found in taken:
        found, number = f"{name}_{number}", number + 1
    taken.add(found)
    return found


def _add_weight(proto: Any, name: str, value: Tensor) -> None:
    tensor = tensor_of(name, value)
    proto.graph.initializer.append(tensor)
    if proto.ir_version < 4:  # then every weight is an input too
        make = needed("onnx").helper.make_tensor_value_info
        proto.graph.input.append(make(name, tensor.data_type, tensor.dims))
