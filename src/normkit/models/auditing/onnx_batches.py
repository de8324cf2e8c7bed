"""Batches for ONNX models, which are often exported for one size of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from normkit.models.auditing.onnx_inputs import by_name, shape_of
from normkit.models.batches import Batch
from normkit.models.graphs.onnx_values import Values, attributes_of, tensor_of
from normkit.models.measuring.onnx_session import inputs_of

__all__ = ["batch_size", "cut", "free", "free_batch", "is_joined"]


def cut(batch: Batch, size: int) -> Iterator[Batch]:
    """The batch in parts of so many samples, the last one of what is left; ``raw`` stays whole.

    >>> [part.samples for part in cut(Batch(None, (torch.zeros(5, 3),), {}), 2)]
    [2, 2, 1]
    """
    samples = batch.samples
    for start in range(0, max(samples, 1), size):

        def part(value: Any, start: int = start) -> Any:
            whole = isinstance(value, torch.Tensor) and value.dim() and len(value) == samples
            return value[start : start + size] if whole else value

        kwargs = {name: part(value) for name, value in batch.kwargs.items()}
        yield Batch(batch.raw, tuple(map(part, batch.args)), kwargs, part(batch.labels))


def batch_size(inputs: Sequence[Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> int | None:
    """The samples that the model takes at once, where the file fixes them."""
    given = by_name(inputs, args, kwargs)
    first = set()
    for value in inputs:
        shape, held = shape_of(value), given.get(value.name)
        if shape is None or not isinstance(held, torch.Tensor) or held.dim() != len(shape):
            return None
        first |= set(shape[:1])
    size = first.pop() if len(first) == 1 else None
    return size if isinstance(size, int) and size > 0 else None


def free(inputs: Sequence[Any]) -> list[Any]:
    """The same inputs, for batches of any size."""
    found = []
    for value in inputs:
        new = type(value)()
        new.CopyFrom(value)
        if shape_of(value):
            new.type.tensor_type.shape.dim[0].Clear()
        found.append(new)
    return found


def free_batch(proto: Any) -> None:
    """Let a model, in place, take batches of any size, as far as that can be told.

    With batches of its own size it does what it did. With others it may do so or fail, or mix the
    samples up.
    """
    inputs = inputs_of(proto)
    sizes = {shape[0] for value in inputs if (shape := shape_of(value))}
    if not any(isinstance(size, int) for size in sizes):
        return
    values = Values(proto)
    for node in proto.graph.node:
        if node.op_type == "Reshape" and len(node.input) > 1 and _keeps_first(node, values, sizes):
            kept: Any = values.constant(node.input[1])
            name = f"{node.output[0]}/any/shape"
            sizes_after = torch.tensor([0, *kept.reshape(-1)[1:].tolist()])  # 0: as in the input
            proto.graph.initializer.append(tensor_of(name, sizes_after))
            node.input[1] = name
            for attribute in node.attribute:
                if attribute.name == "allowzero":
                    attribute.i = 0
    for value, freed in zip(inputs, free(inputs), strict=True):
        value.CopyFrom(freed)
    for value in proto.graph.output:
        value.type.tensor_type.ClearField("shape")
    del proto.graph.value_info[:]


def _keeps_first(node: Any, values: Values, sizes: set[int | str]) -> bool:
    """Whether a reshape keeps the first dimension, which has the size of a batch."""
    shape, before = values.constant(node.input[1]), values.shape(node.input[0])
    if shape is None or not shape.size or not before:
        return False
    if attributes_of(node).get("allowzero") and not shape.all():
        return False
    return before[0] in sizes and int(shape[0]) == before[0]


def is_joined(both: Any, each: list[Any]) -> bool:
    """Whether an array holds the others one after the other, but for rounding."""
    if not (isinstance(both, np.ndarray) and all(value.ndim for value in each)):
        return False
    joined = np.concatenate(each)
    if both.shape != joined.shape or not both.size:
        return False
    scale = float(np.abs(joined).max())
    return bool(np.allclose(both, joined, rtol=0, atol=1e-3 * scale))
