"""Which changes of weights and data a norm does not let through: the table of Ba et al. 2016."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from normkit import torch as nkt
from normkit.lab.kit.residuals import CLEAR, EXACT, draw, kernels, residual
from normkit.torch import beyond

__all__ = ["CHANGES", "NORMS", "Row", "invariance_table"]

Tensor = torch.Tensor
SAMPLES, INPUTS, UNITS = 24, 10, 12


@dataclass(frozen=True)
class Row:
    """One field of the table.

    Args:
        norm: its name.
        transformation: what happened to the weights or to the data.
        expected: whether the output stays as it is.
        residual: the largest change of an output, relative to the largest output.
    """

    norm: str
    transformation: str
    expected: bool
    residual: float

    @property
    def holds(self) -> bool:
        """Whether the measurement says what the table does."""
        return self.residual <= EXACT if self.expected else self.residual >= CLEAR


@dataclass(frozen=True, eq=False)
class _Change:
    """The same for every norm, drawn once."""

    factor: float
    row: Tensor  # one number for each input
    one: int  # a unit, or a sample

    def only(self, size: int) -> Tensor:
        """The factor for one of so many, 1 for the others."""
        where = torch.arange(size) == self.one
        return torch.where(where, self.factor, 1.0).to(torch.float64)


#: By name: new weights (units, inputs) and data (samples, inputs).
CHANGES: dict[str, Callable[[_Change, Tensor, Tensor], tuple[Tensor, Tensor]]] = {
    "all weights times a": lambda c, w, x: (w * c.factor, x),
    "all units' weights plus the same vector": lambda c, w, x: (w + c.row, x),
    "one unit's weights times a": lambda c, w, x: (w * c.only(len(w))[:, None], x),
    "all data times a": lambda c, w, x: (w, x * c.factor),
    "all data plus the same vector": lambda c, w, x: (w, x + c.row),
    "one sample times a": lambda c, w, x: (w, x * c.only(len(x))[:, None]),
}


def _weight_normed(linear: nn.Linear) -> nn.Module:
    """With one length for all: changed weights change v alone, not g."""
    layer = beyond.weight_norm(linear)
    lengths: Any = layer.parametrizations
    nn.init.ones_(lengths.weight.original0)
    return layer


def _norm_behind(layer: Callable[..., nn.Module]) -> Callable[[nn.Linear], nn.Module]:
    return lambda linear: nn.Sequential(linear, layer(UNITS, eps=0.0).double())


#: By name: a linear layer with its norm, and which of the changes leave the output as it is.
NORMS: dict[str, tuple[Callable[[nn.Linear], nn.Module], tuple[bool, ...]]] = {
    "batch norm": (_norm_behind(nkt.BatchNorm1d), (True, False, True, True, True, False)),
    "weight norm": (_weight_normed, (True, False, True, False, False, False)),
    "layer norm": (_norm_behind(nkt.LayerNorm), (True, True, False, True, False, True)),
    "RMS norm": (_norm_behind(nkt.RMSNorm), (True, False, False, True, False, True)),
}


@kernels()
def invariance_table(seed: int = 0) -> list[Row]:
    """Every norm against every change, on random weights and data of no particular structure.

    In float64, ε = 0, training mode, weights (units, inputs) without bias. For RMS norm the
    table is Zhang & Sennrich's (2019). That a change shows is true of data in general: where all
    samples have the same sum, for one, batch norm does not see a constant added to all weights.

    >>> table = invariance_table(seed=1)
    >>> len(table), all(row.holds for row in table)
    (24, True)
    """
    generator = torch.Generator().manual_seed(seed)
    x, w = 0.5 + draw(generator, SAMPLES, INPUTS), draw(generator, UNITS, INPUTS)
    factor = 2 + float(torch.rand((), generator=generator))
    one = int(torch.randint(min(SAMPLES, UNITS), (), generator=generator))
    change = _Change(factor, draw(generator, INPUTS), one)
    rows = []
    for norm, (normed, ticks) in NORMS.items():
        before = _output(normed, w, x)
        for (name, apply), expected in zip(CHANGES.items(), ticks, strict=True):
            after = _output(normed, *apply(change, w, x))
            rows.append(Row(norm, name, expected, residual(after, before)))
    return rows


def _output(normed: Callable[[nn.Linear], nn.Module], weights: Tensor, data: Tensor) -> Tensor:
    linear = nn.Linear(INPUTS, UNITS, bias=False, dtype=torch.float64)
    with torch.no_grad():
        linear.weight.copy_(weights)
        output: Tensor = normed(linear)(data)
    return output
