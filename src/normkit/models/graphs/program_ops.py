"""What the aten operators of an exported program are, and what a call of one was given."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

__all__ = [
    "NORMS",
    "OPS",
    "RmsNorm",
    "arguments_of",
    "is_aten",
    "is_first_of",
    "is_inplace",
    "is_tensors",
    "layer_of",
    "module_of",
    "name_of",
    "plain",
    "plainly",
    "rms_norms",
    "shape_of",
]  # fmt: skip

#: Norms by operator: their kind.
NORMS = {
    **dict.fromkeys(
        ("batch_norm", "native_batch_norm", "cudnn_batch_norm", "_native_batch_norm_legit",
         "_native_batch_norm_legit_no_training", "_native_batch_norm_legit_functional",
         "_batch_norm_with_update", "_batch_norm_with_update_functional",
         "_batch_norm_no_update"),
        "batch",
    ),
    "instance_norm": "instance",
    "group_norm": "group",
    "native_group_norm": "group",
    "layer_norm": "layer",
    "native_layer_norm": "layer",
    "rms_norm": "rms",
    "_fused_rms_norm": "rms",
}  # fmt: skip

_TAKES = {"input": "input", "weight": "weight", "bias": "bias"}

#: Layers with a weight by operator: what they do, and which argument is what.
_LAYERS: dict[str, tuple[str, dict[str, str]]] = {
    **{f"conv{d}d": ("conv", _TAKES) for d in (1, 2, 3)},
    **{f"conv_transpose{d}d": ("conv_transpose", _TAKES) for d in (1, 2, 3)},
    "convolution": ("conv", _TAKES),
    "linear": ("linear", _TAKES),
    "addmm": ("linear", {"input": "mat1", "weight": "mat2", "bias": "self"}),
    "mm": ("linear", {"input": "self", "weight": "mat2"}),
    "bmm": ("linear", {"input": "self", "weight": "mat2"}),
    "matmul": ("linear", {"input": "self", "weight": "other"}),
}

#: The other operators: what they do.
OPS = {
    name: op
    for op, names in {
        "activation": (
            "relu", "relu6", "leaky_relu", "prelu", "_prelu_kernel", "elu", "selu", "celu", "gelu",
            "silu", "mish", "hardswish", "sigmoid", "tanh", "hardsigmoid", "hardtanh", "softplus",
            "softsign", "log_sigmoid", "glu", "rrelu", "threshold", "clamp", "clamp_min",
        ),
        "softmax": ("softmax", "_softmax", "log_softmax", "_log_softmax"),
        "dropout": ("dropout", "native_dropout", "alpha_dropout", "feature_dropout",
                    "feature_alpha_dropout"),
        "identity": ("contiguous", "clone", "detach", "alias", "lift_fresh_copy"),
        "reshape": (
            "view", "_unsafe_view", "reshape", "flatten", "unflatten", "permute", "transpose", "t",
            "numpy_T", "mT", "squeeze", "unsqueeze", "movedim", "moveaxis",
            "pixel_shuffle", "pixel_unshuffle", "channel_shuffle",
        ),
        "pool_average": tuple(f"{a}avg_pool{d}d" for a in ("", "adaptive_", "_adaptive_")
                              for d in (1, 2, 3)),
        "pool_max": tuple(f"{a}max_pool{d}d{w}" for a in ("", "adaptive_") for d in (1, 2, 3)
                          for w in ("", "_with_indices")),
        "pad": ("pad", "constant_pad_nd", *(f"{kind}_pad{d}d" for d in (1, 2, 3)
                                            for kind in ("reflection", "replication"))),
        "add": ("add", "sub", "rsub"),
        "multiply": ("mul", "div"),
        "concatenate": ("cat", "concat", "concatenate"),
    }.items()
    for name in names
}  # fmt: skip


def name_of(node: fx.Node) -> str:
    """An operator's name without its overload, and without the underscore of in-place ones."""
    if isinstance(node.target, torch._ops.OpOverload):
        name = str(node.target._schema.name).rpartition("::")[2]
        inplace = name.endswith("_") and not name.endswith("__")
        return name[:-1] if inplace else name
    return getattr(node.target, "__name__", str(node.target))


def is_inplace(node: fx.Node) -> bool:
    """Whether a call changes the tensor that it is given."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return False
    first = node.target._schema.arguments[:1]
    return any(a.alias_info is not None and a.alias_info.is_write for a in first)


def is_alias(node: fx.Node) -> bool:
    """Whether a call's result may be its first argument's memory."""
    if not isinstance(node.target, torch._ops.OpOverload) or not node.args:
        return False
    first = node.target._schema.arguments[:1]
    return isinstance(node.args[0], fx.Node) and any(a.alias_info is not None for a in first)


def is_aten(node: fx.Node) -> bool:
    """Whether it calls one of PyTorch's own operators."""
    target = node.target
    return isinstance(target, torch._ops.OpOverload) and target.namespace == "aten"


def arguments_of(node: fx.Node) -> dict[str, Any]:
    """A call's arguments by the names of its schema, defaults among them."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return dict(node.kwargs)
    found: dict[str, Any] = {}
    for place, argument in enumerate(node.target._schema.arguments):
        if place < len(node.args):
            found[argument.name] = node.args[place]
        elif argument.name in node.kwargs:
            found[argument.name] = node.kwargs[argument.name]
        elif argument.has_default_value():
            found[argument.name] = argument.default_value
    return found


def layer_of(node: fx.Node) -> tuple[str, dict[str, str]] | None:
    """What a layer with a weight does, and which of its arguments is what."""
    if not is_aten(node) or name_of(node) not in _LAYERS:
        return None
    op, roles = _LAYERS[name_of(node)]
    turned_round = op == "conv" and arguments_of(node).get("transposed", False)
    return ("conv_transpose" if turned_round else op), roles


def is_tensors(node: fx.Node) -> bool:
    """Whether a node's value is a tensor or holds one; sizes and assertions are none."""
    value = node.meta.get("val", _UNKNOWN)
    if value is _UNKNOWN or isinstance(value, torch.Tensor):
        return True
    return isinstance(value, (tuple, list)) and any(isinstance(v, torch.Tensor) for v in value)


_UNKNOWN = object()


def shape_of(node: Any) -> tuple[int | str, ...] | None:
    """A value's shape; a dimension that may vary is a text, the same for the same size."""
    value = node.meta.get("val") if isinstance(node, fx.Node) else None
    if isinstance(value, (tuple, list)) and value:
        value = value[0]
    return tuple(plain(n) for n in value.shape) if isinstance(value, torch.Tensor) else None


def plain(value: Any) -> Any:
    """An argument without the tracer's types."""
    if isinstance(value, fx.Node):
        known = value.meta.get("val")
        return plain(known) if isinstance(known, (int, float, torch.SymInt)) else value.name
    if isinstance(value, torch.SymInt):
        known = value.node.maybe_as_int()
        return str(value.node.expr) if known is None else known
    if isinstance(value, (tuple, list)):
        return tuple(plain(v) for v in value)
    return value


def module_of(node: fx.Node) -> tuple[str, str]:
    """Path and class of the module in whose forward a call was traced."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    if not stack:
        return "", ""
    path, kind = stack[-1]
    name = kind if isinstance(kind, str) else getattr(kind, "__name__", "")
    return path, name.rpartition(".")[2]


def is_first_of(node: fx.Node) -> bool:
    """Whether it takes the first result of an operator whose others only serve its backward."""
    if node.target is not operator.getitem or node.args[1] != 0:
        return False
    source = node.args[0]
    return isinstance(source, fx.Node) and (name_of(source) in NORMS or name_of(source) in OPS)


def plainly(node: fx.Node) -> tuple[str, str, dict[str, Any]]:
    """What a call does, what it is called in PyTorch, and its arguments but for the tensors."""
    name = name_of(node)
    found = {k: plain(v) for k, v in arguments_of(node).items() if not _has_tensors(v)}
    found["args"] = tuple(plain(v) for v in node.args[1:] if not _has_tensors(v))
    if is_inplace(node):
        found["inplace"] = True
    if not is_aten(node) or getattr(node.target, "_overloadname", "") == "dtype":
        return "other", name, found
    if "train" in found:
        found["training"] = found.pop("train")
    if name in _TRANSPOSES:
        dim0, dim1 = _TRANSPOSES[name]
        return "reshape", "transpose", found | {"dim0": dim0, "dim1": dim1}
    before = shape_of(node.args[0]) if node.args else None
    if name == "expand" and before is not None and before == shape_of(node):
        return "identity", name, found
    if name == "mean" and before is not None and _means_over(node, before) == before[2:]:
        return "pool_average", f"adaptive_avg_pool{len(before) - 2}d", found
    if name in ("select", "slice") and before is not None:
        return "other", "getitem", {"index": _index(name, found, len(before))}
    return OPS.get(name, "other"), "view" if name == "_unsafe_view" else name, found


def _index(name: str, found: dict[str, Any], rank: int) -> tuple[Any, ...]:
    """What stands in the brackets of x[:, 0] and x[:, 1:]."""
    ends = slice(found.get("start"), found.get("end"), found.get("step"))
    return (*[slice(None)] * (found["dim"] % rank), found["index"] if name == "select" else ends)


_TRANSPOSES = {"t": (0, 1), "numpy_T": (0, 1), "mT": (-2, -1)}


def _has_tensors(value: Any) -> bool:
    if isinstance(value, (tuple, list)):
        return any(_has_tensors(v) for v in value)
    return isinstance(value, fx.Node) and is_tensors(value)


# --- norms that a decomposition took apart --------------------------------------------------------


@dataclass(frozen=True, eq=False)
class RmsNorm:
    """An RMS norm in small operators: ``x * rsqrt(mean(x ** 2) + eps) * weight``.

    Args:
        arguments: as of ``aten.rms_norm``.
        plain: what the gain multiplies.
        inside: its other nodes, which nothing else uses.
    """

    arguments: dict[str, Any]
    plain: fx.Node
    inside: tuple[fx.Node, ...]


def rms_norms(graph: fx.Graph) -> Iterator[tuple[fx.Node, RmsNorm]]:
    """The last nodes of RMS norms that were taken apart, with what they were."""
    for node in graph.nodes:
        if _is(node, "mul"):
            for gained, weight in (node.args[:2], node.args[1::-1]):
                found = _rms_norm(gained, weight)
                if found is not None:
                    yield node, found
                    break


def _rms_norm(gained: Any, weight: Any) -> RmsNorm | None:
    if not (_is(gained, "mul") and isinstance(weight, fx.Node)):
        return None
    for x, inverse in (gained.args[:2], gained.args[1::-1]):
        shifted = _source(inverse, "rsqrt")
        mean = _source(shifted, "add")
        square = _source(mean, "mean")
        if not isinstance(x, fx.Node) or not _is_square(square, x):
            continue
        eps = arguments_of(shifted).get("other")
        gain, last = shape_of(weight), _means_over(mean, shape_of(x))
        inside = (gained, inverse, shifted, mean, square)
        if isinstance(eps, float) and gain == last and all(len(n.users) == 1 for n in inside):
            arguments = {"input": x, "normalized_shape": last, "weight": weight, "eps": eps}
            return RmsNorm(arguments, gained, inside)
    return None


def _is(node: Any, name: str) -> bool:
    return isinstance(node, fx.Node) and node.op == "call_function" and name_of(node) == name


def _source(node: Any, name: str) -> Any:
    """The first argument of a call of this operator."""
    return node.args[0] if _is(node, name) else None


def _is_square(node: Any, x: fx.Node) -> bool:
    if _is(node, "mul"):
        return tuple(node.args) == (x, x)
    return _is(node, "pow") and node.args[0] is x and node.args[1] == 2


def _means_over(mean: fx.Node, shape: tuple[int | str, ...] | None) -> tuple[int | str, ...] | None:
    """The sizes of the last dimensions, if it is they that a mean is taken over."""
    arguments = arguments_of(mean)
    dims = arguments.get("dim")
    if not shape or not dims or not arguments.get("keepdim"):
        return None
    places = sorted(d % len(shape) for d in dims)
    return shape[places[0] :] if places == list(range(places[0], len(shape))) else None
