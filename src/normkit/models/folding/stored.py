"""A file's layers as the planner of folds sees them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from normkit.models.folding.algebra import Layer
from normkit.models.folding.planning import Form, Plan, plan
from normkit.models.graphs.graph import Node
from normkit.models.graphs.reading import Reading, Stored
from normkit.models.sites import NormSite

__all__ = ["StoredLayers"]

_NO_PLACE = "it has no weight that is stored"


class StoredLayers:
    """What a reading knows of its layers; see :class:`planning.Layers`.

    Args:
        tensor: a stored tensor as torch.nn keeps it.
        sizes: the shape of a node's result, with a number for each size that may vary.
        objection: why a norm's node is not to be removed; "" where it may be.
    """

    def __init__(
        self,
        reading: Reading,
        tensor: Callable[[Stored], Any],
        sizes: Callable[[Node], tuple[int, ...] | None],
        objection: Callable[[Node], str] | None = None,
    ) -> None:
        self.reading, self.tensor, self.sizes, self.objection = reading, tensor, sizes, objection

    def plan(self) -> Plan:
        """The folds of the graph."""
        planned = plan(self.reading.graph, self.reading.sites, self)
        planned.refused.update(self.reading.hidden)
        return planned

    def shape(self, name: str) -> tuple[int, ...] | None:
        """The shape of a node's result."""
        return self.sizes(self.reading.graph[name])

    def layer(self, node: Node) -> Layer | str:
        """The weights of a layer's node."""
        call = self.reading.calls.get(node.name)
        if call is None or "weight" not in call.stored:
            return _NO_PLACE
        bias = call.stored.get("bias")
        return Layer(
            node.op,
            self.tensor(call.stored["weight"]),
            None if bias is None else self.tensor(bias),
            node.attributes.get("groups", 1),
        )

    def form(self, node: Node, site: NormSite) -> Form | str:
        """Along which axis a norm's channels are."""
        if self.objection is not None and (why := self.objection(node)):
            return why
        if site.kind not in ("layer", "rms"):
            return Form(1)
        sizes = node.attributes.get("normalized_shape")
        if sizes is None or len(sizes) != 1:
            return "it normalizes over more than the last dimension"
        return Form(-1)
