"""Drawings of graphs, in pieces that flow like words: left to right, line by line."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from normkit.report.layered import Column, columns, parts, regions, segments
from normkit.report.levels import check_level

__all__ = ["Diagram", "DiagramNode", "pieces"]

STEP = 48  # pixels of a column: a wire's bend, then a node
BEND = 16
MIDDLE = 32  # of a node, from its column's left edge
LANE, NARROW = 42, 12  # heights of a lane with nodes, and of one with wires alone
ABOVE, BELOW = 14, 28  # a node's middle: room for its mark, and for its label below
MOST_COLUMNS = 7  # of a piece: 336 pixels, which fit on a telephone
MOST_NAMES = 12  # of joined nodes, in a tooltip


@dataclass(frozen=True)
class DiagramNode:
    """One node.

    Args:
        name: unique in the diagram.
        label: a few letters: in the node, or below its mark where it has one.
        title: all about it, in words that show when it is pointed at.
        level: draws it as this level's mark; "" for a plain node.
        anchor: the fold of the page that it leads to.
    """

    name: str
    label: str
    title: str
    level: str = ""
    anchor: str = ""

    def __post_init__(self) -> None:
        if self.level:
            check_level(self.level, f"the node {self.name!r}")


@dataclass(frozen=True)
class Diagram:
    """A graph without cycles.

    Args:
        nodes: every node after those that lead to it.
        edges: (from, to), by name.
        legend: what each level that occurs stands for.
        most: with more nodes than this, plain ones with one result coming in and one going out are
            drawn as one.
        anchor: unique on the page; with it, the keyboard can go past the drawing in one step.
    """

    heading: str
    nodes: Sequence[DiagramNode]
    edges: Sequence[tuple[str, str]]
    legend: Mapping[str, str] = field(default_factory=dict)
    note: str = ""
    most: int = 80
    anchor: str = ""

    def __post_init__(self) -> None:
        place = {node.name: i for i, node in enumerate(self.nodes)}
        if len(place) < len(self.nodes):
            raise ValueError(f"two nodes of the diagram {self.heading!r} have one name")
        for source, target in self.edges:
            if source not in place or target not in place or place[source] >= place[target]:
                raise ValueError(
                    f"the diagram {self.heading!r} has an edge from {source!r} to {target!r}; "
                    "expected two of its nodes, the first of them before the second"
                )


def pieces(diagram: Diagram) -> dict[str, Any]:
    """What the template writes down: the drawing's pieces, part by part, and the words below."""
    nodes, edges, joined = _joined(diagram)
    known = {node.name: node for node in nodes}
    flows: list[list[dict[str, Any]]] = []
    single: list[dict[str, Any]] = []
    for names in parts(list(known), edges):
        inside = set(names)
        drawn = columns(names, [edge for edge in edges if edge[0] in inside])
        if len(names) > 1:
            flows.append(_flow(drawn, known))
        elif known[names[0]].level or len(known) == 1:  # else nothing that a map would show
            single += _flow(drawn, known)
    flows += [single] if single else []
    shown = sum(len(piece["nodes"]) for flow in flows for piece in flow)
    return {"flows": flows, "note": _note(diagram, joined, len(known) - shown)}


def _note(diagram: Diagram, joined: Sequence[int], alone: int) -> str:
    words = [diagram.note]
    if joined:
        words.append(
            f"{sum(joined)} plain steps are drawn as {len(joined)}, each with the number of steps "
            "that it stands for."
        )
    if alone:
        words.append(f"Not drawn, being joined to nothing: {alone}.")
    return " ".join(filter(None, words))


def _joined(
    diagram: Diagram,
) -> tuple[list[DiagramNode], list[tuple[str, str]], list[int]]:
    """Nodes and edges with regions of plain nodes made one, and how many each stands for."""
    if len(diagram.nodes) <= diagram.most:
        return list(diagram.nodes), list(diagram.edges), []
    plain = {node.name for node in diagram.nodes if not node.level}
    head = regions([node.name for node in diagram.nodes], diagram.edges, plain)
    members: dict[str, list[DiagramNode]] = {}
    for node in diagram.nodes:
        members.setdefault(head[node.name], []).append(node)
    last = {row[-1].name for row in members.values()}
    nodes = [_one(members[head[node.name]]) for node in diagram.nodes if node.name in last]
    edges = [(head[a], head[b]) for a, b in diagram.edges if head[a] != head[b]]
    return nodes, edges, [len(row) for row in members.values() if len(row) > 1]


def _one(row: Sequence[DiagramNode]) -> DiagramNode:
    if len(row) == 1:
        return row[0]
    names = [node.title for node in row[:MOST_NAMES]]
    names += [f"and {len(row) - MOST_NAMES} more"] if len(row) > MOST_NAMES else []
    return DiagramNode(row[-1].name, f"⋯{len(row)}", "\n".join([f"{len(row)} steps:", *names]))


def _flow(drawn: Sequence[Column], known: Mapping[str, DiagramNode]) -> list[dict[str, Any]]:
    """The pieces of one part; a lane is at one height in all of them."""
    heights = _heights(drawn)
    return [_piece(drawn[a:b], heights, known) for a, b in segments(drawn, MOST_COLUMNS)]


def _heights(drawn: Sequence[Column]) -> list[int]:
    """The middle of each lane, in pixels from the top."""
    wide = {lane for column in drawn for _, lane in column.nodes}
    last = max(lane for column in drawn for lane in _lanes(column))
    middles, at = [], 0
    for lane in range(last + 1):
        middles.append(at + (ABOVE if lane in wide else NARROW // 2))
        at += LANE if lane in wide else NARROW
    return middles


def _lanes(column: Column) -> Iterable[int]:
    return [lane for _, lane in column.nodes] + [
        lane for pair in (*column.wires, *column.passing) for lane in pair
    ]


def _piece(
    drawn: Sequence[Column], heights: Sequence[int], known: Mapping[str, DiagramNode]
) -> dict[str, Any]:
    wires: list[str] = []
    nodes: list[dict[str, Any]] = []
    for number, column in enumerate(drawn):
        left = number * STEP
        wires += [_wire(left, heights[a], heights[b], MIDDLE) for a, b in column.wires]
        wires += [_wire(left, heights[a], heights[b], STEP) for a, b in column.passing]
        wires += [f"M{left + MIDDLE} {heights[lane]}h{STEP - MIDDLE}" for lane in column.leaving]
        nodes += [
            {"node": known[name], "x": left + MIDDLE, "y": heights[lane]}
            for name, lane in column.nodes
        ]
    lowest = max(heights[lane] for column in drawn for lane in _lanes(column))
    return {
        "width": len(drawn) * STEP,
        "height": lowest + BELOW,
        "wires": "".join(wires),
        "nodes": nodes,
    }


def _wire(left: int, start: int, end: int, length: int) -> str:
    """From a column's left edge, bent into a lane, to its node or through the column."""
    if start == end:
        return f"M{left} {start}h{length}"
    half, bent = left + BEND // 2, left + BEND
    return f"M{left} {start}C{half} {start} {half} {end} {bent} {end}H{left + length}"
