"""What is asked of a network in the midst of its training: gradients, and the loss around it.

Every probe looks at the loss of one batch in the network's present mode, and leaves weights,
running statistics and ``.grad`` as they were, bit by bit.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import linear_regression

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 - its usual name

from normkit.lab.kit.residuals import least, most
from normkit.lab.kit.training import loss_of

__all__ = [
    "Line",
    "Shift",
    "along_gradient",
    "covariate_shift",
    "gradient",
    "loss_slice",
    "moved",
    "parameters_by_layer",
    "power",
    "ratio",
]

Tensor = torch.Tensor
_WITH_WEIGHTS = (nn.Linear, nn.Conv2d)


def parameters_by_layer(network: nn.Module) -> list[list[nn.Parameter]]:
    """What each Linear or Conv2d learns, its weight first, and what the norms up to the next do.

    From the input to the output, as far as the network's modules stand in the order of their calls.
    """
    layers: list[list[nn.Parameter]] = []
    for module in network.modules():
        own = list(module.parameters(recurse=False))
        if isinstance(module, _WITH_WEIGHTS) or not layers:
            layers += [own] if own else []
        else:
            layers[-1] += own
    return layers


def gradient(network: nn.Module, x: Tensor, y: Tensor) -> tuple[float, Tensor]:
    """The loss, and its gradient for all parameters that learn, as one vector."""
    with _kept(network):
        loss = F.cross_entropy(network(x), y)
        parts = torch.autograd.grad(loss, _learned(network))
    return float(loss.detach()), torch.cat([part.flatten() for part in parts])


@contextmanager
def moved(network: nn.Module, by: Tensor) -> Iterator[None]:
    """The network with a vector, long as :func:`gradient`'s, added to its parameters."""
    parameters = _learned(network)
    with _kept(network):
        with torch.no_grad():
            steps = by.split([parameter.numel() for parameter in parameters])
            for parameter, step in zip(parameters, steps, strict=True):
                parameter.add_(step.view_as(parameter))
        yield


@dataclass(frozen=True)
class Line:
    """Loss and gradient at some points against the gradient.

    Args:
        size: of the gradient where the line begins.
        lengths: of the steps, in multiples of the gradient: learning rates.
        losses: behind each step.
        changes: of the gradient behind each step: the distance from the first one.
    """

    size: float
    lengths: tuple[float, ...]
    losses: tuple[float, ...]
    changes: tuple[float, ...]

    @property
    def loss_range(self) -> float:
        """Between the largest of the losses and the smallest."""
        return most(self.losses) - least(self.losses)

    @property
    def relative_change(self) -> float:
        """The largest change of the gradient, in multiples of the gradient."""
        return ratio(most(self.changes), self.size)

    @property
    def smoothness(self) -> float:
        """The largest change of the gradient by distance: "effective beta-smoothness"."""
        steps = zip(self.changes, self.lengths, strict=True)
        return most(ratio(change, length * self.size) for change, length in steps)


def along_gradient(network: nn.Module, x: Tensor, y: Tensor, lengths: Sequence[float]) -> Line:
    """Go down the gradient by each of these learning rates, always from the present weights."""
    _, start = gradient(network, x, y)
    losses, changes = [], []
    for length in lengths:
        with moved(network, -length * start):
            loss, there = gradient(network, x, y)
        losses.append(loss)
        changes.append(float((there - start).norm()))
    return Line(float(start.norm()), tuple(lengths), tuple(losses), tuple(changes))


@dataclass(frozen=True)
class Shift:
    """How an update of the layers in front changes the gradient of a layer's weight.

    Args:
        difference: the distance of the two gradients.
        size: of the gradient without the update.
        cosine: of the angle between them.
    """

    difference: float
    size: float
    cosine: float

    @property
    def relative(self) -> float:
        """The difference by the size of the gradient."""
        return ratio(self.difference, self.size)


def covariate_shift(network: nn.Module, x: Tensor, y: Tensor, rate: float) -> list[Shift]:
    """Internal covariate shift after Santurkar et al. 2018, definition 2.1, of all layers but one.

    The gradient of a layer's weight on a batch, before and after all layers in front of it have
    taken their step of gradient descent on that batch. Nothing is in front of the first layer.
    """
    layers = parameters_by_layer(network)
    shifts = []
    with _kept(network):
        steps = iter(_gradients(network, x, y, [one for layer in layers for one in layer]))
        updates = [[next(steps) for _ in layer] for layer in layers]
        for number, layer in enumerate(layers[:-1]):
            with torch.no_grad():
                for parameter, step in zip(layer, updates[number], strict=True):
                    parameter.sub_(rate * step)
            (after,) = _gradients(network, x, y, layers[number + 1][:1])
            shifts.append(_shift(updates[number + 1][0], after))
    return shifts


def loss_slice(
    network: nn.Module, x: Tensor, y: Tensor, across: Tensor, up: Tensor, places: Sequence[float]
) -> list[list[float]]:
    """The loss on a square grid in the plane of two directions: rows go up, columns go across."""
    rows = []
    for high in places:
        row = []
        for far in places:
            with moved(network, far * across + high * up):
                row.append(loss_of(network, x, y))
        rows.append(row)
    return rows


def ratio(this: float, that: float) -> float:
    """This by that, also where that is 0: infinite, or NaN where both are."""
    if that:
        return this / that
    return math.copysign(math.inf, this) if this else math.nan


def power(x: Sequence[float], y: Sequence[float]) -> float:
    """The power of x that y follows: the slope of the line through the logarithms; NaN without.

    >>> round(power([1, 2, 4], [3.0, 0.75, 0.1875]), 6)
    -2.0
    """
    if min(*x, *y) <= 0:
        return math.nan
    return linear_regression([math.log(v) for v in x], [math.log(v) for v in y]).slope


def _learned(network: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in network.parameters() if parameter.requires_grad]


def _gradients(
    network: nn.Module, x: Tensor, y: Tensor, parameters: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    return torch.autograd.grad(F.cross_entropy(network(x), y), parameters)


def _shift(before: Tensor, after: Tensor) -> Shift:
    size, other = float(before.norm()), float(after.norm())
    product = float((before * after).sum())
    return Shift(float((after - before).norm()), size, ratio(product, size * other))


@contextmanager
def _kept(network: nn.Module) -> Iterator[None]:
    """Values as they were, where adding and subtracting a step would leave a rounding error."""
    tensors = [*network.parameters(), *network.buffers()]
    values = [tensor.detach().clone() for tensor in tensors]
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, value in zip(tensors, values, strict=True):
                tensor.copy_(value)
