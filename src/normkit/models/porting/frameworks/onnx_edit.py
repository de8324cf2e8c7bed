"""ONNX models made, cut out and changed, for :mod:`onnx_nodes`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from normkit.errors import ModelError
from normkit.extras import needed
from normkit.models.graphs.onnx_values import Values, attributes_of
from normkit.models.graphs.reading import Call
from normkit.models.porting.conventions import CONVENTIONS
from normkit.models.porting.weights import NormWeights

__all__ = ["assign", "new_model", "one_norm"]

_OPSET, _OPSET_RMS, _IR = 21, 23, 10
_OPSET_BATCH = 15  # where training is said by an attribute; before, evaluators guess at it
_ROLES = {"weight": "gamma", "bias": "beta", "running_mean": "mean", "running_var": "var"}


def new_model(weights: NormWeights) -> Any:
    """A model that is one norm: its input is x, its output y."""
    onnx = needed("onnx")
    helper, arrays = onnx.helper, weights.arrays()
    there = CONVENTIONS["onnx"]
    names = dict(zip(("gamma", "beta", "mean", "var"), there.names, strict=True))
    prefix = f"{weights.name}." if weights.name else ""
    held = {role: f"{prefix}{names[role]}" for role in arrays}
    options: dict[str, Any] = {"epsilon": weights.eps}
    if weights.kind == "batch":
        options["momentum"] = there.kept(weights)
    elif weights.kind == "group":
        options["num_groups"] = weights.groups
    elif weights.kind in ("layer", "rms"):
        options["axis"] = -len(weights.shape)
    op = there.layers[weights.kind]
    node = helper.make_node(op, ["x", *held.values()], ["y"], name=weights.name, **options)
    shape = _shape(weights)
    kind = onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        [node],
        op,
        [helper.make_tensor_value_info("x", kind, shape)],
        [helper.make_tensor_value_info("y", kind, shape)],
        [onnx.numpy_helper.from_array(arrays[role], name) for role, name in held.items()],
    )
    opset = _OPSET_RMS if weights.kind == "rms" else _OPSET
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", opset)], producer_name="normkit"
    )
    model.ir_version = max(_IR, helper.find_min_ir_version_for(model.opset_import))
    onnx.checker.check_model(model)
    return model


def _shape(weights: NormWeights) -> list[Any]:
    if weights.kind in ("layer", "rms"):
        return ["N", *weights.shape]
    return ["N", weights.size, *(f"L{i}" for i in range(weights.dims or 0))]


def one_norm(proto: Any, call: Call, training: bool) -> tuple[Any, str]:
    """A model in float64 of nothing but one of a model's norms, and the name of its input.

    Args:
        training: a batch norm that gives its running statistics too.
    """
    onnx = needed("onnx")
    makers = {name: node for node in proto.graph.node for name in node.output if name}
    opset = Values(proto).opset
    initializers = {tensor.name: tensor for tensor in proto.graph.initializer}
    nodes: dict[str, Any] = {}
    taken: dict[str, Any] = {}

    def visit(name: str) -> None:
        if not name or name in nodes or name == call.source:
            return
        if name in initializers:
            taken[name] = _wide(initializers[name])
            return
        node = makers[name]
        for value in node.input:
            visit(value)
        nodes[name] = _wide_node(node, opset)

    visit(call.end.output[0])
    (*before, end) = nodes.values()
    outputs = [end.output[0]]
    opsets = list(proto.opset_import)
    if end.op_type == "BatchNormalization":
        end = _batch_node(end, training)
        outputs = list(end.output)
        opsets = [onnx.helper.make_opsetid("", _OPSET_BATCH)]
    double = onnx.TensorProto.DOUBLE
    graph = onnx.helper.make_graph(
        [*before, end],
        "one",
        [onnx.helper.make_tensor_value_info(call.source, double, None)],
        [onnx.helper.make_tensor_value_info(name, double, None) for name in outputs],
        list(taken.values()),
    )
    return onnx.helper.make_model(graph, opset_imports=opsets), call.source


def _wide(tensor: Any) -> Any:
    array = needed("onnx").numpy_helper.to_array(tensor)
    if array.dtype.kind != "f" and array.dtype.name != "bfloat16":
        return tensor
    return needed("onnx").numpy_helper.from_array(array.astype(np.float64), tensor.name)


def _wide_node(node: Any, opset: int) -> Any:
    own = type(node)()
    own.CopyFrom(node)
    if node.op_type == "GroupNormalization" and opset >= 21:  # it computes in this type
        _set(own, "stash_type", needed("onnx").TensorProto.DOUBLE)
    for attribute in own.attribute:
        if node.op_type == "Constant" and attribute.name == "value":
            attribute.t.CopyFrom(_wide(attribute.t))
        elif node.op_type == "Cast" and attribute.name == "to":
            attribute.i = needed("onnx").TensorProto.DOUBLE
    return own


def _batch_node(node: Any, training: bool) -> Any:
    """A batch norm of any opset as one of today's, in the mode that is asked for."""
    said = attributes_of(node)
    kept = {name: said[name] for name in ("epsilon", "momentum") if name in said}
    outputs = [node.output[0], *(("mean after", "var after") if training else ())]
    return needed("onnx").helper.make_node(
        node.op_type, list(node.input), outputs, training_mode=int(training), **kept
    )


def assign(proto: Any, calls: Mapping[str, Call], weights: Mapping[str, NormWeights]) -> Any:
    """A copy of the model with other weights in these norms."""
    changed = type(proto)()
    changed.CopyFrom(proto)
    values = Values(changed)
    nodes = {node.output[0]: node for node in changed.graph.node if node.output}
    for name, one in weights.items():
        _assign_one(changed, values, nodes, calls[name], one)
    return changed


def _assign_one(proto: Any, values: Values, nodes: Any, call: Call, weights: NormWeights) -> None:
    node = nodes[call.end.output[0]]
    for role, stored in call.stored.items():
        new = getattr(weights, _ROLES[role])
        if new is None:
            continue
        old = stored.handle
        if tuple(old.shape) != new.shape:
            raise ModelError(
                "A weight does not fit the model",
                received=f"{_ROLES[role]} of shape {new.shape} for {stored.name}",
                expected=f"{tuple(old.shape)}",
                remedy="The model's norm is another one; group norms before opset 21 have a gain "
                "for each group.",
            )
        _put(proto, values, node, call, role, new)
    if call.plain:  # small operators keep eps in a constant, which has been compared
        return
    _set(node, "epsilon", weights.eps)
    if weights.kind == "batch" and weights.keep is not None:
        _set(node, "momentum", weights.keep)


def _put(proto: Any, values: Values, node: Any, call: Call, role: str, new: Any) -> None:
    """A weight into its own initializer where nothing else takes that; else into a new one."""
    onnx, name = needed("onnx"), call.stored[role].name
    takers = values.takers.get(name, ())
    held = values.initializers.get(name)
    dtype = np.dtype(np.float32) if held is None else onnx.numpy_helper.to_array(held).dtype
    if held is not None and sum(max(1, list(n.input).count(name)) for n in takers) == 1:
        held.CopyFrom(onnx.numpy_helper.from_array(new.astype(dtype), name))
        return
    label = f"{name} as {role} of {call.end.output[0]}"
    proto.graph.initializer.append(onnx.numpy_helper.from_array(new.astype(dtype), label))
    if not call.plain:
        node.input[1 + list(_ROLES).index(role)] = label
        return
    for user in takers:  # of small operators: the product with gamma, the sum with beta
        if user is node or call.plain in user.input:
            place = list(user.input).index(name)
            user.input[place] = label


def _set(node: Any, name: str, value: float) -> None:
    for attribute in list(node.attribute):
        if attribute.name == name:
            node.attribute.remove(attribute)
    node.attribute.append(needed("onnx").helper.make_attribute(name, value))
