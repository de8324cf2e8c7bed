"""What ONNX operators are, in the words of :mod:`normkit.models.graphs.graph` and of torch.nn."""

from __future__ import annotations

from typing import Any

from normkit.models.graphs.onnx_values import Values, attributes_of

__all__ = ["LAYERS", "NORMS", "layer_attributes", "plainly"]

#: Norms: their kind.
NORMS = {
    "BatchNormalization": "batch",
    "InstanceNormalization": "instance",
    "GroupNormalization": "group",
    "LayerNormalization": "layer",
    "RMSNormalization": "rms",
}

#: Layers with a weight: what they do.
LAYERS = {"Conv": "conv", "ConvTranspose": "conv_transpose", "Gemm": "linear", "MatMul": "linear"}

#: Operators of which the name says all: what they do, and what torch calls them.
_NAMED = {
    "Relu": ("activation", "relu"), "LeakyRelu": ("activation", "leaky_relu"),
    "PRelu": ("activation", "prelu"), "Elu": ("activation", "elu"), "Selu": ("activation", "selu"),
    "Celu": ("activation", "celu"), "Gelu": ("activation", "gelu"),
    "Sigmoid": ("activation", "sigmoid"), "Tanh": ("activation", "tanh"),
    "HardSwish": ("activation", "hardswish"), "HardSigmoid": ("activation", "hardsigmoid"),
    "Softplus": ("activation", "softplus"), "Softsign": ("activation", "softsign"),
    "Mish": ("activation", "mish"), "Swish": ("activation", "silu"),
    "ThresholdedRelu": ("activation", "threshold"), "Clip": ("activation", "clamp"),
    "Softmax": ("softmax", "softmax"), "LogSoftmax": ("softmax", "log_softmax"),
    "Identity": ("identity", "identity"),
    "Add": ("add", "add"), "Sub": ("add", "sub"), "Sum": ("add", "add"),
    "Mul": ("multiply", "mul"), "Div": ("multiply", "div"),
    "Concat": ("concatenate", "cat"),
    "DepthToSpace": ("reshape", "depth_to_space"), "SpaceToDepth": ("reshape", "space_to_depth"),
}  # fmt: skip

_RENAMED = {"alpha": "negative_slope", "axis": "dim"}


def plainly(node: Any, values: Values) -> tuple[str, str, dict[str, Any]]:
    """What a node does, what that is called in PyTorch, and its attributes by torch's names."""
    said = attributes_of(node)
    if node.domain not in ("", "ai.onnx"):
        return "other", node.op_type, said
    if node.op_type in _NAMED:
        op, function = _NAMED[node.op_type]
        return op, function, {_RENAMED.get(k, k): v for k, v in said.items()}
    read = _READ.get(node.op_type)
    found = read(node, said, values) if read is not None else None
    return found or ("other", node.op_type, said)


def layer_attributes(
    node: Any, shape: tuple[int | str, ...] | None, turned: bool
) -> dict[str, Any]:
    """What a layer's node says, by torch.nn's names.

    Args:
        shape: of the weight as the node takes it.
        turned: whether it takes (in, out).
    """
    said = attributes_of(node)
    if LAYERS[node.op_type] == "linear":
        out, into = (shape[::-1] if turned else shape) if shape else (None, None)
        return {"in_features": into, "out_features": out}
    groups = said.get("group", 1)
    found = {
        "padding": _padding(said),
        "padding_mode": "zeros",
        "groups": groups,
        "stride": tuple(said.get("strides", ())),
        "dilation": tuple(said.get("dilations", ())),
    }
    if node.op_type == "ConvTranspose":
        found["output_padding"] = tuple(said.get("output_padding", ()))
    if shape:
        first, second = shape[0], int(shape[1]) * groups
        into, out = (first, second) if node.op_type == "ConvTranspose" else (second, first)
        found |= {"in_channels": into, "out_channels": out, "kernel_size": tuple(shape[2:])}
    return found


def _padding(said: dict[str, Any]) -> Any:
    """As torch.nn writes it; both ends of every dimension where they differ."""
    automatic = said.get("auto_pad", "NOTSET")
    if automatic.startswith("SAME"):
        return "same"
    pads = () if automatic == "VALID" else tuple(said.get("pads", ()))
    half = len(pads) // 2
    return (pads[:half] if pads[:half] == pads[half:] else pads) or 0


_Found = tuple[str, str, dict[str, Any]] | None


def _dims(node: Any, values: Values) -> int | None:
    shape = values.shape(node.input[0])
    return None if shape is None else len(shape) - 2


def _whole(node: Any, place: int, values: Values) -> tuple[int, ...] | None:
    """A constant input's whole numbers."""
    if len(node.input) <= place or not node.input[place]:
        return None
    array = values.constant(node.input[place])
    return None if array is None else tuple(int(n) for n in array.reshape(-1))


def _pool(node: Any, said: dict[str, Any], values: Values) -> _Found:
    del values
    if len([n for n in node.output if n]) > 1:
        return None
    op, name = _POOLS[node.op_type]
    padding = _padding(said)
    counted = bool(said.get("count_include_pad", 0))
    if said.get("ceil_mode") and counted and not padding:
        padding = "ceil"  # windows that reach over the border count what is not there
    dims = len(said["kernel_shape"])
    return op, f"{name}{dims}d", {
        "kernel_size": tuple(said["kernel_shape"]),
        "stride": tuple(said.get("strides", ())),
        "padding": padding,
        "ceil_mode": bool(said.get("ceil_mode", 0)),
        "count_include_pad": counted,
    }  # fmt: skip


def _global_pool(node: Any, said: dict[str, Any], values: Values) -> _Found:
    del said
    op, name = _POOLS[node.op_type]
    dims = _dims(node, values)
    return (op, f"{name}{dims}d" if dims else name, {})


_POOLS = {
    "AveragePool": ("pool_average", "avg_pool"),
    "MaxPool": ("pool_max", "max_pool"),
    "GlobalAveragePool": ("pool_average", "adaptive_avg_pool"),
    "GlobalMaxPool": ("pool_max", "adaptive_max_pool"),
}


def _mean(node: Any, said: dict[str, Any], values: Values) -> _Found:
    """A mean over all positions is a pooling."""
    axes, dims = said.get("axes") or _whole(node, 1, values), _dims(node, values)
    if not axes:
        return None
    keeps = bool(said.get("keepdims", 1))
    if keeps and dims and sorted(a % (dims + 2) for a in axes) == list(range(2, dims + 2)):
        return "pool_average", f"adaptive_avg_pool{dims}d", {}
    return "other", "mean", {"dim": tuple(axes), "keepdim": keeps}


def _gather(node: Any, said: dict[str, Any], values: Values) -> _Found:
    """One of the elements along an axis: x[:, 0]."""
    index, shape = values.constant(node.input[1]), values.shape(node.input[0])
    if index is None or index.ndim or shape is None:
        return None
    axis = said.get("axis", 0) % len(shape)
    return "other", "getitem", {"index": (*[slice(None)] * axis, int(index))}


def _slice(node: Any, said: dict[str, Any], values: Values) -> _Found:
    """Some of the elements along some axes: x[:, 1:]."""
    starts, ends, axes, steps = (
        tuple(said.get(name, ())) or _whole(node, place, values)
        for place, name in enumerate(("starts", "ends", "axes", "steps"), start=1)
    )
    shape = values.shape(node.input[0])
    if starts is None or ends is None or shape is None:
        return None
    index = [slice(None)] * len(shape)
    axes = axes or tuple(range(len(starts)))
    for axis, start, end, step in zip(axes, starts, ends, steps or (1,) * len(axes), strict=True):
        index[axis] = slice(start, end, step)
    return "other", "getitem", {"index": tuple(index)}


def _flatten(node: Any, said: dict[str, Any], values: Values) -> _Found:
    del node, values
    plain = said.get("axis", 1) == 1
    return "reshape", "flatten" if plain else "view", {"start_dim": 1} if plain else {}


def _reshape(node: Any, said: dict[str, Any], values: Values) -> _Found:
    size = said.get("shape") or _whole(node, 1, values)
    if size is not None and tuple(size) == (0, -1) and not said.get("allowzero", 0):
        return "reshape", "flatten", {"start_dim": 1}
    return "reshape", "view", {} if size is None else {"size": tuple(size)}


def _squeeze(node: Any, said: dict[str, Any], values: Values) -> _Found:
    axes = said.get("axes") or _whole(node, 1, values)
    one = axes is not None and len(axes) == 1
    return "reshape", node.op_type.lower(), {"dim": axes[0] if one else axes} if axes else {}


def _transpose(node: Any, said: dict[str, Any], values: Values) -> _Found:
    shape = values.shape(node.input[0])
    dims = said.get("perm") or (None if shape is None else range(len(shape))[::-1])
    return "reshape", "permute", {} if dims is None else {"dims": tuple(dims)}


def _pad(node: Any, said: dict[str, Any], values: Values) -> _Found:
    pads = said.get("pads") or said.get("paddings") or _whole(node, 1, values)
    shape, axes = values.shape(node.input[0]), _whole(node, 3, values)
    if pads is None or shape is None or (axes is None and len(node.input) > 3 and node.input[3]):
        return None
    value: Any = said.get("value", 0.0)
    if len(node.input) > 2 and node.input[2]:
        constant = values.constant(node.input[2])
        value = None if constant is None else float(constant.reshape(-1)[0])
    if value is None:
        return None
    half = len(pads) // 2
    places = [a % len(shape) for a in axes or range(half)]
    around = {p: (pads[i], pads[half + i]) for i, p in enumerate(places)}
    first = min((p for p, ends in around.items() if any(ends)), default=len(shape))
    from_last = [around.get(p, (0, 0)) for p in reversed(range(first, len(shape)))]
    mode = {"edge": "replicate", "wrap": "circular"}.get(said.get("mode", ""), said.get("mode"))
    flat = tuple(n for ends in from_last for n in ends)
    return "pad", "pad", {"pad": flat, "mode": mode or "constant", "value": value}


def _cast(node: Any, said: dict[str, Any], values: Values) -> _Found:
    """A cast to the type that it has already is none."""
    del said
    before, after = (values.element_type(n) for n in (node.input[0], node.output[0]))
    return ("identity", "identity", {}) if before and before == after else None


def _dropout(node: Any, said: dict[str, Any], values: Values) -> _Found:
    ratio = values.constant(node.input[1]) if len(node.input) > 1 and node.input[1] else None
    training = values.opset < 7 and not said.get("is_test", 0)
    if len(node.input) > 2 and node.input[2]:
        asked = values.constant(node.input[2])
        training = asked is None or bool(asked.any())
    p = said.get("ratio", 0.5) if ratio is None else float(ratio.reshape(-1)[0])
    return "dropout", "dropout", {"p": p, "training": training}


_READ: dict[str, Any] = {
    **dict.fromkeys(("AveragePool", "MaxPool"), _pool),
    **dict.fromkeys(("GlobalAveragePool", "GlobalMaxPool"), _global_pool),
    "ReduceMean": _mean,
    "Gather": _gather,
    "Slice": _slice,
    "Flatten": _flatten,
    "Reshape": _reshape,
    **dict.fromkeys(("Squeeze", "Unsqueeze"), _squeeze),
    "Transpose": _transpose,
    "Pad": _pad,
    "Dropout": _dropout,
    **dict.fromkeys(("Cast", "CastLike"), _cast),
}
