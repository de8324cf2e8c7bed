"""A model's operations and how they follow each other, alike for every format that it came in."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

__all__ = ["OPS", "Graph", "Node"]

#: What a node does, as far as normalization is concerned.
OPS = (
    "input", "output", "constant",
    "norm",
    "conv", "conv_transpose", "linear",
    "activation", "softmax", "dropout", "identity",
    "reshape",      # elements move, none changes: view, flatten, permute, squeeze, ...
    "pool_average", "pool_max", "pad",
    "add", "multiply", "concatenate",
    "other",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Node:
    """One call.

    Args:
        name: unique in the graph.
        op: one of :data:`OPS`.
        inputs: names of the nodes whose results it takes, in order; weights are not among them.
        target: the path of the module, or the common prefix of the weights' names ("" for a
            function). Two nodes with one target are two calls of a shared layer. For a norm, the
            name of its site.
        function: what is called, for people and for what ``op`` does not tell apart: ``"relu"``,
            ``"flatten"``, ``"adaptive_avg_pool2d"``, a class's name.
        attributes: what the format knows about the call: ``padding``, ``groups``, ``start_dim``,
            ``negative_slope``, ...
        obstacle: why the call is not the plain one that ``op`` names (hooks, a parametrization,
            a forward of the user's own); "" where it is.
        handle: the format's own node.
    """

    name: str
    op: str
    inputs: tuple[str, ...] = ()
    target: str = ""
    function: str = ""
    attributes: dict[str, Any] = field(default_factory=dict)
    obstacle: str = ""
    handle: Any = field(default=None, repr=False)


class Graph:
    """Nodes in the order in which they run.

    ``unknown`` says for each part of the model whose inside is not in the graph why it is not: such
    a part is a node of op ``"other"``, or, where not even its surroundings could be followed, its
    traceable parts stand in the graph as islands with inputs and outputs of their own.

    >>> graph = Graph([Node("x", "input"), Node("a", "conv", ("x",)), Node("b", "norm", ("a",))])
    >>> [n.name for n in graph.users("a")], graph["b"].op, len(graph)
    (['b'], 'norm', 3)
    """

    def __init__(self, nodes: list[Node], unknown: dict[str, str] | None = None) -> None:
        self._nodes = {node.name: node for node in nodes}
        self._users: dict[str, list[Node]] = {}
        self._calls: dict[str, list[Node]] = {}
        self.unknown = unknown or {}
        for node in nodes:
            for name in dict.fromkeys(node.inputs):
                self._users.setdefault(name, []).append(node)
            if node.target:
                self._calls.setdefault(node.target, []).append(node)

    def __iter__(self) -> Iterator[Node]:
        return iter(self._nodes.values())

    def __len__(self) -> int:
        return len(self._nodes)

    def __getitem__(self, name: str) -> Node:
        return self._nodes[name]

    def __contains__(self, name: object) -> bool:
        return name in self._nodes

    def users(self, name: str) -> list[Node]:
        """The nodes that take a node's result."""
        return self._users.get(name, [])

    def sources(self, name: str) -> list[Node]:
        """The nodes whose results a node takes."""
        return [self._nodes[i] for i in self._nodes[name].inputs]

    def calls(self, target: str) -> list[Node]:
        """The calls of one layer."""
        return list(self._calls.get(target, ()))

    def only_user(self, name: str) -> Node | None:
        """The one node that takes this result, in one place; None where there are more or none."""
        users = self.users(name)
        alone = len(users) == 1 and users[0].inputs.count(name) == 1
        return users[0] if alone else None
