"""The graph of a torch.nn.Module, by torch.fx; what cannot be traced stays closed, with its reason.

No input is needed and nothing is computed.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F  # noqa: N812 - its usual name

from normkit.models.graphs.graph import Graph, Node
from normkit.models.sites import site_of
from normkit.models.wrappers import HOOKS

__all__ = ["trace"]


def trace(model: nn.Module) -> Graph:
    """The calls that ``model.forward`` makes, in its present mode (training or eval).

    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
    >>> [(n.op, n.target) for n in trace(net)]
    [('input', ''), ('conv', '0'), ('norm', '1'), ('activation', '2'), ('output', '')]
    """
    if _is_leaf(model):
        node = _call(model, "", "layer", ("x",), (), {}, None)
        return Graph([Node("x", "input"), node, Node("result", "output", ("layer",))])
    closed: dict[str, str] = {}
    nodes = _trace_part(model, "", closed)
    return Graph(nodes, closed)


def _trace_part(part: nn.Module, path: str, closed: dict[str, str]) -> list[Node]:
    """The nodes of one module; where it cannot be traced whole, those of the parts that can."""
    try:
        return _nodes(part, path, closed)
    except Exception as error:  # whatever a user's forward does while it is traced
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    islands: list[Node] = []
    for name, child in _containers(part):
        full = f"{path}.{name}".lstrip(".")
        before = len(closed)
        inside = _trace_part(child, full, closed)
        if len(closed) > before:
            closed.setdefault(full, "a part of it cannot be traced")
            islands += inside
    try:
        return [*islands, *_nodes(part, path, closed)]
    except Exception:
        closed[path] = f"torch.fx cannot trace it: {reason}"
    for name, child in _containers(part):
        full = f"{path}.{name}".lstrip(".")
        if full not in closed:
            islands += _trace_part(child, full, closed)
    return islands


def _containers(part: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The children with a forward of their own to follow; lists of modules are looked into."""
    for name, child in part.named_children():
        if isinstance(child, (nn.ModuleList, nn.ModuleDict)):
            for inner, grandchild in _containers(child):
                yield f"{name}.{inner}", grandchild
        elif not _is_leaf(child):
            yield name, child


def _is_leaf(module: nn.Module) -> bool:
    if site_of("", module) is not None or isinstance(module, tuple(_LAYERS)):
        return True
    own = type(module).__module__
    library = own.startswith(("torch.nn", "torch.ao.nn", "normkit.torch"))
    return library and not isinstance(module, (nn.Sequential, nn.ModuleList, nn.ModuleDict))


class _Tracer(fx.Tracer):
    def __init__(self, path: str, closed: dict[str, str]) -> None:
        super().__init__()
        self.path, self.closed = path, closed

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        full = f"{self.path}.{module_qualified_name}".lstrip(".")
        return _is_leaf(m) or full in self.closed


def _nodes(part: nn.Module, path: str, closed: dict[str, str]) -> list[Node]:
    kept = {m: dict(m.__dict__) for m in part.modules()}
    try:
        graph = _Tracer(path, closed).trace(part)
    finally:
        for module, before in kept.items():  # a forward may count its calls
            module.__dict__.clear()
            module.__dict__.update(before)
    prefix = f"{path}/" if path else ""
    return [_node(part, path, prefix, node) for node in graph.nodes]


def _node(part: nn.Module, path: str, prefix: str, node: fx.Node) -> Node:
    name = prefix + node.name
    inputs = tuple(prefix + n.name for n in _operands(node))
    if node.op == "placeholder":
        return Node(name, "input", handle=node)
    if node.op == "output":
        return Node(name, "output", inputs, handle=node)
    if node.op == "get_attr":
        return Node(name, "constant", target=f"{path}.{node.target}".lstrip("."), handle=node)
    if node.op == "call_module":
        module = part.get_submodule(str(node.target))
        full = f"{path}.{node.target}".lstrip(".")
        return _call(module, full, name, inputs, node.args[1:], dict(node.kwargs), node)
    function = node.target if node.op == "call_method" else getattr(node.target, "__name__", "")
    table: Any = _METHODS if node.op == "call_method" else _FUNCTIONS
    op = table.get(node.target, "other")
    attributes = {"args": node.args[1:], **node.kwargs}
    return Node(name, op, inputs, "", str(function), attributes, handle=node)


def _operands(node: fx.Node) -> list[fx.Node]:
    """The nodes among the arguments, each as often as it stands there."""
    found: list[fx.Node] = []

    def visit(value: fx.Node) -> fx.Node:
        found.append(value)
        return value

    fx.node.map_arg((node.args, node.kwargs), visit)
    return found


def _call(
    module: nn.Module, path: str, name: str, inputs: Any, args: Any, kwargs: Any, handle: Any
) -> Node:
    """The node of a leaf's call."""
    attributes: dict[str, Any] = {"args": args, **kwargs} if args or kwargs else {}
    function = type(module).__name__
    if site_of(path, module) is not None:
        return Node(name, "norm", inputs, path, function, attributes, _obstacle(module), handle)
    for kind, (op, fields) in _LAYERS.items():
        if isinstance(module, kind):
            attributes |= {f: getattr(module, f) for f in fields if hasattr(module, f)}
            obstacle = _obstacle(module) or _own_forward(module, kind)
            return Node(name, op, inputs, path, function, attributes, obstacle, handle)
    return Node(name, "other", inputs, path, function, attributes, _obstacle(module), handle)


def _obstacle(module: nn.Module) -> str:
    for hooks in HOOKS:
        if getattr(module, hooks, None):
            return "it has hooks"
    if hasattr(module, "parametrizations"):
        return "its weight is parametrized"
    return "its forward was replaced" if "forward" in module.__dict__ else ""


def _own_forward(module: nn.Module, kind: type) -> str:
    """A subclass may compute something else than its base."""
    forward = getattr(type(module), "forward", None)
    inner = getattr(type(module), "_conv_forward", None)
    same = forward is getattr(kind, "forward", None)
    if same and inner is getattr(kind, "_conv_forward", None):
        return ""
    lazy = type(module).__name__.startswith("Lazy")
    return "" if lazy else f"{type(module).__name__} has a forward of its own"


_CONV = ("padding", "padding_mode", "groups", "kernel_size", "stride", "dilation", "in_channels",
         "out_channels", "output_padding")  # fmt: skip
_POOL = ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "output_size",
         "divisor_override")  # fmt: skip

#: Layers by class: what they do, and the attributes that matter. Subclasses count, with an obstacle
#: where their forward is their own.
_LAYERS: dict[type[nn.Module], tuple[str, tuple[str, ...]]] = {
    **dict.fromkeys((nn.Conv1d, nn.Conv2d, nn.Conv3d), ("conv", _CONV)),
    **dict.fromkeys(
        (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d), ("conv_transpose", _CONV)
    ),
    nn.Linear: ("linear", ("in_features", "out_features")),
    **dict.fromkeys(
        (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU,
         nn.Mish, nn.Sigmoid, nn.Tanh, nn.Hardswish, nn.Hardsigmoid, nn.Hardtanh, nn.Softplus,
         nn.Softsign, nn.LogSigmoid, nn.GLU, nn.RReLU, nn.Threshold),
        ("activation", ("negative_slope", "inplace", "approximate")),
    ),
    **dict.fromkeys((nn.Softmax, nn.LogSoftmax, nn.Softmax2d, nn.Softmin), ("softmax", ("dim",))),
    **dict.fromkeys(
        (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout,
         nn.FeatureAlphaDropout),
        ("dropout", ("p", "training")),
    ),
    nn.Identity: ("identity", ()),
    nn.Flatten: ("reshape", ("start_dim", "end_dim")),
    nn.Unflatten: ("reshape", ("dim", "unflattened_size")),
    **dict.fromkeys((nn.PixelShuffle, nn.PixelUnshuffle, nn.ChannelShuffle), ("reshape", ())),
    **dict.fromkeys(
        (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d,
         nn.AdaptiveAvgPool3d),
        ("pool_average", _POOL),
    ),
    **dict.fromkeys(
        (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d,
         nn.AdaptiveMaxPool3d),
        ("pool_max", _POOL),
    ),
    **dict.fromkeys(
        (nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d, nn.ReflectionPad1d, nn.ReflectionPad2d,
         nn.ReflectionPad3d, nn.ReplicationPad1d, nn.ReplicationPad2d, nn.ReplicationPad3d,
         nn.ConstantPad1d, nn.ConstantPad2d, nn.ConstantPad3d),
        ("pad", ("padding", "value")),
    ),
}  # fmt: skip


def _table(**names: Any) -> dict[Any, str]:
    return {member: op for op, members in names.items() for member in members}


_FUNCTIONS: dict[Callable[..., Any], str] = _table(
    activation=(
        F.relu, F.relu_, torch.relu, torch.relu_, F.relu6, F.leaky_relu, F.elu, F.selu, F.celu,
        F.gelu, F.silu, F.mish, F.sigmoid, torch.sigmoid, F.tanh, torch.tanh, F.hardswish,
        F.hardsigmoid, F.hardtanh, F.softplus, F.prelu,
    ),
    softmax=(F.softmax, F.log_softmax, torch.softmax, torch.log_softmax),
    dropout=(F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, torch.dropout),
    reshape=(torch.flatten, torch.reshape, torch.permute, torch.transpose, torch.squeeze,
             torch.unsqueeze, F.pixel_shuffle, torch.movedim),
    pool_average=(F.avg_pool1d, F.avg_pool2d, F.avg_pool3d, F.adaptive_avg_pool1d,
                  F.adaptive_avg_pool2d, F.adaptive_avg_pool3d),
    pool_max=(F.max_pool1d, F.max_pool2d, F.max_pool3d, F.adaptive_max_pool1d,
              F.adaptive_max_pool2d, F.adaptive_max_pool3d),
    pad=(F.pad,),
    add=(operator.add, operator.iadd, torch.add, operator.sub, torch.sub),
    multiply=(operator.mul, operator.imul, torch.mul, operator.truediv, torch.div),
    concatenate=(torch.cat, torch.concat),
)  # fmt: skip

_METHODS: dict[str, str] = _table(
    activation=("relu", "relu_", "sigmoid", "tanh", "sigmoid_", "tanh_"),
    softmax=("softmax", "log_softmax"),
    reshape=("view", "reshape", "flatten", "permute", "transpose", "squeeze", "unsqueeze", "t",
             "swapaxes", "movedim", "unflatten"),
    identity=("contiguous", "detach", "clone"),
    add=("add", "add_", "sub", "sub_"),
    multiply=("mul", "mul_", "div", "div_"),
)  # fmt: skip
