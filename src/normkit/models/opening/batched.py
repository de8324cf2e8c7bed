"""Samples that lie in a file or a folder, as batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from normkit.errors import OptionError

__all__ = ["Batches"]

Tensor = torch.Tensor


class Batches:
    """Batches that can be gone through again and again, each made when it is asked for.

    Args:
        take: gives the samples from one index to another: the input as a float or integer tensor.
        count: of the samples.
        size: of a batch.
        labels: one for each sample, or None.
        classes: the labels' names, where they have some.
        words: what there is, for people.
        mean, std: a number, or one for each channel: every input becomes (x − mean) / std.
    """

    def __init__(
        self,
        take: Callable[[int, int], Tensor],
        count: int,
        size: int,
        *,
        labels: Tensor | None = None,
        classes: Sequence[str] = (),
        words: str = "",
        mean: Any = None,
        std: Any = None,
    ) -> None:
        self.take, self.count, self.size = take, count, size
        self.labels, self.classes = labels, tuple(classes)
        self.words, self.mean, self.std = words, mean, std

    def __len__(self) -> int:
        return -(-self.count // self.size)

    def __iter__(self) -> Iterator[Any]:
        for start in range(0, self.count, self.size):
            stop = min(start + self.size, self.count)
            batch = self._standardized(self.take(start, stop))
            yield batch if self.labels is None else (batch, self.labels[start:stop])

    def _standardized(self, x: Tensor) -> Tensor:
        if self.mean is None and self.std is None:
            return x
        if not x.is_floating_point():
            raise OptionError(
                "Whole numbers are not standardized",
                received=f"mean or std for inputs of {x.dtype}",
                expected="inputs that are floating-point numbers, or bytes",
                remedy="Leave mean and std away, or save the array as float32.",
            )
        for name, value, neutral in (("mean", self.mean, 0.0), ("std", self.std, 1.0)):
            number = torch.as_tensor(neutral if value is None else value, dtype=x.dtype)
            channels = x.shape[1] if x.dim() > 1 else 1
            if number.dim() > 1 or number.numel() not in (1, channels):
                raise OptionError(
                    f"{name} does not fit the data",
                    received=f"{number.numel()} numbers for {channels} channels",
                    expected="one number, or one for each channel (the second dimension)",
                    remedy=f"Inputs are {tuple(x.shape)}: is the second dimension the channels?",
                )
            number = number.reshape(-1, *(1,) * (x.dim() - 2)) if x.dim() > 1 else number
            x = x - number if name == "mean" else x / number
        return x
