"""What a file's graph gives when it is read once, alike for every kind of file."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from normkit.models.graph import Graph
from normkit.models.sites import NormSite

__all__ = ["Call", "Reading", "Stored"]


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
    """

    stored: dict[str, Stored]
    end: Any = field(repr=False)
    plain: Any = field(default=None, repr=False)


@dataclass(frozen=True, eq=False)
class Reading:
    """A graph, its norms, and by the graph's node names the tensors of its layers."""

    graph: Graph
    sites: list[NormSite]
    calls: dict[str, Call] = field(repr=False)
