"""The values in an ONNX graph: which are known without running it, and their shapes."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch

from normkit.errors import ModelError
from normkit.extras import needed

__all__ = [
    "Values",
    "attributes_of",
    "captured",
    "decimal",
    "graphs_of",
    "rename",
    "taken",
    "tensor_of",
]

Tensor = torch.Tensor
_LARGE = 4096  # elements: shapes do not depend on the content of more
_MOST = 1 << 28  # elements of a constant that is computed


class Values:
    """What is known of each value of a graph by its name.

    Args:
        proto: a ModelProto with its external data loaded. It is only read.
    """

    def __init__(self, proto: Any) -> None:
        self.opset = max(
            (o.version for o in proto.opset_import if o.domain in ("", "ai.onnx")), default=1
        )
        graph = proto.graph
        self.initializers = {t.name: t for t in graph.initializer}
        self.makers = {name: node for node in graph.node for name in node.output if name}
        self.takers: dict[str, list[Any]] = {}
        for node in graph.node:
            for name in dict.fromkeys((*taken(node), *captured(node))):
                self.takers.setdefault(name, []).append(node)
        self.outputs = {o.name for o in graph.output}
        self._types = _types(proto)
        self._constants: dict[str, np.ndarray[Any, Any] | None] = {}
        self._still = _still(graph)

    def shape(self, name: str) -> tuple[int | str, ...] | None:
        """Sizes; a text for one that may vary, the same for the same size."""
        found = self._types.get(name)
        if name in self.initializers:
            return tuple(self.initializers[name].dims)
        if found is None or not found.HasField("shape"):
            return None
        return tuple(
            d.dim_value if d.HasField("dim_value") else d.dim_param or f"?{name}:{i}"
            for i, d in enumerate(found.shape.dim)
        )

    def element_type(self, name: str) -> int:
        """TensorProto's number of a value's dtype; 0 for unknown."""
        if name in self.initializers:
            return self.initializers[name].data_type
        found = self._types.get(name)
        return found.elem_type if found is not None else 0

    def still(self, name: str) -> bool:
        """Whether a value is the same for all inputs of the same shapes."""
        return name in self._still

    def root(self, name: str) -> tuple[str, bool]:
        """The value that this one is a copy of, and whether transposed on the way."""
        turned = False
        while (node := self.makers.get(name)) is not None and _is_standard(node):
            if node.op_type == "Transpose" and self._turns(node):
                turned = not turned
            elif node.op_type != "Identity":
                break
            name = node.input[0]
        return name, turned

    def _turns(self, node: Any) -> bool:
        perm = attributes_of(node).get("perm")
        rank = len(self.shape(node.input[0]) or ())
        return list(perm or range(rank)[::-1]) == [1, 0]

    def tensor(self, name: str) -> Tensor | None:
        """A constant's value; None for what is not constant or cannot be computed here."""
        array = self.constant(name)
        return None if array is None else _to_torch(array)

    def constant(self, name: str) -> np.ndarray[Any, Any] | None:
        """A constant's value as an array."""
        if name not in self._constants:
            try:
                self._constants[name] = self._compute(name)
            except Exception:  # whatever a strange file makes of it: not computed
                self._constants[name] = None
        return self._constants[name]

    def _compute(self, name: str) -> np.ndarray[Any, Any] | None:
        if name in self.initializers:
            return _array(self.initializers[name])
        node = self.makers.get(name)
        if node is None or not _is_standard(node):
            return None
        if node.op_type == "Constant":
            return _constant(node)
        if node.op_type == "Shape":
            return self._shape_constant(node)
        if node.op_type == "CastLike":
            return self._cast(node, self.element_type(node.input[1]))
        if node.op_type not in _COMPUTABLE:
            return None
        given = {n: self.constant(n) for n in node.input if n}
        if any(value is None for value in given.values()):
            return None
        if _result_size(node, given) > _MOST:
            return None
        return _run(node, given, self.opset)

    def _cast(self, node: Any, to: int) -> np.ndarray[Any, Any] | None:
        value = self.constant(node.input[0])
        if value is None or not to:
            return None
        return value.astype(needed("onnx").helper.tensor_dtype_to_np_dtype(to))

    def _shape_constant(self, node: Any) -> np.ndarray[Any, Any] | None:
        shape, said = self.shape(node.input[0]), attributes_of(node)
        if shape is None:
            return None
        sizes = shape[said.get("start", 0) : said.get("end")]
        known = all(isinstance(n, int) for n in sizes)
        return np.array(sizes, np.int64) if known else None


_CHANCE = ("Bernoulli", "Multinomial", "Dropout")
_COMPUTABLE = (
    "Identity", "Cast", "Reshape", "Transpose", "Unsqueeze", "Squeeze", "Flatten", "Expand", "Tile",
    "ConstantOfShape", "Concat", "Slice", "Gather", "Range", "Add", "Sub", "Mul", "Div", "Neg",
    "Sqrt", "Reciprocal", "Pow",
)  # fmt: skip


def _is_standard(node: Any) -> bool:
    return node.domain in ("", "ai.onnx")


def taken(node: Any) -> list[str]:
    """The inputs of which a node takes the elements, not only the shape or type."""
    if not _is_standard(node) or node.op_type not in ("Shape", "Size", "CastLike"):
        return list(node.input)
    return list(node.input[:1]) if node.op_type == "CastLike" else []


def _still(graph: Any) -> set[str]:
    """The values that follow from weights and shapes alone.

    Raises:
        ModelError: a node takes a value before it is made, or one is made twice.
    """
    found = {t.name for t in graph.initializer}
    made = found | {i.name for i in graph.input} | {t.values.name for t in graph.sparse_initializer}
    for node in graph.node:
        names = {n for n in (*node.input, *captured(node)) if n}
        results = {n for n in node.output if n}
        wrong = (names - made) | (results & made)
        if wrong:
            raise ModelError(
                "The ONNX graph is not in order",
                received=f"{node.op_type} {node.name} with {', '.join(sorted(wrong)[:3])}",
                expected="each value made once, before it is taken",
                remedy="onnx.checker.check_model says more; export the model again.",
            )
        made |= results
        chance = node.op_type.startswith("Random") or node.op_type in _CHANCE
        plain = _is_standard(node) and not chance and not any(graphs_of(node))
        if plain and all(n in found for n in taken(node) if n):
            found |= results
    return found


def graphs_of(node: Any) -> Iterator[Any]:
    """A node's own graphs."""
    for attribute in node.attribute:
        yield from attribute.graphs
        if attribute.HasField("g"):
            yield attribute.g


def captured(node: Any) -> Iterator[str]:
    """Names of the graph's values that a node's own graphs use."""
    for graph in graphs_of(node):
        inside = {i.name for i in (*graph.input, *graph.initializer)}
        for inner in graph.node:
            yield from (n for n in (*inner.input, *captured(inner)) if n and n not in inside)
            inside |= set(inner.output)
        yield from (o.name for o in graph.output if o.name not in inside)


def rename(nodes: Iterable[Any], old: str, new: str) -> None:
    """Another name for a value in nodes that make or take it, and in their own graphs."""
    for node in nodes:
        for names in (node.input, node.output):
            for place, name in enumerate(names):
                if name == old:
                    names[place] = new
        for graph in graphs_of(node):
            rename(graph.node, old, new)
            for output in graph.output:
                if output.name == old:
                    output.name = new


def attributes_of(node: Any) -> dict[str, Any]:
    """A node's attributes as Python values, but for graphs."""
    onnx = needed("onnx")
    found = {}
    for attribute in node.attribute:
        if attribute.type not in (attribute.GRAPH, attribute.GRAPHS):
            value = onnx.helper.get_attribute_value(attribute)
            found[attribute.name] = (
                value.decode(errors="replace") if isinstance(value, bytes) else value
            )
    return found


def decimal(value: float) -> float:
    """A float32 attribute as it was meant: 1e-05 rather than 9.999999747378752e-06."""
    return float(str(np.float32(value)))


def tensor_of(name: str, value: Tensor) -> Any:
    """A TensorProto of a tensor of any dtype that both libraries have."""
    onnx = needed("onnx")
    held = value.detach().cpu().contiguous()
    kind = getattr(onnx.TensorProto, _NAMES.get(held.dtype, str(held.dtype)[6:].upper()))
    raw = held.reshape(-1).view(torch.uint8).numpy().tobytes()
    return onnx.TensorProto(name=name, dims=held.shape, data_type=kind, raw_data=raw)


_NAMES = {torch.float32: "FLOAT", torch.float64: "DOUBLE"}


def _types(proto: Any) -> dict[str, Any]:
    """Tensor types by name, as far as ONNX infers them; the content of weights plays no part."""
    onnx = needed("onnx")
    graph = proto.graph
    bare = onnx.ModelProto(ir_version=proto.ir_version, opset_import=proto.opset_import)
    bare.functions.extend(proto.functions)
    bare.graph.name = graph.name or "graph"
    bare.graph.node.extend(graph.node)
    bare.graph.output.extend(graph.output)
    bare.graph.value_info.extend(graph.value_info)
    large = {t.name for t in graph.initializer if math.prod(t.dims) > _LARGE}
    bare.graph.initializer.extend(t for t in graph.initializer if t.name not in large)
    bare.graph.input.extend(i for i in graph.input if i.name not in large)
    for tensor in graph.initializer:
        if tensor.name in large:
            info = onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            bare.graph.input.append(info)
    with contextlib.suppress(Exception):  # an unusual graph: what it says of itself is left
        bare = onnx.shape_inference.infer_shapes(bare, data_prop=True)
    infos = (*bare.graph.value_info, *bare.graph.input, *bare.graph.output)
    return {i.name: i.type.tensor_type for i in infos if i.type.HasField("tensor_type")}


def _array(tensor: Any) -> np.ndarray[Any, Any] | None:
    if tensor.data_type == tensor.STRING:
        return None
    return needed("onnx").numpy_helper.to_array(tensor)


def _constant(node: Any) -> np.ndarray[Any, Any] | None:
    for name, value in attributes_of(node).items():
        if name == "value":
            return _array(value)
        if name in ("value_float", "value_floats"):
            return np.array(value, np.float32)
        if name in ("value_int", "value_ints"):
            return np.array(value, np.int64)
    return None


def _to_torch(array: np.ndarray[Any, Any]) -> Tensor | None:
    array = np.ascontiguousarray(array).reshape(array.shape)
    if array.dtype.kind in "biuf":
        return torch.from_numpy(array.copy())
    dtype = getattr(torch, array.dtype.name, None)  # bfloat16, float8_e4m3fn, ...
    if not isinstance(dtype, torch.dtype) or dtype.itemsize != array.dtype.itemsize:
        return None
    return torch.from_numpy(array.view(f"i{dtype.itemsize}").copy()).view(dtype)


def _result_size(node: Any, given: Mapping[str, Any]) -> int:
    """Elements of a result that its inputs' sizes do not bound."""
    values: list[Any] = [given.get(n) for n in node.input]
    if node.op_type in ("ConstantOfShape", "Expand"):
        return math.prod(int(n) for n in values[-1])
    if node.op_type == "Tile":
        return math.prod(int(n) for n in values[1]) * values[0].size
    if node.op_type == "Range":
        start, limit, step = (float(v) for v in values)
        return int(abs((limit - start) / step)) if step else _MOST + 1
    return sum(v.size for v in values if v is not None)


def _run(node: Any, given: Mapping[str, Any], opset: int) -> np.ndarray[Any, Any]:
    """One operator by ONNX's reference implementation."""
    helper = needed("onnx").helper
    inputs = [
        helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(v.dtype), v.shape)
        for n, v in given.items()
    ]
    output = needed("onnx").ValueInfoProto(name=node.output[0])
    graph = helper.make_graph([node], "one", inputs, [output])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    found = needed("onnx.reference").ReferenceEvaluator(model).run(None, dict(given))[0]
    return np.asarray(found)
