"""What a recalibration changed, layer by layer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from normkit.models.measuring.drift import divergence
from normkit.plain import plain
from normkit.words import counted

__all__ = ["Shift", "Shifts", "distances"]

Tensor = torch.Tensor


@dataclass(frozen=True)
class Shift:
    """One layer's running statistics before and after. Lists are by channel.

    Args:
        name: the layer's path in the model.
        mean_before, var_before, mean_after, var_after: as stored.
        worst: how far the mean moved in the channel where it moved farthest, in standard deviations
            of the data.
        divergence: KL of the new normal distribution from the old one, of the channel where it is
            largest.
        elements: behind a channel.
        batches: behind the statistics: calls of the layer.
        domain: of a layer that keeps statistics for several.
        note: what the reader should know.
    """

    name: str
    mean_before: list[float] = field(repr=False)
    var_before: list[float] = field(repr=False)
    mean_after: list[float] = field(repr=False)
    var_after: list[float] = field(repr=False)
    worst: float
    divergence: float
    elements: int
    batches: int
    domain: int | None = None
    note: str = ""


class Shifts(list[Shift]):
    """The layers that were changed, in the order of the model; printed as a table.

    Attributes:
        passes: over the data.
        batches: in a pass, on this process.
        skipped: batches left out for NaN or infinity.
        left: layers with running statistics that were left as they were, and why.
    """

    def __init__(self) -> None:
        super().__init__()
        self.passes = self.batches = self.skipped = 0
        self.left: dict[str, str] = {}

    def __str__(self) -> str:
        rows = [("layer", "largest shift of a mean (σ)", "largest KL of a channel", "elements")]
        for shift in self:
            domain = "" if shift.domain is None else f", domain {shift.domain}"
            numbers = f"{shift.worst:.3g}", f"{shift.divergence:.3g}", f"{shift.elements:,}"
            rows.append((shift.name + domain, *numbers))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            "  ".join(
                cell.ljust(w) if i == 0 else cell.rjust(w)
                for i, (cell, w) in enumerate(zip(row, widths, strict=True))
            )
            for row in rows
        ]
        lines += [f"{shift.name}: {shift.note}" for shift in self if shift.note]
        lines += [f"{name}: left as it was: {why}" for name, why in self.left.items()]
        return "\n".join([*(lines if self else lines[1:]), self.summary()])

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as ``normkit recalibrate --json`` prints them; None for infinity."""
        return {
            "layers": plain(list(self)),
            "left": dict(self.left),
            "passes": self.passes,
            "batches": self.batches,
            "skipped": self.skipped,
        }

    def summary(self) -> str:
        """One line."""
        if not self:
            return "nothing was recalibrated"
        words = f"{counted(len(self), 'set')} of statistics from {counted(self.batches, 'batch')}"
        words += f" in {counted(self.passes, 'pass')}"
        return words + (f", {self.skipped} skipped" if self.skipped else "")


def distances(before: Sequence[Tensor], after: Sequence[Tensor], eps: float) -> tuple[float, float]:
    """``worst`` and ``divergence`` of a :class:`Shift` from mean and variance, float64, (C,)."""
    (m0, v0), (m1, v1) = before, after
    moved = (m1 - m0).abs() / (v1 + eps).sqrt()
    kl = divergence((m1 - m0) / (v0 + eps).sqrt(), (v1 + eps) / (v0 + eps))
    return _largest(moved), _largest(kl)


def _largest(values: Tensor) -> float:
    """The largest; infinite where the old statistics were no numbers."""
    return float(values.nan_to_num(nan=math.inf, posinf=math.inf).max()) if len(values) else 0.0
