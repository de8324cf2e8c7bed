"""What a file's graph gives when it is read once, alike for every kind of file."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import count
from math import isqrt
from typing import Any

from normkit.models.graphs.graph import Graph
from normkit.models.sites import NormSite

__all__ = ["Call", "Reading", "StandIns", "Stored"]


@dataclass(frozen=True, eq=False)
class Stored:
    """A stored tensor as a call takes it.

    Args:
        name: under which the file keeps it.
        turned: whether the call takes it transposed.
        handle: the format's own value: a placeholder, an array.
    """

    name: str
    turned: bool = False
    handle: Any = field(default=None, repr=False)


@dataclass(frozen=True, eq=False)
class Call:
    """The tensors of a layer's call, and where its result comes out.

    Args:
        stored: by their names in torch.nn: weight, bias, running_mean, running_var.
        end: the format's node that gives the layer's result; not the first one where a bias is
            added on its own.
        plain: of a norm in small operators, the format's value before gamma and beta.
        source: of a norm in an ONNX model, the name of the value that it normalizes.
    """

    stored: dict[str, Stored]
    end: Any = field(repr=False)
    plain: Any = field(default=None, repr=False)
    source: str = ""


@dataclass(frozen=True, eq=False)
class Reading:
    """A graph, its norms, and by the graph's node names the tensors of its layers.

    ``hidden``: the norms that are in graphs within a node, which are not in this one, with where.
    """

    graph: Graph
    sites: list[NormSite]
    calls: dict[str, Call] = field(repr=False)
    hidden: dict[str, str] = field(default_factory=dict)


class StandIns:
    """A number for each size that may vary, unlike any that a model has, so that sizes compare.

    >>> numbers = StandIns()
    >>> numbers("batch") == numbers("batch"), numbers("batch") == numbers("length")
    (True, False)
    """

    def __init__(self) -> None:
        self._known: dict[str, int] = {}

    def __call__(self, name: str) -> int:
        """A prime of its own for each name."""
        if name not in self._known:
            last = max(self._known.values(), default=1_000_000)
            self._known[name] = next(n for n in count(last + 1) if _is_prime(n))
        return self._known[name]


def _is_prime(number: int) -> bool:
    return all(number % divisor for divisor in range(2, isqrt(number) + 1))
