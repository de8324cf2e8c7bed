"""ONNX models run by onnxruntime for comparison, with some of their inner values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from normkit.extras import needed
from normkit.models.measuring.onnx_session import dtype_of, inputs_of, session_of

__all__ = ["Inputs", "inputs_for", "named", "run"]

Arrays = dict[str, np.ndarray[Any, Any]]


class Inputs:
    """What a model is given.

    Args:
        arrays: by the inputs' names.
        words: what they are, for the report.
    """

    def __init__(self, arrays: Arrays, words: str) -> None:
        self.arrays, self.words = arrays, words


def run(proto: Any, inputs: Arrays, watched: Sequence[str] = ()) -> dict[str, torch.Tensor]:
    """The model's results that are tensors of numbers, and inner values, not optimized."""
    listening = type(proto)()
    listening.CopyFrom(proto)
    known = {output.name for output in proto.graph.output}
    for name in watched:
        if name not in known:
            listening.graph.output.append(needed("onnx").ValueInfoProto(name=name))
    with session_of(listening, optimized=False) as session:
        names = [output.name for output in session.get_outputs()]
        found = zip(names, session.run(names, inputs), strict=True)
    return {name: torch.from_numpy(a) for name, a in found if _is_numbers(a)}


def _is_numbers(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.dtype.kind in "biuf"


def named(proto: Any, example: Any) -> Arrays:
    """An example by the inputs' names.

    Raises:
        ValueError: there are more or fewer, or others; the text says so.
    """
    names = [i.name for i in inputs_of(proto)]
    if isinstance(example, Mapping):
        found = {str(name): value for name, value in example.items()}
    else:
        values = example if isinstance(example, (tuple, list)) else (example,)
        if len(values) != len(names):
            raise ValueError(
                f"it takes {len(names)} inputs ({', '.join(names)}), not {len(values)}"
            )
        found = dict(zip(names, values, strict=True))
    if set(found) != set(names):
        raise ValueError(f"its inputs are {', '.join(names)}, not {', '.join(found)}")
    return {i.name: _as_array(found[i.name], i) for i in inputs_of(proto)}


def _as_array(value: Any, given_to: Any) -> np.ndarray[Any, Any]:
    """An array, in the input's own precision where both are real numbers."""
    array = np.asarray(value.detach().cpu().numpy() if hasattr(value, "detach") else value)
    dtype = dtype_of(given_to)
    return array.astype(dtype) if array.dtype.kind == "f" and dtype.kind == "f" else array


# --- inputs to try --------------------------------------------------------------------------------

_SIZES = (16, 64, 224)


def inputs_for(proto: Any) -> Iterator[Inputs]:
    """Random inputs of the shapes that the model takes; those it leaves open are tried in turn."""
    generator = np.random.default_rng(0)
    for size in _SIZES:
        arrays = {i.name: _drawn(i, size, generator) for i in inputs_of(proto)}
        shapes = ", ".join(str(a.shape) for a in arrays.values())
        yield Inputs(arrays, f"random input of shape {shapes}")


def _drawn(value: Any, size: int, generator: np.random.Generator) -> np.ndarray[Any, Any]:
    """Sizes that may vary are 2 in the first place, ``size`` elsewhere; whole numbers 0 or 1."""
    shape = [
        d.dim_value if d.HasField("dim_value") else 2 if place == 0 else size
        for place, d in enumerate(value.type.tensor_type.shape.dim)
    ]
    dtype = dtype_of(value)
    if dtype.kind in "biu":
        return generator.integers(0, 2, shape).astype(dtype)
    return generator.standard_normal(shape).astype(dtype)
