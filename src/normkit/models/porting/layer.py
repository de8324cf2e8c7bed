"""One norm that was ported."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from normkit.models.porting.conventions import convention
from normkit.models.porting.parity import Parity
from normkit.models.porting.weights import NormWeights

__all__ = ["PortedLayer"]


@dataclass(frozen=True, eq=False)
class PortedLayer:
    """One norm: as it was read, as the target has it, how well they agree, and what differs."""

    before: NormWeights
    after: NormWeights
    parity: Parity
    notes: tuple[str, ...] = ()

    def row(self) -> dict[str, Any]:
        """What a table shows."""
        here, there = convention(self.before.framework), convention(self.after.framework)
        return {
            "layer": self.before.name,
            "kind": self.before.kind,
            "shape": list(self.before.shape),
            "groups": self.before.groups,
            "eps": self.before.eps,
            "momentum": [here.momentum_of(self.before.keep), there.momentum_of(self.after.keep)],
            "inference": self.parity.inference,
            "training": self.parity.training,
            "not_run": dict(self.parity.not_run),
            "notes": list(self.notes),
        }
