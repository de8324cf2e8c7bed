"""Norm, addition and activation found in a module's forward, and called as one.

Each container's own forward is traced by torch.fx with all its children as leaves, so that what
cannot be traced costs only that container. A container whose forward changes keeps its identity,
children, parameters, hooks and class (by a subclass made for it).
"""

from __future__ import annotations

import ast
import importlib
import inspect
import operator
import textwrap
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F  # noqa: N812 - its usual name

from normkit.torch.layers.base import KernelLayer

__all__ = ["Fusions", "fuse_container"]


@dataclass
class Fusions:
    """What was fused in a model, and what was left alone and why."""

    activations: int = 0
    additions: int = 0
    containers: list[str] = field(default_factory=list)
    left_alone: dict[str, str] = field(default_factory=dict)


_ADDITIONS = (operator.add, operator.iadd, torch.add)
_FUNCTIONS = {
    F.relu: "relu", torch.relu: "relu", F.silu: "silu", F.gelu: "gelu", F.sigmoid: "sigmoid",
    torch.sigmoid: "sigmoid", F.tanh: "tanh", torch.tanh: "tanh", F.hardswish: "hardswish",
    F.relu_: "relu", torch.relu_: "relu",
}  # fmt: skip
_METHODS = {"relu": "relu", "relu_": "relu", "sigmoid": "sigmoid", "tanh": "tanh"}
_MODULES = {
    nn.ReLU: "relu", nn.SiLU: "silu", nn.Sigmoid: "sigmoid", nn.Tanh: "tanh",
    nn.Hardswish: "hardswish",
}  # fmt: skip


def _activation_of(module: nn.Module) -> str | None:
    if isinstance(module, nn.GELU):
        return "gelu_tanh" if module.approximate == "tanh" else "gelu"
    if isinstance(module, nn.LeakyReLU):
        return "leaky_relu" if module.negative_slope == 0.01 else None
    return _MODULES.get(type(module))


class _ChildrenAreLeaves(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:  # noqa: ARG002
        return True


def fuse_container(name: str, module: nn.Module, additions: bool, done: Fusions) -> None:
    """Fuse what one container's own forward does with its children.

    Args:
        name: the container's name, for the report.
        additions: fuse additions too; they must not broadcast.
        done: the report that is added to.
    """
    if not any(isinstance(child, KernelLayer) for child in module.modules()):
        return
    reason = _refusal(module)
    if reason is None:
        try:
            graph = _trace(module)
        except Exception as error:  # whatever a user's forward does while it is traced
            reason = f"torch.fx cannot trace it ({type(error).__name__})"
    if reason is not None:
        # Only worth a line if there was something to fuse.
        if any(isinstance(child, KernelLayer) for child in module.children()):
            done.left_alone[name] = reason
        return
    before = (done.activations, done.additions)
    for node in list(graph.nodes):
        _fuse_from(graph, node, module, additions, done)
    if (done.activations, done.additions) == before:
        return
    graph.lint()
    code = graph.python_code("self")
    module.__class__ = _specialized(type(module), code.src, code.globals)
    done.containers.append(name)


def _trace(module: nn.Module) -> fx.Graph:
    """The graph of the container's forward, the same in training and in eval."""
    training = module.training
    graphs = []
    try:
        for mode in (True, False):
            module.training = mode  # the container's own flag: its children are not run
            graphs.append(_ChildrenAreLeaves().trace(module))
    finally:
        module.training = training
    if graphs[0].python_code("self").src != graphs[1].python_code("self").src:
        raise ValueError("its forward differs between training and eval")
    return graphs[0]


def _refusal(module: nn.Module) -> str | None:
    """Why a container's forward must not be replaced by its graph."""
    if isinstance(module, KernelLayer) or type(module).__module__.startswith("torch.nn.modules"):
        return None if isinstance(module, nn.Sequential) else "it is a layer"
    if "forward" in module.__dict__:
        return "its forward was replaced on the instance"
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(type(module).forward)))
    except (OSError, TypeError, SyntaxError):
        return "the source of its forward is not at hand"
    for node in ast.walk(tree):
        stored = isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)
        if stored or isinstance(node, (ast.Global, ast.Nonlocal)):
            return "its forward keeps state, which a graph would not"
    return None


# --- patterns -------------------------------------------------------------------------------------


def _only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _module_at(root: nn.Module, node: fx.Node) -> nn.Module | None:
    return root.get_submodule(str(node.target)) if node.op == "call_module" else None


def _has_hooks(module: nn.Module) -> bool:
    return any(
        getattr(module, hooks, None)
        for hooks in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks",
                      "_backward_pre_hooks")
    )  # fmt: skip


def _activation(root: nn.Module, node: fx.Node, value: fx.Node) -> str | None:
    """The activation that ``node`` applies to ``value`` and nothing else."""
    rest = {k: v for k, v in node.kwargs.items() if k != "inplace"}
    if not node.args or node.args[0] is not value or len(node.args) > 1:
        return None
    if node.op == "call_module":
        module = _module_at(root, node)
        if module is None or _has_hooks(module) or rest:
            return None
        return _activation_of(module)
    if node.op == "call_function":
        if node.target is F.gelu and rest == {"approximate": "tanh"}:
            return "gelu_tanh"
        return None if rest else _FUNCTIONS.get(node.target)  # type: ignore[arg-type]
    if node.op == "call_method" and not rest:
        return _METHODS.get(str(node.target))
    return None


def _added(node: fx.Node, value: fx.Node) -> fx.Node | None:
    """What ``node`` adds to ``value``."""
    if node.op != "call_function" or node.target not in _ADDITIONS or node.kwargs:
        return None
    operands = [arg for arg in node.args if arg is not value]
    both = len(node.args) == 2 and len(operands) == 1
    return operands[0] if both and isinstance(operands[0], fx.Node) else None


def _fuse_from(
    graph: fx.Graph, node: fx.Node, root: nn.Module, additions: bool, done: Fusions
) -> None:
    """Fuse what follows a norm layer's node into the call of the layer."""
    layer = _module_at(root, node)
    if not isinstance(layer, KernelLayer) or _has_hooks(layer) or node.kwargs:
        return
    last, options = node, dict[str, Any]()
    after = _only_user(last)
    if additions and after is not None:
        other = _added(after, last)
        # Of two norms that are added, the later one takes the other as its residual.
        if other is not None and not _comes_later(graph, root, other, node):
            options["residual"] = other
            last, after = after, _only_user(after)
    activation = None if after is None else _activation(root, after, last)
    if after is not None and activation is not None:
        options["activation"] = activation
        last = after
    if not options:
        return
    with graph.inserting_before(last):
        fused = graph.call_module(str(node.target), node.args, options)
    last.replace_all_uses_with(fused)
    while last is not node:
        before = node if node in last.all_input_nodes else _between(last, node)
        graph.erase_node(last)
        last = before
    graph.erase_node(node)
    done.activations += "activation" in options
    done.additions += "residual" in options


def _between(last: fx.Node, node: fx.Node) -> fx.Node:
    """The node on the way from ``node`` to ``last``: the addition in front of an activation."""
    return next(n for n in last.all_input_nodes if node in n.all_input_nodes)


def _comes_later(graph: fx.Graph, root: nn.Module, other: fx.Node, node: fx.Node) -> bool:
    """Whether ``other`` is a norm's result that is computed after ``node``'s."""
    if not isinstance(_module_at(root, other), KernelLayer) or len(other.users) > 1:
        return False
    order = list(graph.nodes)
    return order.index(other) > order.index(node)


# --- a class for one container --------------------------------------------------------------------


def _specialized(base: type, source: str, names: dict[str, Any]) -> type:
    """A subclass whose forward is the fused graph's code."""
    space = dict(names)
    exec(compile(source, f"<normkit: fused {base.__name__}.forward>", "exec"), space)
    return type(
        base.__name__,
        (base,),
        {
            "__module__": base.__module__,
            "__qualname__": base.__qualname__,
            "__doc__": base.__doc__,
            "forward": space["forward"],
            "__reduce_ex__": _reduce,
            "_fused_from": (base, source, names),
        },
    )


def _reduce(self: Any, protocol: Any) -> tuple[Any, ...]:  # noqa: ARG001 - pickle's signature
    """The code of the fused forward goes with the module: no other process has its class."""
    base, source, names = self._fused_from
    portable = {
        name: _Module(value.__name__) if isinstance(value, ModuleType) else value
        for name, value in names.items()
        if name != "__builtins__"
    }
    return _rebuild, (base, source, portable), self.__dict__


@dataclass(frozen=True)
class _Module:
    """A module by its name, which pickle has no word for."""

    name: str


def _rebuild(base: type, source: str, portable: dict[str, Any]) -> Any:
    names = {
        name: importlib.import_module(value.name) if isinstance(value, _Module) else value
        for name, value in portable.items()
    }
    kind: Any = _specialized(base, source, names)
    return kind.__new__(kind)
