"""What an ONNX model is given, checked before it runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from normkit.errors import DataError
from normkit.models.measuring.onnx_session import dtype_of

__all__ = ["Arrays", "arrays_for", "by_name", "shape_of"]

Arrays = dict[str, np.ndarray[Any, Any]]


def arrays_for(inputs: Sequence[Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Arrays:
    """By the inputs' names what a batch holds, in the dtypes that the model takes.

    Raises:
        DataError: there are other inputs than the model has, or one is of another dtype or shape.
    """
    given = by_name(inputs, args, kwargs)
    named = {name for name in kwargs if name in given}
    if set(given) != {value.name for value in inputs} or len(args) + len(named) != len(inputs):
        said = [f"{len(args)} without a name"] if args else []
        said += map(repr, kwargs)
        raise DataError(
            "The model has other inputs",
            received=", ".join(said),
            expected=", ".join(map(_words, inputs)),
            remedy="Give batches as dictionaries by these names, with 'labels' beside them.",
        )
    return {value.name: _as_array(given[value.name], value) for value in inputs}


def by_name(
    inputs: Sequence[Any], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    """All that is given; a domain is for the audit, unless the model takes it."""
    names = [value.name for value in inputs]
    return dict(zip(names, args, strict=False)) | {
        name: value for name, value in kwargs.items() if name in names or name != "domain"
    }


def _as_array(value: Any, taker: Any) -> np.ndarray[Any, Any]:
    """Real numbers in the input's own precision; whole ones where all of its fit."""
    if isinstance(value, torch.Tensor):
        tensor = value.detach().cpu()
        array = (tensor.float() if tensor.dtype is torch.bfloat16 else tensor).numpy()
    else:
        array = np.asarray(value)
    dtype, shape = dtype_of(taker), shape_of(taker)
    reals = array.dtype.kind == "f" and dtype.kind in "fV"
    whole = array.dtype.kind in "iu" and dtype.kind in "iu" and np.can_cast(array.dtype, dtype)
    if not (reals or whole or array.dtype == dtype):
        raise _misfit(taker, array, f"Convert it as the model's users do, to {dtype}.")
    if shape is not None and not _fits(array.shape, shape):
        raise _misfit(taker, array, _shape_remedy(array.shape, shape))
    return np.ascontiguousarray(array, dtype).reshape(array.shape)


def _misfit(taker: Any, array: np.ndarray[Any, Any], remedy: str) -> DataError:
    return DataError(
        "The model does not take this batch",
        received=f"{taker.name}: {array.dtype} {_sizes(array.shape)}",
        expected=_words(taker),
        remedy=remedy,
    )


def _shape_remedy(given: tuple[int, ...], shape: tuple[int | str, ...]) -> str:
    if _fits(given[1:], shape[1:]):
        return (
            f"It was exported for batches of {shape[0]}: give samples that make whole batches, or "
            "export it with a batch dimension that is dynamic."
        )
    return "Give inputs of this shape, or export the model with dimensions that are dynamic."


def _fits(given: Sequence[int], shape: Sequence[int | str]) -> bool:
    same = len(given) == len(shape)
    return same and all(isinstance(n, str) or n == m for n, m in zip(shape, given, strict=True))


def _words(value: Any) -> str:
    """An input for people: ``images: float32 (N, 3, 32, 32)``."""
    shape = shape_of(value)
    return f"{value.name}: {dtype_of(value)}{'' if shape is None else ' ' + _sizes(shape)}"


def shape_of(value: Any) -> tuple[int | str, ...] | None:
    """An input's sizes, those that may vary by a name; None where nothing is said."""
    kind = value.type.tensor_type
    if not kind.HasField("shape"):
        return None
    return tuple(d.dim_value if d.HasField("dim_value") else d.dim_param or "any"
                 for d in kind.shape.dim)  # fmt: skip


def _sizes(shape: Sequence[int | str]) -> str:
    return f"({', '.join(map(str, shape))}{',' if len(shape) == 1 else ''})"
