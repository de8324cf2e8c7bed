"""Which norms lie behind which, so that independent ones are measured in one pass."""

from __future__ import annotations

import graphlib
from collections.abc import Collection, Sequence

from torch import nn

from normkit.models.graphs.graph import Graph
from normkit.models.graphs.module import trace

__all__ = ["levels_of"]


def levels_of(model: nn.Module, calls: Sequence[str]) -> tuple[list[list[str]], set[str]]:
    """The names in ``calls``, each once, in groups of which none depends on a later one.

    By the model's graph where that makes the very calls that were heard; else one name a group, in
    the order of first calls. Beside them the names that depend on themselves, or may, where no
    graph says: no order serves these.

    Args:
        calls: names of norms, as often and in the order as one run of the model called them.

    >>> a, b, c = (nn.BatchNorm1d(2) for _ in range(3))
    >>> levels_of(nn.Sequential(a, b, c), ["0", "1", "2"])
    ([['0'], ['1'], ['2']], set())
    """
    names = list(dict.fromkeys(calls))
    graph = trace(model)
    traced = [n.target for n in graph if n.op == "norm" and n.target in names]
    one_by_one = [[name] for name in names], {n for n in names if list(calls).count(n) > 1}
    if graph.unknown or traced != list(calls):
        return one_by_one
    behind = _dependencies(graph, names)
    loops = {name for name in names if name in behind[name]}
    sorter = graphlib.TopologicalSorter({name: behind[name] - {name} for name in names})
    try:
        sorter.prepare()
    except graphlib.CycleError:  # layers that are used again behind each other
        return one_by_one
    levels = []
    while sorter.is_active():
        ready = sorter.get_ready()
        levels.append(sorted(ready, key=names.index))
        sorter.done(*ready)
    return levels, loops


def _dependencies(graph: Graph, names: Collection[str]) -> dict[str, set[str]]:
    """For each norm the norms whose results its input depends on."""
    behind: dict[str, set[str]] = {name: set() for name in names}
    reached: dict[str, frozenset[str]] = {}
    for node in graph:
        found = frozenset[str]().union(*(reached[i] for i in node.inputs if i in reached))
        if node.op == "norm" and node.target in behind:
            behind[node.target] |= found
            found |= {node.target}
        reached[node.name] = found
    return behind
