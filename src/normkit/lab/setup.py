"""What an experiment is given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

from normkit.lab.data import Data

__all__ = ["Setup"]

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Setup:
    """Data and seed, and whether the reader is in a hurry.

    Args:
        data: images and their classes.
        seed: of everything that is drawn.
        quick: a first look: fewer steps, fewer settings.
    """

    data: Data
    seed: int
    quick: bool = False

    def pick(self, full: T, quick: T) -> T:
        """One of two settings."""
        return quick if self.quick else full

    def some(self, values: Sequence[T]) -> Sequence[T]:
        """All values, or the first, the middle and the last of them for a quick look."""
        if not self.quick or len(values) <= 3:
            return values
        return [values[0], values[len(values) // 2], values[-1]]

    def generator(self, salt: int = 0) -> torch.Generator:
        """Random numbers of this seed; another ``salt`` gives others."""
        return torch.Generator().manual_seed(1_000_003 * salt + self.seed)
