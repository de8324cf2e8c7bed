"""A torch.nn.Module as the planner of folds sees it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from torch import nn
from torch.nn.parameter import is_lazy

from normkit.errors import DTypeError, ModelError
from normkit.models.folding.algebra import Layer
from normkit.models.folding.ends import LAYER_OPS, Form
from normkit.models.folding.planning import Plan, plan
from normkit.models.folding.probing import form_of, scales_with_weights
from normkit.models.graphs.graph import Graph, Node
from normkit.models.graphs.module import trace
from normkit.models.sites import NormSite, find_sites
from normkit.models.wrappers import check_bare
from normkit.torch.normact import NormAct

__all__ = ["Reading", "layer_of", "read"]

#: The attribute of a layer's node that becomes its Layer's ``opaque``.
OPAQUE = "own forward"


@dataclass(frozen=True, eq=False)
class Reading:
    """A model with its graph and its norms."""

    model: nn.Module
    graph: Graph
    sites: list[NormSite]

    def plan(self, islands: str = "") -> Plan:
        """The folds; ``islands`` says why norms in parts apart from the model's graph stay."""
        return plan(self.graph, self.sites, _ModuleLayers(self.model, self.graph, islands))

    def first_layer(self) -> nn.Module | None:
        """The one that the input reaches first, as far as it can be told."""
        kinds = (nn.Linear, nn.Embedding, nn.EmbeddingBag, nn.modules.conv._ConvNd)
        modules = {name: m for name, m in self.model.named_modules() if isinstance(m, kinds)}
        called = [node.target for node in self.graph if not _on_island(node)]
        return next((modules[name] for name in [*called, *modules] if name in modules), None)


def read(model: Any) -> Reading:
    """The graph and the norms of a model in eval mode.

    Raises:
        DTypeError: it is no module.
        ModelError: it is in training mode.
    """
    if not isinstance(model, nn.Module):
        raise DTypeError(
            "fold() has no model",
            received=type(model).__name__,
            expected="a torch.nn.Module",
            remedy="Pass the model itself, and its input as example=.",
        )
    check_bare(model, "fold")
    if model.training:
        raise ModelError(
            "A model in training mode cannot be folded",
            received="model.training = True",
            expected="eval mode, in which norms with running statistics do the same to every batch",
            remedy="Call model.eval() first.",
        )
    graph = trace(model)
    fused = {name: module for name, module in model.named_modules() if isinstance(module, NormAct)}
    sites = list(_sites(model, fused))
    nodes = [_seen_into(model, node, fused) for node in graph]
    return Reading(model, Graph(nodes, graph.unknown), sites)


def _sites(model: nn.Module, fused: dict[str, NormAct]) -> Iterator[NormSite]:
    """The norms; those in a NormAct stand for all of it."""
    for site in find_sites(model):
        path, _, name = site.name.rpartition(".")
        if path in fused and name == "norm":
            yield replace(site, name=path, module=fused[path])
        else:
            yield site


def _seen_into(model: nn.Module, node: Node, fused: dict[str, NormAct]) -> Node:
    """The node with what is known of the module that it calls."""
    if node.target in fused:
        inner = fused[node.target].norm
        hooked = "it has hooks" if inner._forward_hooks or inner._forward_pre_hooks else ""
        return replace(node, op="norm", obstacle=node.obstacle or hooked)
    if node.op in LAYER_OPS and node.obstacle.endswith("a forward of its own"):
        module = model.get_submodule(node.target)
        if scales_with_weights(layer_of(node.op, module), module):
            return replace(node, obstacle="", attributes=node.attributes | {OPAQUE: node.obstacle})
    return node


def _on_island(node: Node) -> bool:
    """Whether a node is in a part that could be traced within a model that could not."""
    return "/" in node.name


def layer_of(op: str, module: Any) -> Layer:
    """The weights of a convolution or linear layer."""
    return Layer(op, module.weight, module.bias, getattr(module, "groups", 1))


class _ModuleLayers:
    """What a module knows of the layers in its graph; see :class:`planning.Layers`."""

    def __init__(self, model: nn.Module, graph: Graph, islands: str) -> None:
        self.model, self.graph, self.islands = model, graph, islands
        self.names: dict[int, list[str]] = defaultdict(list)
        self.owners: dict[Any, dict[int, str]] = defaultdict(dict)
        for name, module in model.named_modules(remove_duplicate=False):
            self.names[id(module)].append(name)
            for parameter in module._parameters.values():
                if parameter is not None:
                    self.owners[_memory(parameter)].setdefault(id(module), name)

    def shape(self, name: str) -> None:
        """Shapes are not known before a model is called."""

    def layer(self, node: Node) -> Layer | str:
        module: Any = self.model.get_submodule(node.target)
        held = [module._parameters.get("weight"), module._parameters.get("bias")]
        weight = held[0]
        if weight is None:
            return "its weight is not a parameter of its own"
        if is_lazy(weight) or weight.is_meta:
            return "its weight has no values yet"
        for tensor in held:
            tied = {} if tensor is None else self.owners[_memory(tensor)]
            for other in tied.keys() - {id(module)}:
                return f"it shares its weight with {tied[other]}"
        opaque = node.attributes.get(OPAQUE, "")
        return self.shared(node, module) or replace(layer_of(node.op, module), opaque=opaque)

    def form(self, node: Node, site: NormSite) -> Form | str:
        options = [name for name, value in node.attributes.items() if _is_given(value)]
        if options:
            words = ", ".join(f"{n}=" for n in options if n != "args") or "more than its input"
            return f"it is called with {words}: fold before such options are fused in"
        if self.islands and _on_island(node):
            return self.islands
        return self.shared(node, site.module) or form_of(site)

    def shared(self, node: Node, module: nn.Module) -> str:
        """Why this call is not all that the model does with a module; "" if it is."""
        names = self.names[id(module)]
        calls = sum(len(self.graph.calls(name)) for name in names)
        if calls > 1:
            return f"it is called {calls} times under the names {', '.join(names)}"
        for constant in self.graph:
            if constant.op == "constant" and constant.target.startswith(f"{node.target}."):
                return f"{constant.target} is also used directly"
        return ""


def _memory(parameter: nn.Parameter) -> Any:
    """What two parameters with the same values have in common."""
    if is_lazy(parameter) or parameter.is_meta or not parameter.numel():
        return id(parameter)
    return parameter.device, parameter.data_ptr()


def _is_given(value: Any) -> bool:
    if isinstance(value, (tuple, list)):
        return any(_is_given(inner) for inner in value)
    return value is not None
