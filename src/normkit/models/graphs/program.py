"""The graph and the norms of a torch.export program, from its aten operators.

Both of the forms are read in which programs come: as ``torch.export.export`` makes them, and after
``run_decompositions``. Nothing is computed.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import fx
from torch.export import ExportedProgram

from normkit.models.graphs import program_ops as ops
from normkit.models.graphs.graph import Graph, Node
from normkit.models.graphs.program_weights import StoredTensors
from normkit.models.graphs.reading import Call, Reading, Stored
from normkit.models.sites import NormSite

__all__ = ["program_graph", "program_sites", "read_program"]

Tensor = torch.Tensor


def program_graph(program: ExportedProgram) -> Graph:
    """The operations of a program, and how they follow each other.

    >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8)).eval()
    >>> program = torch.export.export(net, (torch.zeros(1, 3, 8, 8),))
    >>> [(n.op, n.target) for n in program_graph(program)]
    [('input', ''), ('conv', '0'), ('norm', '1'), ('output', '')]
    """
    return read_program(program).graph


def program_sites(program: ExportedProgram) -> list[NormSite]:
    """The program's norms in the order in which they run; one that runs twice once.

    >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8)).eval()
    >>> program = torch.export.export(net, (torch.zeros(1, 3, 8, 8),))
    >>> [(s.name, s.kind, s.channels, s.eps) for s in program_sites(program)]
    [('1', 'batch', 8, 1e-05)]
    """
    return read_program(program).sites


def read_program(program: ExportedProgram) -> Reading:
    """A program's graph, its norms, and the stored tensors of its layers."""
    return _Reader(program).read()


class _Reader:
    def __init__(self, program: ExportedProgram) -> None:
        self.program = program
        self.stored = StoredTensors(program)
        self.nodes: list[Node] = []
        self.sites: dict[str, NormSite] = {}
        self.calls: dict[str, Call] = {}
        self.unknown: dict[str, str] = {}
        self.hidden: dict[str, str] = {}
        self.standing: dict[fx.Node, str] = {}  # the name of the node that has an fx node's value
        self.constants: set[fx.Node] = set()  # what follows from stored tensors and sizes alone
        self.owners: dict[str, tuple[str, ...]] = {}  # the tensors that a target's name stands for
        self.taken_apart = dict(ops.rms_norms(program.graph))

    def read(self) -> Reading:
        inside = {inner for norm in self.taken_apart.values() for inner in norm.inside}
        for node in self.program.graph.nodes:
            if node.op == "placeholder" and node.name in self.stored.names:
                self.constants.add(node)
            elif node.op == "placeholder" and ops.is_tensors(node):
                self.emit(node, Node(node.name, "input", handle=node))
            elif node.op == "output":
                self.emit(node, Node(node.name, "output", self.operands(node.args), handle=node))
            elif node.op == "call_function" and ops.is_tensors(node) and node not in inside:
                self.call(node)
        graph = Graph(self.nodes, self.unknown)
        return Reading(graph, list(self.sites.values()), self.calls, self.hidden)

    def call(self, node: fx.Node) -> None:
        sources = [n for n in node.all_input_nodes if ops.is_tensors(n)]
        if ops.is_first_of(node) and node.args[0] in self.standing:
            self.standing[node] = self.standing[sources[0]]
        elif sources and all(n in self.constants for n in sources):
            self.constants.add(node)
        elif node in self.taken_apart:
            self.norm(node, "rms", self.taken_apart[node].arguments)
        elif ops.is_aten(node) and ops.name_of(node) in ops.NORMS:
            self.norm(node, ops.NORMS[ops.name_of(node)], ops.arguments_of(node))
        elif (layer := ops.layer_of(node)) is not None:
            self.layer(node, *layer)
        elif not self.joins_product(node):
            self.other(node)

    def emit(self, node: fx.Node, value: Node) -> None:
        self.standing[node] = value.name
        self.nodes.append(value)

    def add(
        self, node: fx.Node, op: str, source: Any, target: str, attributes: dict[str, Any],
        obstacle: str = "", function: str = "",
    ) -> None:  # fmt: skip
        """A node whose result an fx node stands for."""
        function = function or ("rms_norm" if node in self.taken_apart else ops.name_of(node))
        attributes = {**attributes, "shape": ops.shape_of(node)}
        inputs = self.operands(source)
        self.emit(node, Node(node.name, op, inputs, target, function, attributes, obstacle, node))

    def operands(self, values: Any) -> tuple[str, ...]:
        """The nodes among a call's arguments, each as often as it stands there."""
        found: list[str] = []

        def visit(value: fx.Node) -> fx.Node:
            if value in self.constants and value not in self.standing:
                stored = self.stored.of(value)
                name = "" if stored is None else stored.name
                self.emit(value, Node(value.name, "constant", target=name, handle=value))
            if value in self.standing:
                found.append(self.standing[value])
            return value

        fx.node.map_arg(values, visit)
        return tuple(found)

    def stored_among(self, given: dict[str, Any]) -> dict[str, Stored]:
        found = {role: self.stored.of(value) for role, value in given.items()}
        return {role: stored for role, stored in found.items() if stored is not None}

    def target(self, node: fx.Node, owners: list[str], name: str) -> str:
        """A name that stands for these tensors alone; a norm's is its site's."""
        whole = tuple(self.stored.key(owner) for owner in owners)
        for candidate in (name, node.name):
            if candidate and self.owners.setdefault(candidate, whole) == whole:
                return candidate
        return node.name

    # -- norms --------------------------------------------------------------------------------

    def norm(self, node: fx.Node, kind: str, arguments: dict[str, Any]) -> None:
        given = {r: v for r in _PARAMETERS if (v := arguments.get(r)) is not None}
        stored = self.stored_among(given)
        computed = [r for r in given if r not in stored]
        if any(given[r] not in self.constants or r.startswith("running") for r in computed):
            return self.other(node)  # it depends on the input: not the norm that its name says
        target = self.norm_target(node, stored)
        obstacle = "its parameters are computed" if computed else ""
        if any(user.users and not ops.is_first_of(user) for user in _parts(node)):
            obstacle = "its statistics are used too"
        attributes = {k: ops.plain(v) for k, v in arguments.items() if k in _NORM_ATTRIBUTES}
        self.add(node, "norm", arguments["input"], target, attributes, obstacle)
        apart = self.taken_apart.get(node)
        self.calls[node.name] = Call(stored, node, None if apart is None else apart.plain)
        if target not in self.sites:
            self.sites[target] = self.site(node, target, kind, stored, arguments)
        return None

    def norm_target(self, node: fx.Node, stored: dict[str, Stored]) -> str:
        path, kind = ops.module_of(node)
        is_norm = "norm" in kind.lower()
        if not stored:
            return self.target(node, [f"{path}/{kind}"], path) if is_norm else node.name
        first = self.stored.key(next(iter(stored.values())).name)
        prefix, _, leaf = first.rpartition(".")
        own = leaf in _PARAMETERS or (is_norm and prefix == path)
        name = prefix if own and prefix else first
        return self.target(node, [s.name for s in stored.values()], name)

    def site(
        self, node: fx.Node, name: str, kind: str, stored: dict[str, Stored], given: dict[str, Any]
    ) -> NormSite:
        tensors = {role: self.stored.tensor(s.name) for role, s in stored.items()}
        mean, var = tensors.get("running_mean"), tensors.get("running_var")
        tracks = mean is not None and var is not None
        affine = [tensors[r] for r in ("weight", "bias") if r in tensors]
        path, class_name = ops.module_of(node)
        groups = given.get("num_groups", given.get("group"))
        return NormSite(
            name=name,
            kind=kind,
            type_name=class_name if path == name and class_name else ops.name_of(node),
            channels=_channels(tensors, given),
            gamma=tensors.get("weight"),
            beta=tensors.get("bias"),
            mean=mean,
            var=var,
            eps=_eps(given),
            momentum=given.get("momentum"),
            batches=_whole(self.stored.tensor(f"{name}.num_batches_tracked")),
            groups=groups if kind == "group" else None,
            training=tracks and bool(given.get("training", given.get("use_input_stats", False))),
            tracks=tracks,
            learns=any(t.requires_grad for t in affine) if affine else None,
        )

    # -- layers with a weight -----------------------------------------------------------------

    def layer(self, node: fx.Node, op: str, roles: dict[str, str]) -> None:
        arguments = ops.arguments_of(node)
        given = {role: arguments.get(name) for role, name in roles.items()}
        stored = self.stored_among({r: given.get(r) for r in ("weight", "bias")})
        weight = stored.get("weight")
        shape = None if weight is None else ops.shape_of(weight.handle)
        if given["weight"] not in self.constants or (shape and op == "linear" and len(shape) != 2):
            return self.other(node)  # a product of two results, or of many matrices
        if weight is not None and op == "linear" and roles["weight"] != "weight":
            # x @ W takes (in, out); torch.nn keeps (out, in)
            weight = stored["weight"] = Stored(weight.name, not weight.turned, weight.handle)
        if weight is None:
            target, obstacle = node.name, "its weight is computed"
        else:
            owner = self.stored.key(weight.name)
            target = self.target(node, [weight.name], owner.removesuffix(".weight"))
            obstacle = self.obstacle(node, stored, given, arguments)
        attributes = {k: ops.plain(v) for k, v in arguments.items() if k in _LAYER_ATTRIBUTES}
        if weight is not None and shape is not None:
            attributes |= _sizes(op, shape, weight.turned, attributes.get("groups", 1))
        self.add(node, op, given["input"], target, attributes, obstacle)
        self.calls[node.name] = Call(stored, node)
        return None

    def obstacle(self, node: fx.Node, stored: dict[str, Stored], given: Any, arguments: Any) -> str:
        if given.get("bias") is not None and "bias" not in stored:
            return "its bias is computed"
        if any(arguments.get(scale, 1) != 1 for scale in ("alpha", "beta")):
            return "its product is scaled"
        return self.stored.used_elsewhere(node, stored)

    def joins_product(self, node: fx.Node) -> bool:
        """Whether it adds a bias to a product with a weight; if so the two become one layer."""
        if not (ops.is_aten(node) and ops.name_of(node) == "add") or len(node.args) != 2:
            return False
        for product, bias in (node.args, node.args[::-1]):
            if not isinstance(product, fx.Node) or len(product.users) != 1:
                continue
            name, stored = self.standing.get(product, ""), self.stored.of(bias)
            call = self.calls.get(name)
            if stored is None or call is None or call.end is not product or "bias" in call.stored:
                continue
            layer = next(n for n in self.nodes if n.name == name)
            if ops.shape_of(bias) == (layer.attributes.get("out_features"),):
                self.calls[name] = Call({**call.stored, "bias": stored}, node)
                self.standing[node] = name
                return True
        return False

    # -- everything else ----------------------------------------------------------------------

    def other(self, node: fx.Node) -> None:
        op, function, attributes = ops.plainly(node)
        if isinstance(node.target, torch._ops.HigherOrderOperator):
            self.unknown[node.name] = f"{function} holds a graph of its own"
            module = self.program.graph_module
            self.look_into(node, module, f"it is within {function}, which holds a graph of its own")
        self.add(node, op, (node.args, node.kwargs), "", attributes, function=function)

    def look_into(self, node: fx.Node, module: Any, where: str) -> None:
        """The norms in the graphs that an operator holds; their calls are in no graph here."""
        for place, argument in enumerate(node.args):
            if not isinstance(argument, fx.Node) or argument.op != "get_attr":
                continue
            inner = getattr(module, str(argument.target), None)
            if not isinstance(inner, fx.GraphModule):
                continue
            given, operands = inner.graph.find_nodes(op="placeholder"), node.args[place + 1 :]
            if len(given) == len(operands):
                self.stored.outer |= dict(zip(given, operands, strict=True))
            for call in inner.graph.nodes:
                self.hidden_norm(call, where)
                self.look_into(call, inner, where)

    def hidden_norm(self, node: fx.Node, where: str) -> None:
        called = node.op == "call_function" and ops.is_aten(node)
        kind = ops.NORMS.get(ops.name_of(node)) if called else None
        if kind is None:
            return
        arguments = ops.arguments_of(node)
        stored = self.stored_among({r: arguments.get(r) for r in _PARAMETERS})
        target = self.norm_target(node, stored)
        if target not in self.sites:
            self.sites[target] = self.site(node, target, kind, stored, arguments)
            self.hidden[target] = where


_PARAMETERS = ("weight", "bias", "running_mean", "running_var")
_NORM_ATTRIBUTES = ("eps", "momentum", "training", "use_input_stats", "normalized_shape")
_LAYER_ATTRIBUTES = ("padding", "groups", "stride", "dilation", "output_padding", "transposed")


def _parts(node: fx.Node) -> list[fx.Node]:
    """What takes single results of a call that has several."""
    several = isinstance(node.meta.get("val"), (tuple, list))
    return list(node.users) if several else []


def _sizes(op: str, shape: tuple[int | str, ...], turned: bool, groups: int) -> dict[str, Any]:
    """A layer's channels and kernel, named as torch.nn names them."""
    if op == "linear":
        out, into = reversed(shape) if turned else shape
        return {"in_features": into, "out_features": out}
    assert isinstance(shape[1], int)
    first, second = shape[0], shape[1] * groups
    into, out = (first, second) if op == "conv_transpose" else (second, first)
    return {"in_channels": into, "out_channels": out, "kernel_size": shape[2:],
            "padding_mode": "zeros"}  # fmt: skip


def _channels(tensors: dict[str, Any], given: dict[str, Any]) -> int | None:
    for tensor in tensors.values():
        return int(tensor.numel())
    if "normalized_shape" in given:
        return math.prod(given["normalized_shape"])
    shape = ops.shape_of(given["input"])
    second = shape[1] if shape is not None and len(shape) > 1 else None
    return second if isinstance(second, int) else None


def _eps(given: dict[str, Any]) -> float | None:
    eps = given.get("eps")
    if eps is None and isinstance(value := given["input"].meta.get("val"), Tensor):
        return float(torch.finfo(value.dtype).eps)  # an RMS norm without one
    return None if eps is None else float(eps)


def _whole(tensor: Any) -> int | None:
    known = isinstance(tensor, Tensor) and not tensor.is_meta and tensor.numel() == 1
    return int(tensor) if known else None
