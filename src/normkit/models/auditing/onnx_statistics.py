"""Batch norms of an ONNX model that can be told, run by run, to use the batch's statistics."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from normkit.extras import needed
from normkit.models.graphs.onnx_values import tensor_of
from normkit.models.graphs.reading import Call

__all__ = ["switchable"]


def switchable(proto: Any, calls: dict[str, tuple[str, Call]]) -> None:
    """Let each of these norms, in place, take its statistics from its input while a switch is on.

    What it stores, and whatever mode the file puts it in, is used while the switch is off. It is
    done in the graph, and not by the operator's own training mode, which is fixed in the graph and
    which onnxruntime does not have for all versions.

    Args:
        calls: by the norm's result, the name of the switch, which becomes an input of the model,
            and the call of a BatchNormalization.
    """
    helper, kinds = needed("onnx").helper, needed("onnx").TensorProto
    opset = max((o.version for o in proto.opset_import if o.domain in ("", "ai.onnx")), default=1)
    for switch in dict.fromkeys(switch for switch, _ in calls.values()):
        proto.graph.input.append(helper.make_tensor_value_info(switch, kinds.BOOL, ()))
    nodes = []
    for node in proto.graph.node:
        if node.output and node.output[0] in calls:
            switch, call = calls[node.output[0]]
            nodes.append(_choice(node, switch, call, opset))
            _in_eval_mode(node, opset)
            node.input[3:5] = nodes[-1].output
        nodes.append(node)
    kept = [_copied(node) for node in nodes]
    del proto.graph.node[:]
    proto.graph.node.extend(kept)


def _choice(node: Any, switch: str, call: Call, opset: int) -> Any:
    """Mean and variance for a batch norm: its input's own, or those that are stored."""
    helper = needed("onnx").helper
    names = [f"{switch}/{node.output[0]}/{role}" for role in ("mean", "var")]
    stored = [call.stored[role] for role in ("running_mean", "running_var")]
    kinds = [tensor_of("", each.handle).data_type for each in stored]
    measured = _measured(node.input[0], stored[0].handle.numel(), kinds, names, opset)
    copies = [
        helper.make_node("Identity", [each.name], [f"{name}/stored"])
        for each, name in zip(stored, names, strict=True)
    ]
    branches = {}
    for word, inside in (("measured", measured), ("stored", copies)):
        results = [
            helper.make_tensor_value_info(f"{name}/{word}", kind, None)
            for name, kind in zip(names, kinds, strict=True)
        ]
        branches[word] = helper.make_graph(inside, word, [], results)
    return helper.make_node(
        "If", [switch], names, then_branch=branches["measured"], else_branch=branches["stored"]
    )


def _measured(source: str, channels: int, kinds: list[int], names: list[str], opset: int) -> Any:
    """Nodes for mean and population variance by channel, in float32 or float64."""
    helper, double = needed("onnx").helper, needed("onnx").TensorProto.DOUBLE
    wide = double if double in kinds else needed("onnx").TensorProto.FLOAT
    inside = f"{names[0]}/inside"
    nodes: list[Any] = []

    def make(op: str, *given: str, result: str = "", **attributes: Any) -> str:
        name = result or f"{inside}/{len(nodes)}"
        nodes.append(helper.make_node(op, given, [name], **attributes))
        return name

    def numbers(*values: int) -> str:
        return make("Constant", value=helper.make_tensor("", 7, [len(values)], values))

    mean = _mean_maker(make, numbers, opset)
    x = make("Reshape", make("Cast", source, to=wide), numbers(0, channels, -1))
    middle = mean(x)
    away = make("Sub", x, middle)
    found = (middle, mean(make("Mul", away, away)))
    for value, kind, name in zip(found, kinds, names, strict=True):
        flat = make("Reshape", value, numbers(-1))
        make("Cast", flat, result=f"{name}/measured", to=kind)
    return nodes


def _mean_maker(
    make: Callable[..., str], numbers: Callable[..., str], opset: int
) -> Callable[[str], str]:
    """Means over samples and positions; their axes became an input in version 18."""
    if opset < 18:
        return lambda value: make("ReduceMean", value, axes=[0, 2], keepdims=1)
    axes = numbers(0, 2)
    return lambda value: make("ReduceMean", value, axes, keepdims=1)


def _in_eval_mode(node: Any, opset: int) -> None:
    del node.output[1:]
    for attribute in node.attribute:
        if attribute.name == "training_mode":
            attribute.i = 0
    if opset < 7:
        kept = [a for a in node.attribute if a.name != "is_test"]
        del node.attribute[:]
        node.attribute.extend([*kept, needed("onnx").helper.make_attribute("is_test", 1)])


def _copied(node: Any) -> Any:
    new = type(node)()
    new.CopyFrom(node)
    return new
