"""Two models compared on an input: in float64, where only rounding may tell them apart."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from normkit.errors import ModelError
from normkit.models.batches import Batch, Forward, call, few
from normkit.torch.comparing import relative_difference
from normkit.words import first_line

__all__ = ["Difference", "copied", "difference"]

Tensor = torch.Tensor
#: Relative difference that rounding explains in a network, by the dtype in which it computed.
_TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.03}


@dataclass(frozen=True)
class Difference:
    """How far two models' outputs lie apart.

    Args:
        worst: the largest difference, relative to the largest element of the same output.
        dtype: in which both computed.
    """

    worst: float
    dtype: torch.dtype

    @property
    def is_rounding(self) -> bool:
        return self.worst <= _TOLERANCE[self.dtype]

    def __str__(self) -> str:
        return f"{self.worst:.1e} in {str(self.dtype).removeprefix('torch.')}"


def copied(model: nn.Module) -> Any:
    """A deep copy.

    Raises:
        ModelError: the model cannot be copied.
    """
    try:
        return copy.deepcopy(model)
    except Exception as error:  # a process group, a lock, a handle of the user's
        said = first_line(error)
        raise ModelError(
            "The model cannot be copied",
            received=f"{type(model).__name__}: {said}",
            expected="a model that copy.deepcopy takes, to try the change on",
            remedy="Remove what it keeps from a forward with gradients, or of the system (locks, "
            "process groups, handles). convert(inplace=True) without an example needs no copy.",
        ) from error


def difference(
    before: nn.Module,
    after: nn.Module,
    batch: Batch,
    forward: Forward | None = None,
    *,
    wide: bool = True,
) -> Difference | None:
    """How far two models in eval mode lie apart on some samples of a batch; both are copied.

    Args:
        forward: calls the model, as of :func:`normkit.models.batches.call`.
        wide: in float64, and None where the first model cannot; else in the dtype that it has.

    Raises:
        DataError: the first model does not take the batch.
        ModelError: a model cannot be copied, or the second does not run.
    """
    dtype = torch.float64 if wide else _dtype(before)
    cut = replace(batch, raw=few(batch.raw), args=few(batch.args), kwargs=few(batch.kwargs))
    try:
        wanted, batch = _outputs(before, cut, forward, dtype if wide else None), cut
    except Exception:  # it may ask for one dtype, or for a batch as it is
        try:
            wanted = _outputs(before, batch, forward, dtype if wide else None)
        except Exception:
            if wide:
                return None
            raise
    try:
        found = _outputs(after, batch, forward, dtype if wide else None)
    except Exception as error:
        said = first_line(error)
        raise ModelError(
            "The changed model does not run; nothing was changed",
            received=f"{type(error).__name__}: {said}",
            expected="the output that it gave before",
            remedy="Leave out the layers whose attributes or types the model asks for.",
        ) from error
    return Difference(_worst(found, wanted), dtype)


def _worst(found: list[Tensor], wanted: list[Tensor]) -> float:
    if len(found) != len(wanted):
        return float("inf")
    return max(
        (relative_difference(*pair) for pair in zip(found, wanted, strict=True)), default=0.0
    )


def _dtype(model: nn.Module) -> torch.dtype:
    """The narrowest of the parameters' dtypes."""
    dtypes = [p.dtype for p in model.parameters() if p.dtype in _TOLERANCE]
    return max(dtypes, key=lambda d: torch.finfo(d).eps, default=torch.float32)


def _outputs(
    model: nn.Module, batch: Batch, forward: Forward | None, dtype: torch.dtype | None
) -> list[Tensor]:
    trial = copied(model).eval()
    if dtype is not None:
        trial.to(dtype)
        raw, args, kwargs = pytree.tree_map(
            lambda v: v.to(dtype) if isinstance(v, Tensor) and v.is_floating_point() else v,
            (batch.raw, batch.args, batch.kwargs),
        )
        batch = replace(batch, raw=raw, args=args, kwargs=kwargs)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        leaves = pytree.tree_leaves(call(trial, batch, forward))
    return [leaf.detach() for leaf in leaves if isinstance(leaf, Tensor)]
