"""Norm, addition and activation found in a module's forward, and called as one.

Each container's own forward is traced by torch.fx with all its children as leaves, so that what
cannot be traced costs only that container. A container whose forward changes keeps its identity,
children, parameters, hooks and class (by a subclass made for it). What the graph cannot know is
asked at each call: other arguments, attributes or children than when it was traced go to the
original forward. A ``Sequential`` needs no graph: :class:`FusedSequential` looks at its children
as it goes.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import itertools
import operator
import textwrap
from dataclasses import dataclass, field
from functools import wraps
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
    """The activation that exactly this class computes."""
    if type(module) is nn.GELU:
        return "gelu_tanh" if module.approximate == "tanh" else "gelu"
    if type(module) is nn.LeakyReLU:
        return "leaky_relu" if module.negative_slope == 0.01 else None
    return _MODULES.get(type(module))


class FusedSequential(nn.Sequential):
    """A Sequential that calls a norm layer and the activation behind it as one."""

    def forward(self, input: Any) -> Any:
        """As of ``torch.nn.Sequential``."""
        children: list[Any] = list(self._modules.values())
        value, skipped = input, False
        for child, after in zip(children, [*children[1:], None], strict=True):
            activation = None if skipped else _pair(child, after)
            if skipped:
                skipped = False
            elif activation is None:
                value = child(value)
            else:
                value, skipped = child(value, activation=activation), True
        return value


def _pair(child: Any, after: Any) -> str | None:
    """The activation ``after``, if it can be fused with the norm layer ``child``."""
    if after is None or not isinstance(child, KernelLayer):
        return None
    return None if _has_hooks(child) or _has_hooks(after) else _activation_of(after)


class _ChildrenAreLeaves(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:  # noqa: ARG002
        return True


def fuse_container(name: str, module: nn.Module, done: Fusions) -> None:
    """Fuse what one container's own forward does with its children.

    Args:
        name: the container's name, for the report.
        done: the report that is added to.
    """
    children = list(module.children())
    if not any(isinstance(child, KernelLayer) for child in children) or _is_layer(module):
        return
    if type(module) is nn.Sequential:
        pairs = sum(_pair(*pair) is not None for pair in itertools.pairwise(children))
        if pairs:
            module.__class__ = FusedSequential
            done.activations += pairs
        return
    if isinstance(module, FusedSequential) or hasattr(module, "_fused_from"):
        return  # done before
    reason = _refusal(module)
    if reason is None:
        try:
            graph = _trace(module)
        except Exception as error:  # whatever a user's forward does while it is traced
            reason = f"torch.fx cannot trace it ({error or type(error).__name__})"
    if reason is not None:
        done.left_alone[name] = reason
        return
    before = (done.activations, done.additions)
    for node in list(graph.nodes):
        _fuse_from(graph, node, module, done)
    if (done.activations, done.additions) == before:
        return
    graph.lint()
    code = graph.python_code("self")
    module.__class__ = _specialized(type(module), code.src, code.globals, _guard(module, graph))


def _is_layer(module: nn.Module) -> bool:
    """Whether a module is PyTorch's or normkit's own, with a forward to be left as it is."""
    own = type(module).__module__.startswith(("torch.nn.modules", "normkit."))
    return own and not isinstance(module, nn.Sequential)


def _trace(module: nn.Module) -> fx.Graph:
    """The graph of the container's forward, the same in training and in eval.

    Raises:
        ValueError: a graph could not stand for the forward.
    """
    training, before = module.training, _marks(module)
    graphs = []
    try:
        for mode in (True, False):
            module.training = mode  # the container's own flag: its children are not run
            graphs.append(_ChildrenAreLeaves().trace(module))
    finally:
        module.training = training
        changed = _marks(module) != before
        for name in set(module.__dict__) - {"training", *before[0]}:
            del module.__dict__[name]
        module.__dict__.update(before[1])
    if changed:
        raise ValueError("its forward changes the module")
    if graphs[0].python_code("self").src != graphs[1].python_code("self").src:
        raise ValueError("its forward differs between training and eval")
    if any(str(node.target).startswith("_tensor_constant") for node in graphs[0].nodes):
        raise ValueError("its forward makes tensors of its own")
    return graphs[0]


def _marks(module: nn.Module) -> tuple[Any, ...]:
    """What a forward could change: attributes, and the versions of tensors."""
    plain = {k: v for k, v in module.__dict__.items() if k != "training"}
    tensors = [*module.parameters(), *module.buffers()]
    versions = [t._version for t in tensors]
    return {k: id(v) for k, v in plain.items()}, plain, versions


def _refusal(module: nn.Module) -> str | None:
    """Why a container's forward must not be replaced by its graph."""
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
        if isinstance(node, ast.Expr) and not isinstance(node.value, ast.Constant):
            return "its forward does something beside its result, which a graph would not"
        called = getattr(getattr(node, "func", None), "id", None)
        if called in _ASKING:
            return f"its forward calls {called}(), whose answer a graph would fix"
    return None


_ASKING = ("isinstance", "type", "len", "hasattr", "getattr", "setattr", "print", "next")


def _guard(module: nn.Module, graph: fx.Graph) -> tuple[Any, ...]:
    """What a graph took for granted: its number of arguments, plain attributes, children."""
    arguments = sum(node.op == "placeholder" for node in graph.nodes)
    source = textwrap.dedent(inspect.getsource(type(module).forward))
    read = {
        node.attr for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Attribute) and getattr(node.value, "id", "") == "self"
    }  # fmt: skip
    plain = {name: module.__dict__[name] for name in read if name in module.__dict__}
    plain.pop("training", None)
    children = {
        name: None if module._modules[name] is None else type(module._modules[name])
        for name in read if name in module._modules
    }  # fmt: skip
    return arguments, plain, children


def _holds(module: nn.Module, guard: tuple[Any, ...], args: Any, kwargs: Any) -> bool:
    """Whether a call is one that the graph was made for."""
    arguments, plain, children = guard
    if kwargs or len(args) != arguments or any(a is None for a in args):
        return False
    for name, value in plain.items():
        now = module.__dict__.get(name, _MISSING)
        if now is not value and (type(now) is not type(value) or now != value):
            return False
    for name, kind in children.items():
        child = module._modules.get(name)
        if kind is not type(child) and not (kind is None and child is None):
            return False
    return not any(_has_hooks(child) for child in module._modules.values() if child is not None)


_MISSING = object()

# --- patterns -------------------------------------------------------------------------------------


def _only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _module_at(root: nn.Module, node: fx.Node) -> nn.Module | None:
    return root.get_submodule(str(node.target)) if node.op == "call_module" else None


def _has_hooks(module: nn.Module) -> bool:
    """Whether hooks could tell, or make, a difference; those that only listen do not."""
    return any(
        not getattr(hook, "listens_only", False)
        for hooks in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks",
                      "_backward_pre_hooks")
        for hook in (getattr(module, hooks, None) or {}).values()
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


def _fuse_from(graph: fx.Graph, node: fx.Node, root: nn.Module, done: Fusions) -> None:
    """Fuse what follows a norm layer's node into the call of the layer."""
    layer = _module_at(root, node)
    if not isinstance(layer, KernelLayer) or _has_hooks(layer) or node.kwargs:
        return
    last, options = node, dict[str, Any]()
    after = _only_user(last)
    if after is not None:
        other = _added(after, last)
        # Of two norms that are added, the later one takes the other as its residual.
        if other is not None and not _comes_later(graph, root, other, node):
            options["residual"] = other
            last, after = after, _only_user(after)
    activation = None if after is None else _activation(root, after, last)
    if after is not None and activation is not None:
        options["activation"] = activation
        last = after
    if not options or _is_unsafe(graph, root, node, last):
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


def _is_unsafe(graph: fx.Graph, root: nn.Module, node: fx.Node, last: fx.Node) -> bool:
    """Whether calling the norm as late as ``last`` could see or do anything else than before."""
    order = list(graph.nodes)
    chain = {node, last, *(n for n in last.all_input_nodes if node in n.all_input_nodes)}
    for other in order[order.index(node) + 1 : order.index(last)]:
        if other in chain:
            continue
        name = getattr(other.target, "__name__", str(other.target))
        module = _module_at(root, other)
        writes = name.endswith("_") or name in ("setitem", "iadd", "isub", "imul", "itruediv")
        if writes or getattr(module, "inplace", False) or other.target == node.target:
            return True
    return False


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


def _specialized(base: type, source: str, names: dict[str, Any], guard: tuple[Any, ...]) -> type:
    """A subclass whose forward is the fused graph's code, for calls like those it was made for."""
    space = dict(names)
    exec(compile(source, f"<normkit: fused {base.__name__}.forward>", "exec"), space)
    fused: Any = space["forward"]
    original: Any = base.forward  # type: ignore[attr-defined]

    @wraps(original)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        if _holds(self, guard, args, kwargs):
            return fused(self, *args)
        return original(self, *args, **kwargs)

    return type(
        base.__name__,
        (base,),
        {
            "__module__": base.__module__,
            "__qualname__": base.__qualname__,
            "__doc__": base.__doc__,
            "forward": forward,
            "__reduce_ex__": _reduce,
            "_fused_from": (base, source, names, guard),
        },
    )


def _reduce(self: Any, protocol: Any) -> tuple[Any, ...]:  # noqa: ARG001 - pickle's signature
    """The code of the fused forward goes with the module: no other process has its class."""
    base, source, names, guard = self._fused_from
    portable = {
        name: _Module(value.__name__) if isinstance(value, ModuleType) else value
        for name, value in names.items()
        if name != "__builtins__"
    }
    return _rebuild, (base, source, portable, guard), self.__dict__


@dataclass(frozen=True)
class _Module:
    """A module by its name, which pickle has no word for."""

    name: str


def _rebuild(base: type, source: str, portable: dict[str, Any], guard: tuple[Any, ...]) -> Any:
    names = {
        name: importlib.import_module(value.name) if isinstance(value, _Module) else value
        for name, value in portable.items()
    }
    kind: Any = _specialized(base, source, names, guard)
    return kind.__new__(kind)
