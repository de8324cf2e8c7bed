"""Two models on one input: the input as the arguments of a call, and how far results lie apart."""

from __future__ import annotations

from typing import Any

import torch

__all__ = ["arguments", "relative_difference"]

Tensor = torch.Tensor


def arguments(example: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A user's example as arguments: a tensor, a tuple of them, or a dictionary by keyword.

    >>> arguments({"x": 1}), arguments((1, 2)), arguments(1)
    (((), {'x': 1}), ((1, 2), {}), ((1,), {}))
    """
    if isinstance(example, dict):
        return (), example
    return (example, {}) if isinstance(example, tuple) else ((example,), {})


def relative_difference(got: Tensor | None, want: Tensor) -> float:
    """The largest difference in units of the largest element wanted.

    Infinite where shapes differ, or where NaN and infinity are not at the same places.
    """
    if got is None or got.shape != want.shape:
        return float("inf")
    if not want.numel():
        return 0.0
    got, want = got.detach().cpu().double(), want.detach().cpu().double()
    odd = ~want.isfinite()
    if not torch.equal(got[odd].nan_to_num(nan=0.5), want[odd].nan_to_num(nan=0.5)):
        return float("inf")
    got, want = got.masked_fill(odd, 0.0), want.masked_fill(odd, 0.0)
    return float((got - want).abs().max() / want.abs().max().clamp(min=1e-6))
