"""Where a model's norms stand: dimensions and positions of what comes into them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch
from torch import nn

from normkit.models.batches import call, example_batch
from normkit.models.conversion.catalogue import RefusedError
from normkit.models.conversion.reading import Source
from normkit.models.graphs.graph import Graph, Node
from normkit.models.graphs.module import trace
from normkit.models.proof import copied

__all__ = ["Surroundings", "recorded"]

Tensor = torch.Tensor


@contextmanager
def recorded(layers: dict[str, nn.Module], take: Any) -> Iterator[None]:
    """Within this context ``take(name, input, output)`` sees every call of the layers."""

    def hook(name: str) -> Any:
        return lambda _, args, output: take(name, args[0] if args else None, output)

    handles = [layer.register_forward_hook(hook(name)) for name, layer in layers.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class Surroundings:
    """What is known of the inputs of a model's norms.

    Args:
        model: as it is.
        example: an input of the model, or None.
        dims: spatial dimensions of norms that cannot be found out about.

    Raises:
        DataError: the model does not take the example.
    """

    def __init__(self, model: nn.Module, example: Any = None, dims: int | None = None) -> None:
        self._model, self._given = model, dims
        self._shapes = {} if example is None else _shapes(model, example)

    def dims(self, source: Source) -> int:
        """Spatial dimensions of a norm's input, 1 for (N, C) too.

        Raises:
            RefusedError: nothing tells.
        """
        known = source.origin.dims or source.site.dims
        shapes = self._shapes.get(source.site.name, ())
        if known is None and shapes:
            known = max(len(shapes[0]) - 2, 1)
        if known is None:
            known = self._given or self._from_graph(source.site.name)[0]
        if known is None:
            raise RefusedError(
                f"nothing tells whether {source.site.type_name} takes 1, 2 or 3 spatial dimensions",
                "Pass dims=, or example=, an input of the model.",
            )
        return known

    def positions(self, source: Source) -> tuple[int | None, bool]:
        """Elements a channel in one sample, None for many; and whether that is known for sure."""
        shapes = self._shapes.get(source.site.name, ())
        if shapes:
            return min(math.prod(shape[2:]) for shape in shapes), True
        dims, vector = source.origin.dims or source.site.dims, None
        if dims is None or dims == 1:
            seen, vector = self._from_graph(source.site.name)
            dims = dims or seen
        if vector is not None:
            return (1 if vector else None), True
        return (None, True) if dims in (2, 3) else (1, False)

    @cached_property
    def _graph(self) -> Graph:
        return trace(self._model)

    def _from_graph(self, name: str) -> tuple[int | None, bool | None]:
        """Spatial dimensions, and whether the input is (N, C), as the layers in front tell."""
        for node in self._graph.calls(name):
            found = self._follow(node)
            if found != (None, None):
                return found
        return None, None

    def _follow(self, node: Node) -> tuple[int | None, bool | None]:
        while True:
            sources = self._graph.sources(node.name)
            if not sources:
                return None, None
            node = sources[0]
            if node.op == "linear":
                return 1, True
            if node.op == "reshape":
                flat = node.function.lower() == "flatten"
                return (1, True) if flat and _start(node) == 1 else (None, None)
            if node.op in ("conv", "conv_transpose", "pool_average", "pool_max", "pad", "norm"):
                digit = re.search(r"([123])d$", node.function)
                # A norm's name does not tell (N, C) from (N, C, L).
                if digit and not (node.op == "norm" and digit[1] == "1"):
                    return int(digit[1]), False


def _start(node: Node) -> Any:
    if "start_dim" in node.attributes:
        return node.attributes["start_dim"]
    args = node.attributes.get("args", ())
    return args[0] if args else 0


def _shapes(model: nn.Module, example: Any) -> dict[str, list[tuple[int, ...]]]:
    """Shapes of what comes into each layer, by each of its names."""
    trial = copied(model).eval()
    found: dict[str, list[tuple[int, ...]]] = {}

    def take(name: str, value: Any, output: Any) -> None:  # noqa: ARG001 - a hook's signature
        if isinstance(value, Tensor) and value.dim() > 1:
            found.setdefault(name, []).append(tuple(value.shape))

    with recorded(dict(trial.named_modules()), take), torch.no_grad():
        call(trial, example_batch(example, trial))
    return found
