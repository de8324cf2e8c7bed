"""Places for the nodes of a graph without cycles, in columns from left to right.

Every node has a column after those of the nodes before it, and a lane (a row) in its column. A
result that is wanted further on than in the next column travels there in a lane of its own, so that
no line crosses a node. Each column can be drawn for itself: all it needs to know is in which lanes
the results arrive that go to it or through it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field

__all__ = ["Column", "columns", "parts", "regions", "segments"]

Edge = tuple[str, str]


@dataclass
class Column:
    """What is drawn in one column.

    Args:
        nodes: (name, lane).
        wires: (from lane, to lane) of what arrives for a node here.
        passing: (from lane, to lane) of what goes through.
        leaving: lanes of the nodes whose results go on.
        arriving: how many different results come in from the left.
    """

    nodes: list[tuple[str, int]] = field(default_factory=list)
    wires: list[tuple[int, int]] = field(default_factory=list)
    passing: list[tuple[int, int]] = field(default_factory=list)
    leaving: list[int] = field(default_factory=list)
    arriving: int = 0


def parts(names: Sequence[str], edges: Iterable[Edge]) -> list[list[str]]:
    """The names of each connected part, in their order."""
    root = {name: name for name in names}

    def find(name: str) -> str:
        while root[name] != name:
            root[name] = root[root[name]]
            name = root[name]
        return name

    for source, target in edges:
        root[find(target)] = find(source)
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(find(name), []).append(name)
    return list(found.values())


def regions(names: Sequence[str], edges: Iterable[Edge], inside: Collection[str]) -> dict[str, str]:
    """The region of each name, called by its last member; most are alone in theirs.

    Into a region comes one result, and one goes out of it, that of its last member: it can be drawn
    as a single node.

    Args:
        names: every node after those that it depends on.
        inside: names that regions may be made of; ends of the graph are left out.

    >>> diamond = [("x", "a"), ("a", "b"), ("a", "c"), ("b", "d"), ("c", "d"), ("d", "y")]
    >>> regions(["x", "a", "b", "c", "d", "y"], diamond, {"a", "b", "c", "d"})
    {'x': 'x', 'a': 'd', 'b': 'd', 'c': 'd', 'd': 'd', 'y': 'y'}
    """
    sources: dict[str, set[str]] = {name: set() for name in names}
    users: dict[str, set[str]] = {name: set() for name in names}
    for source, target in edges:
        sources[target].add(source)
        users[source].add(target)
    place = {name: i for i, name in enumerate(names)}
    free = {name for name in names if name in inside and sources[name] and users[name]}
    head = {name: name for name in names}
    for last in reversed(names):
        if last in free:
            region = _region(last, sources, users, place, free)
            head |= dict.fromkeys(region, last)
            free -= region
    return head


def _region(
    last: str,
    sources: dict[str, set[str]],
    users: dict[str, set[str]],
    place: dict[str, int],
    free: set[str],
) -> set[str]:
    """The largest region that ends with ``last``, grown from there against the edges."""
    region, best = {last}, {last}
    before = set(sources[last])
    while True:
        if len(before) == 1:
            best = set(region)
        ready = [name for name in before if name in free and users[name] <= region]
        if not ready:
            return best
        latest = max(ready, key=place.__getitem__)
        region.add(latest)
        before = (before | sources[latest]) - region


def columns(names: Sequence[str], edges: Sequence[Edge]) -> list[Column]:
    """The columns of one part.

    Args:
        names: every node after those that it depends on.
        edges: between them.

    >>> chain = columns(["a", "b", "c"], [("a", "b"), ("b", "c"), ("a", "c")])
    >>> [column.nodes for column in chain], chain[1].passing  # a's result passes b in lane 1
    ([[('a', 0)], [('b', 0)], [('c', 0)]], [(0, 1)])
    """
    return _Layout(names, edges).result()


class _Layout:
    def __init__(self, names: Sequence[str], edges: Sequence[Edge]) -> None:
        self.names = names
        self.sources: dict[str, list[str]] = {name: [] for name in names}
        self.users: dict[str, list[str]] = {name: [] for name in names}
        for source, target in dict.fromkeys(edges):
            self.sources[target].append(source)
            self.users[source].append(target)
        self.column = self._columns()
        self.ahead = self._ahead()
        self.lane: dict[str, int] = {}
        self.bus: dict[str, int] = {}  # the lane in which a result travels on
        self.taken: dict[int, set[int]] = {}  # lanes by column

    def _columns(self) -> dict[str, int]:
        """The length of the longest way to each node; what has no source stands by its user."""
        column: dict[str, int] = {}
        for name in self.names:
            column[name] = max((column[s] + 1 for s in self.sources[name]), default=0)
        for name in self.names:
            if not self.sources[name] and self.users[name]:
                column[name] = max(min(column[u] for u in self.users[name]) - 1, 0)
        return column

    def _ahead(self) -> dict[str, int]:
        """The length of the longest way from each node: the longest branch keeps the main lane."""
        ahead: dict[str, int] = {}
        for name in reversed(self.names):
            ahead[name] = max((ahead[u] + 1 for u in self.users[name]), default=0)
        return ahead

    def result(self) -> list[Column]:
        members: list[list[str]] = [[] for _ in range(max(self.column.values()) + 1)]
        for name in self.names:
            members[self.column[name]].append(name)
        for at, inside in enumerate(members):
            for name in sorted(inside, key=lambda name: (self._wanted(name), -self.ahead[name])):
                self.lane[name] = self._free([at], self._wanted(name))
                self.taken.setdefault(at, set()).add(self.lane[name])
            for name in sorted(inside, key=lambda name: self.lane[name]):
                self._give_bus(name)
        return [self._drawn(at, inside) for at, inside in enumerate(members)]

    def _wanted(self, name: str) -> int:
        """The highest lane of those that lead straight to it, else of all that lead to it."""
        at, before = self.column[name], self.sources[name]
        straight = [s for s in before if self.column[s] == at - 1]
        return min((self._lane_at(s, at) for s in straight or before), default=0)

    def _lane_at(self, name: str, column: int) -> int:
        """In which lane a result arrives at a column."""
        return self.lane[name] if self.column[name] == column - 1 else self.bus[name]

    def _give_bus(self, name: str) -> None:
        at = self.column[name]
        last = self._last(name)
        if last <= at + 1:
            return
        near = any(self.column[user] == at + 1 for user in self.users[name])
        # the first lane is for the nodes of the longest way
        lane = self._free(range(at + 1, last), max(self.lane[name] + near, 1), least=1)
        self.bus[name] = lane
        for column in range(at + 1, last):
            self.taken.setdefault(column, set()).add(lane)

    def _last(self, name: str) -> int:
        return max((self.column[user] for user in self.users[name]), default=0)

    def _free(self, columns: Iterable[int], wanted: int, least: int = 0) -> int:
        """The lane nearest to the wanted one, below it if in doubt, that is free in all columns."""
        used = set().union(*(self.taken.get(column, ()) for column in columns))
        away = 0
        while True:
            for lane in (wanted + away, wanted - away):
                if lane >= least and lane not in used:
                    return lane
            away += 1

    def _drawn(self, at: int, inside: list[str]) -> Column:
        wires = {(self._lane_at(s, at), self.lane[n]) for n in inside for s in self.sources[n]}
        arriving = {s for n in inside for s in self.sources[n]}
        passing = []
        for name in self.bus:
            if self.column[name] < at < self._last(name):
                passing.append((self._lane_at(name, at), self.bus[name]))
                arriving.add(name)
        nodes = sorted(((name, self.lane[name]) for name in inside), key=lambda node: node[1])
        leaving = [lane for name, lane in nodes if self.users[name]]
        return Column(nodes, sorted(wires), sorted(passing), leaving, len(arriving))


def segments(columns: Sequence[Column], most: int) -> list[tuple[int, int]]:
    """Where a drawing may be broken into lines, as (first, past the last) column of each piece.

    A break stands wherever one result alone goes on, and, where that is rare, so often that no
    piece has more than ``most`` columns.
    """
    found, first = [], 0
    while first < len(columns):
        end = first + 1
        while end < len(columns) and columns[end].arriving > 1 and end - first < most:
            end += 1
        if end < len(columns) and columns[end].arriving > 1:  # too long: where the least goes on
            places = range(first + most // 2, end + 1)
            end = min(places, key=lambda at: (columns[at].arriving, -at))
        found.append((first, end))
        first = end
    return found
