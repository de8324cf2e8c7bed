"""A model's data as batches, and one call of the model on one of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.utils import _pytree as pytree

from normkit.errors import DataError, ModelError
from normkit.torch.comparing import arguments
from normkit.words import first_line

__all__ = ["Batch", "Forward", "batches_of", "call", "count_of", "example_batch", "few", "fitting"]

Tensor = torch.Tensor
#: Calls the model on what the user's data gave: ``forward(model, batch)``.
Forward = Callable[[nn.Module, Any], Any]

SIZE = 64  # of batches that are cut from one tensor
_LABELS = ("labels", "label", "targets", "target", "y")


@dataclass(frozen=True, eq=False)
class Batch:
    """What one step of the data gave.

    Args:
        raw: as it came.
        args, kwargs: what the model is called with.
        labels: whole numbers, one a sample, where the data has such; else None.
    """

    raw: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    labels: Tensor | None = None

    @property
    def samples(self) -> int:
        """The first argument's first dimension."""
        for value in (*self.args, *self.kwargs.values()):
            if isinstance(value, Tensor) and value.dim():
                return len(value)
        return 0


def batches_of(
    data: Any,
    *,
    device: Any = None,
    like: nn.Module | None = None,
    opaque: bool = False,
    required: bool = True,
) -> Iterator[Batch]:
    """Batches from whatever a user has.

    A tensor or NumPy array is cut along its first dimension, and so is a tuple of inputs and what
    belongs to each of them (labels). Anything else that can be iterated gives batches: a tensor
    (the input), a tuple or list (input, labels, ...), a dictionary (keyword arguments; ``labels``
    and the like stay out of them). A function without arguments is called for one of these.

    Args:
        device: where the tensors go; where they are by default.
        like: the model that takes them: floating inputs come in its dtype, all on its device.
        opaque: a batch may be anything, as a ``forward`` of the user's own takes it.
        required: there must be one.

    Raises:
        DataError: there is no batch, or one that holds no tensor.
    """
    found = False
    for raw in _raw(data):
        batch = _batch(raw, device, opaque)
        found = True
        yield batch if like is None else fitting(batch, like)
    if required and not found:
        raise DataError(
            "The data gave no batch",
            received=f"an empty {type(data).__name__}",
            expected="at least one batch",
            remedy="An iterator that has been used up gives nothing: pass a DataLoader, a list, or "
            "a function that makes a new iterator.",
        )


def _raw(data: Any) -> Iterable[Any]:
    if callable(data) and not isinstance(data, (Tensor, Iterable)):
        data = data()
    if hasattr(data, "__array__") and not isinstance(data, Tensor):
        data = torch.as_tensor(data)
    if isinstance(data, Tensor):
        return data.split(SIZE) if data.dim() else (data,)
    if isinstance(data, Mapping):
        return (data,)
    columns = _columns(data)
    if columns is not None:
        return list(zip(*(v.split(SIZE) for v in columns), strict=True))
    if isinstance(data, Iterable) and not isinstance(data, (str, bytes)):
        return data
    if isinstance(data, torch.utils.data.Dataset):
        return torch.utils.data.DataLoader(data, batch_size=SIZE)
    raise DataError(
        "That is no data",
        received=type(data).__name__,
        expected="a tensor, a DataLoader, or something that gives batches when iterated",
        remedy="For instance torch.utils.data.DataLoader(dataset, batch_size=64).",
    )


def count_of(data: Any) -> int | None:
    """How many batches there will be; None where data does not know, or is no list of batches."""
    if isinstance(data, (Tensor, np.ndarray, Mapping, tuple, torch.utils.data.Dataset)):
        return None
    try:
        return len(data) or None
    except TypeError:
        return None


def example_batch(example: Any, model: nn.Module) -> Batch:
    """A user's example (a tensor, a tuple of arguments, a dictionary of them) as the model's."""
    args, kwargs = arguments(example)
    return fitting(Batch(example, args, kwargs), model)


def fitting(batch: Batch, model: nn.Module) -> Batch:
    """A batch with floating inputs in the model's dtype, and all on its device.

    Data is mostly float32, whatever the model; what it was measured with is kept in ``raw``.
    """
    tensors = (*model.parameters(), *model.buffers())
    first = next((t for t in tensors if t.is_floating_point() and not is_lazy(t)), None)
    if first is None:
        return batch

    def fit(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return value.to(first.device, first.dtype if value.is_floating_point() else value.dtype)

    kwargs = {name: fit(value) for name, value in batch.kwargs.items()}
    return replace(batch, args=tuple(map(fit, batch.args)), kwargs=kwargs)


def _columns(data: Any) -> tuple[Tensor, Tensor] | None:
    """Inputs and what belongs to each of them; None for anything else, such as batches in a tuple.

    Raises:
        DataError: it could be either.
    """
    if not (isinstance(data, tuple) and len(data) == 2):
        return None
    x, y = (_tensor(value, None) for value in data)
    if not (isinstance(x, Tensor) and isinstance(y, Tensor) and x.dim() and y.dim()):
        return None
    if len(x) != len(y):
        return None
    if x.shape == y.shape:
        raise DataError(
            "Two tensors may be two batches, or inputs and what belongs to them",
            received=f"a tuple of two tensors of shape {tuple(x.shape)}",
            expected="a list of batches, or a list of (input, label) pairs",
            remedy="[x, y] for two batches, [(x, y)] for one of inputs and targets.",
        )
    return x, y


def _batch(raw: Any, device: Any, opaque: bool = False) -> Batch:
    labels: Any = None
    if isinstance(raw, Mapping):
        kwargs = {str(k): _tensor(v, device) for k, v in raw.items()}
        for name in _LABELS:
            labels = kwargs.pop(name, labels)
        args: tuple[Any, ...] = ()
    elif isinstance(raw, (tuple, list)) and raw:
        args, kwargs = (_tensor(raw[0], device),), {}
        labels = _tensor(raw[1], device) if len(raw) > 1 else None
    else:
        args, kwargs = (_tensor(raw, device),), {}
    if not opaque and not any(isinstance(v, Tensor) for v in (*args, *kwargs.values())):
        raise DataError(
            "A batch holds no tensor",
            received=_shown(raw),
            expected="a tensor, (input, labels), or a dictionary of the model's arguments",
            remedy="Or pass forward=, a function (model, batch) that calls the model.",
        )
    batch = Batch(raw, args, kwargs)
    if isinstance(labels, Tensor) and not labels.is_floating_point() and labels.dim() == 1:
        batch = Batch(raw, args, kwargs, labels) if len(labels) == batch.samples else batch
    return batch


def _tensor(value: Any, device: Any) -> Any:
    if hasattr(value, "__array__") and not isinstance(value, Tensor):
        value = torch.as_tensor(value)
    return value.to(device) if isinstance(value, Tensor) and device is not None else value


def _shown(raw: Any) -> str:
    if isinstance(raw, Mapping):
        return f"a dictionary of {', '.join(map(repr, raw)) or 'nothing'}"
    return f"{type(raw).__name__}: {raw!r:.60}"


def call(model: nn.Module, batch: Batch, forward: Forward | None = None) -> Any:
    """The model's result on a batch.

    Raises:
        DataError: the model does not take it; the cause is chained.
    """
    if forward is not None:
        return forward(model, batch.raw)
    try:
        return model(*batch.args, **batch.kwargs)
    except (DataError, ModelError):  # says more than could be said here
        raise
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        shapes = [tuple(v.shape) for v in (*batch.args, *batch.kwargs.values())
                  if isinstance(v, Tensor)]  # fmt: skip
        said = first_line(error)
        raise DataError(
            "The model does not take this batch",
            received=f"shapes {', '.join(map(str, shapes))}",
            expected="the model's input",
            remedy=f"{type(model).__name__} says: {said}. "
            "forward=, a function (model, batch), can call it in another way.",
        ) from error


def few(values: Any, most: int = 8) -> Any:
    """The first samples of everything that has as many as the first tensor; the same where few.

    >>> x, y = few((torch.zeros(64, 3), torch.zeros(64)))
    >>> len(x), len(y), few(3)
    (8, 8, 3)
    """
    sizes = (len(v) for v in pytree.tree_leaves(values) if isinstance(v, Tensor) and v.dim())
    samples = next(sizes, 0)
    if samples <= most:
        return values

    def cut(value: Any) -> Any:
        whole = isinstance(value, Tensor) and value.dim() and len(value) == samples
        return value[:most] if whole else value

    return pytree.tree_map(cut, values)
