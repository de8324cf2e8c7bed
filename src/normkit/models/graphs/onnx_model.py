"""The graph and the norms of an ONNX model. Nothing in it is run but the making of constants."""

from __future__ import annotations

import math
from typing import Any

from normkit.models.graphs import onnx_ops as ops
from normkit.models.graphs.graph import Graph, Node
from normkit.models.graphs.onnx_norms import Composite, composites
from normkit.models.graphs.onnx_values import (
    Values,
    attributes_of,
    captured,
    decimal,
    graphs_of,
    taken,
)
from normkit.models.graphs.reading import Call, Reading, Stored
from normkit.models.sites import NormSite

__all__ = ["onnx_graph", "onnx_sites", "read_onnx_graph"]


def onnx_graph(proto: Any) -> Graph:
    """The operations of an ONNX model, and how they follow each other.

    Args:
        proto: an ``onnx.ModelProto``, its external data loaded.

    >>> from onnx.parser import parse_model
    >>> proto = parse_model('''<ir_version: 10, opset_import: ["" : 20]>
    ...     net (float[1, 2, 4, 4] x) => (float[1, 2, 4, 4] y) <float[2] g = {1, 1}>
    ...     { a = Relu(x)  y = BatchNormalization(a, g, g, g, g) }''')
    >>> [(n.op, *n.inputs) for n in onnx_graph(proto)]
    [('input',), ('activation', 'x'), ('norm', 'Relu_0'), ('output', 'BatchNormalization_1')]
    """
    return read_onnx_graph(proto).graph


def onnx_sites(proto: Any) -> list[NormSite]:
    """The norms of an ONNX model in the order in which they run.

    Args:
        proto: an ``onnx.ModelProto``, its external data loaded.

    >>> from onnx.parser import parse_model
    >>> proto = parse_model('''<ir_version: 10, opset_import: ["" : 20]>
    ...     net (float[1, 2, 4, 4] x) => (float[1, 2, 4, 4] y) <float[2] g = {1, 1}>
    ...     { y = BatchNormalization(x, g, g, g, g) }''')
    >>> [(s.name, s.kind, s.channels, s.tracks) for s in onnx_sites(proto)]
    [('BatchNormalization_0', 'batch', 2, True)]
    """
    return read_onnx_graph(proto).sites


def read_onnx_graph(proto: Any) -> Reading:
    """An ONNX model's graph, its norms, and the tensors of its layers."""
    return _Reader(proto).read()


class _Reader:
    def __init__(self, proto: Any) -> None:
        self.proto = proto
        self.values = Values(proto)
        self.functions = {(f.domain, f.name) for f in proto.functions}
        self.nodes: dict[str, Node] = {}
        self.sites: list[NormSite] = []
        self.calls: dict[str, Call] = {}
        self.unknown: dict[str, str] = {}
        self.hidden: dict[str, str] = {}
        self.standing: dict[str, str] = {}  # the name of the node that has a value
        self.owners: dict[str, str] = {}  # the tensor, or the norm, that a target's name stands for
        self.composites = dict(composites(proto.graph, self.values))

    def read(self) -> Reading:
        graph = self.proto.graph
        inside = {name for c in self.composites.values() for n in c.inside for name in n.output}
        for value in graph.input:
            if value.name not in self.values.initializers:
                self.emit([value.name], Node(self.free(value.name), "input", handle=value))
        for place, node in enumerate(graph.node):
            hidden = not any(self.values.outputs.intersection(node.output))
            if hidden and all(name in inside or self.values.still(name) for name in node.output):
                continue
            self.node(node, self.free(node.name or f"{node.op_type}_{place}"))
        results = self.operands([o.name for o in graph.output])
        self.emit([], Node(self.free("output"), "output", results))
        whole = Graph(list(self.nodes.values()), self.unknown)
        return Reading(whole, self.sites, self.calls, self.hidden)

    def free(self, name: str) -> str:
        """The name, or one like it that no node has."""
        found, number = name, 1
        while found in self.nodes:
            found, number = f"{name}_{number}", number + 1
        return found

    def emit(self, results: list[str], value: Node) -> None:
        self.nodes[value.name] = value
        self.standing |= {name: value.name for name in results if name}

    def node(self, node: Any, name: str) -> None:
        composite = self.composites.get(node.output[0]) if node.output else None
        standard = node.domain in ("", "ai.onnx")
        if composite is not None:
            self.norm(node, name, composite)
        elif standard and node.op_type in ops.NORMS:
            self.norm(node, name, self.single_norm(node))
        elif standard and node.op_type in ops.LAYERS and self.layer(node, name):
            pass
        elif not (standard and node.op_type == "Add" and self.joins_product(node)):
            self.other(node, name)

    def operands(self, names: Any) -> tuple[str, ...]:
        """The nodes that have these values; one each for constants."""
        for name in names:
            if name and name not in self.standing:
                target = self.values.root(name)[0] if self.values.still(name) else ""
                self.emit([name], Node(self.free(name), "constant", target=target))
        return tuple(self.standing[n] for n in names if n)

    def target(self, wished: str, owner: str, otherwise: str) -> str:
        """A name that stands for this owner alone."""
        for name in (wished, otherwise):
            if name and self.owners.setdefault(name, owner) == owner:
                return name
        return self.target(f"{otherwise}_", owner, f"{otherwise}_")

    # -- norms --------------------------------------------------------------------------------

    def single_norm(self, node: Any) -> Composite:
        names = dict(zip(("", *_PARAMETERS), node.input, strict=False))
        source = names.pop("")
        return Composite(ops.NORMS[node.op_type], source, {r: n for r, n in names.items() if n})

    def norm(self, node: Any, name: str, found: Composite) -> None:
        tensors = {role: self.values.tensor(value) for role, value in found.parameters.items()}
        depends = any(not self.values.still(v) for v in found.parameters.values())
        statistics = [tensors.get(r) for r in ("running_mean", "running_var")]
        if depends or (found.kind == "batch" and any(t is None for t in statistics)):
            return self.other(node, name)
        said = attributes_of(node)
        training = _in_training(node, self.values.opset)
        obstacle = ""
        if any(t is None for t in tensors.values()):
            obstacle = "its parameters are not constant"
        elif any(n in self.values.takers or n in self.values.outputs for n in node.output[1:] if n):
            obstacle = "its statistics are used too"
        elif said.get("spatial", 1) != 1:
            obstacle = "it has statistics for every position"
        target = self.target(self.common_name(found), name, name)
        axis = self.axis(node, found)
        eps = said.get("epsilon", 1e-5) if found.eps is None else found.eps
        attributes: dict[str, Any] = {"eps": decimal(eps), "training": training}
        if axis is not None:
            attributes["normalized_shape"] = axis
        attributes["shape"] = self.values.shape(found.source)
        inputs = self.operands([found.source])
        function = found.function or node.op_type
        value = Node(name, "norm", inputs, target, function, attributes, obstacle, node)
        self.emit(list(node.output[:1]), value)
        stored = {r: Stored(n, handle=tensors[r]) for r, n in found.parameters.items()}
        self.calls[name] = Call(stored, node, found.plain, found.source)
        self.sites.append(self.site(target, found, function, tensors, attributes, said))
        return None

    def common_name(self, found: Composite) -> str:
        """The layer's name in its parameters' names, where they agree on one."""
        roots = [self.values.root(name)[0] for name in found.parameters.values()]
        prefixes = {r.rpartition(".")[0] for r in roots if r in self.values.initializers}
        agreed = prefixes.pop() if len(prefixes) == 1 else ""
        return "" if agreed in self.owners else agreed

    def axis(self, node: Any, found: Composite) -> tuple[int | str, ...] | None:
        """The sizes that a layer or RMS norm normalizes over."""
        if found.kind not in ("layer", "rms"):
            return None
        shape = self.values.shape(found.source)
        start = found.axis if found.axis is not None else attributes_of(node).get("axis", -1)
        if shape is not None:
            return shape[start:] if start < 0 else shape[start % len(shape) :]
        weight = found.parameters.get("weight")
        return self.values.shape(weight) if weight else None

    def site(
        self, name: str, found: Composite, function: str, tensors: Any, attributes: Any, said: Any
    ) -> NormSite:
        mean, var = tensors.get("running_mean"), tensors.get("running_var")
        tracks = mean is not None and var is not None
        momentum = said.get("momentum", 0.9)  # ONNX weighs the old value with it
        return NormSite(
            name=name,
            kind=found.kind,
            type_name=function,
            channels=self.channels(found, tensors, attributes),
            gamma=tensors.get("weight"),
            beta=tensors.get("bias"),
            mean=mean,
            var=var,
            eps=attributes["eps"],
            momentum=round(1.0 - decimal(momentum), 9) if tracks else None,
            groups=said.get("num_groups") if found.kind == "group" else None,
            training=bool(attributes["training"]),
            tracks=tracks,
        )

    def channels(self, found: Composite, tensors: Any, attributes: Any) -> int | None:
        sizes = attributes.get("normalized_shape")
        if sizes is not None and all(isinstance(n, int) for n in sizes):
            return math.prod(sizes)
        shape = self.values.shape(found.source) or ()
        second = shape[1] if len(shape) > 1 and isinstance(shape[1], int) else None
        if found.kind == "group" and second is not None:
            return second  # the gains of old versions are one a group
        known = [t.numel() for t in tensors.values() if t is not None]
        return known[0] if known else second

    # -- layers with a weight -----------------------------------------------------------------

    def layer(self, node: Any, name: str) -> bool:
        """Whether the node is a layer; a product of two results is none."""
        if len(node.input) < 2 or not self.values.still(node.input[1]):
            return False
        said, op = attributes_of(node), ops.LAYERS[node.op_type]
        shape = self.values.shape(node.input[1])
        if op == "linear" and (said.get("transA") or shape is None or len(shape) != 2):
            return False
        turned = op == "linear" and not said.get("transB", 0)
        attributes = ops.layer_attributes(node, shape, turned)
        root, _ = self.values.root(node.input[1])
        stored, obstacle = self.weights(node, turned, attributes)
        if any(said.get(scale, 1.0) != 1.0 for scale in ("alpha", "beta")):
            obstacle = "its product is scaled"
        obstacle = obstacle or self.used_elsewhere(root)
        attributes["shape"] = self.values.shape(node.output[0])
        inputs = self.operands(node.input[:1])
        target = self.target(root.removesuffix(".weight"), root, name)
        value = Node(name, op, inputs, target, node.op_type, attributes, obstacle, node)
        self.emit(list(node.output), value)
        self.calls[name] = Call(stored, node)
        return True

    def weights(
        self, node: Any, turned: bool, attributes: dict[str, Any]
    ) -> tuple[dict[str, Stored], str]:
        """The tensors of a layer as torch.nn keeps them, and why they are not to be changed."""
        weight = self.values.tensor(node.input[1])
        if weight is None:
            return {}, "its weight is computed"
        stored = {"weight": Stored(node.input[1], turned, weight.t() if turned else weight)}
        if len(node.input) < 3 or not node.input[2]:
            return stored, ""
        bias = self.bias(node.input[2], attributes)
        if bias is None:
            return stored, "its bias is not one number for each output"
        return {**stored, "bias": Stored(node.input[2], handle=bias)}, ""

    def bias(self, value: str, attributes: dict[str, Any]) -> Any:
        """A constant with a number for each output of a layer; None where it is not that."""
        tensor = self.values.tensor(value)
        out = attributes.get("out_features", attributes.get("out_channels"))
        if tensor is None or out is None or tensor.numel() not in (1, out):
            return None
        if tensor.dim() and tensor.shape[-1] != tensor.numel():
            return None
        return tensor.reshape(-1).expand(out).clone()

    def used_elsewhere(self, root: str) -> str:
        """What takes a weight but as a layer's weight; "" for nothing."""
        for user in self.final_takers(root):
            as_weight = user.op_type in ops.LAYERS and self.values.root(user.input[1])[0] == root
            others = [n for place, n in enumerate(user.input) if place != 1]
            if not as_weight or any(self.values.root(n)[0] == root for n in others):
                return f"its weight is used by {user.name or user.op_type} too"
        return "its weight is a result of the model" if root in self.values.outputs else ""

    def final_takers(self, name: str) -> list[Any]:
        """The nodes that take a value or a copy of it."""
        found = []
        for user in self.values.takers.get(name, ()):
            copies = user.op_type in ("Identity", "Transpose") and bool(user.output)
            copies = copies and user.output[0] not in self.values.outputs
            found += self.final_takers(user.output[0]) if copies else [user]
        return found

    def joins_product(self, node: Any) -> bool:
        """Whether it adds a bias to a product with a weight; if so the two become one layer."""
        for product, bias in (node.input, tuple(node.input)[::-1]):
            name = self.standing.get(product, "")
            call = self.calls.get(name)
            alone = len(self.values.takers.get(product, ())) == 1
            if call is None or call.end.op_type != "MatMul" or not alone:
                continue
            if "bias" in call.stored or product in self.values.outputs or product == bias:
                continue
            layer = self.nodes[name]
            value = self.bias(bias, layer.attributes) if self.values.still(bias) else None
            if value is not None and len(self.values.shape(bias) or ()) <= len(
                layer.attributes["shape"] or (0,)
            ):
                self.calls[name] = Call({**call.stored, "bias": Stored(bias, handle=value)}, node)
                self.standing[node.output[0]] = name
                return True
        return False

    # -- everything else ----------------------------------------------------------------------

    def other(self, node: Any, name: str) -> None:
        op, function, attributes = ops.plainly(node, self.values)
        shape = self.values.shape(node.output[0]) if node.output else None
        if any(True for _ in graphs_of(node)):
            self.unknown[name] = f"{node.op_type} holds a graph of its own"
            self.look_into(node, name, f"it is within {name}, which holds a graph of its own")
        elif (node.domain, node.op_type) in self.functions:
            self.unknown[name] = f"{node.op_type} is a function of the model's own"
        elif node.domain not in ("", "ai.onnx"):
            self.unknown[name] = f"{node.op_type} is an operator of {node.domain}"
        names = [*taken(node), *dict.fromkeys(captured(node))]
        if op in _WITHOUT_CONSTANTS or function in ("getitem", "mean"):
            names = [n for n in names if not self.values.still(n)] or names[:1]
        else:
            names = [n for n in names if not (self.values.still(n) and self.is_size(n))]
        inputs = self.operands(names)
        attributes = {**attributes, "shape": shape}
        self.emit(list(node.output), Node(name, op, inputs, "", function, attributes, "", node))

    def look_into(self, node: Any, name: str, where: str) -> None:
        """The norms in a node's own graphs; they are in no graph here."""
        for graph in graphs_of(node):
            for place, inner in enumerate(graph.node):
                own = f"{name}/{inner.name or f'{inner.op_type}_{place}'}"
                if inner.domain in ("", "ai.onnx") and inner.op_type in ops.NORMS:
                    self.hidden_norm(inner, own, where)
                self.look_into(inner, own, where)

    def hidden_norm(self, node: Any, name: str, where: str) -> None:
        found, said = self.single_norm(node), attributes_of(node)
        tensors = {r: self.values.tensor(v) for r, v in found.parameters.items()}
        target = self.target(self.common_name(found), name, name)
        self.hidden[target] = where
        if all(tensor is not None for tensor in tensors.values()):  # kept outside of that graph
            training = node.op_type == "BatchNormalization" and _in_training(
                node, self.values.opset
            )
            attributes = {"eps": decimal(said.get("epsilon", 1e-5)), "training": training}
            site = self.site(target, found, node.op_type, tensors, attributes, said)
            self.sites.append(site)

    def is_size(self, name: str) -> bool:
        """Whole numbers that follow from shapes say where, not what."""
        return self.values.element_type(name) in _WHOLE and name not in self.values.initializers


_PARAMETERS = ("weight", "bias", "running_mean", "running_var")
_WITHOUT_CONSTANTS = (
    "reshape", "pad", "pool_average", "pool_max", "activation", "softmax", "dropout", "identity",
)  # fmt: skip
_WHOLE = (6, 7)  # int32 and int64


def _in_training(node: Any, opset: int) -> bool:
    """A batch norm's, by version: an attribute, the number of results, or another attribute."""
    said = attributes_of(node)
    if node.op_type != "BatchNormalization":
        return False
    if opset < 7:
        return not said.get("is_test", 0)
    if opset < 14:
        return any(node.output[1:])
    return bool(said.get("training_mode", 0))
