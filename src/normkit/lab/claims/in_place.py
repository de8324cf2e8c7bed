"""Batch norm and activation that keep their output only, and recover the input from it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from normkit.lab.claim import Axes, Claim, Measured, Number, Series
from normkit.lab.kit.memory import EPS, SLOPE, InPlaceNorm, Kept
from normkit.lab.kit.residuals import draw, largest, most
from normkit.lab.setup import Setup
from normkit.torch import BatchNorm2d

Tensor = torch.Tensor
SHAPE, DEPTHS = (8, 16, 16, 16), (2, 4, 8, 12)
BYTES = Axes("Kept for the backward pass", "convolutions", "MiB, weights not counted")


def _two_steps(channels: int) -> nn.Module:
    # What careful code does anyway: behind batch norm the activation would keep its input too.
    return nn.Sequential(BatchNorm2d(channels, eps=EPS), nn.LeakyReLU(SLOPE, inplace=True))


KINDS: dict[str, Callable[[int], nn.Module]] = {
    "one after the other": _two_steps,
    "in place": InPlaceNorm,
}


def build(kind: str, depth: int, generator: torch.Generator) -> nn.Sequential:
    """Convolutions, each with a norm and an activation; gamma and beta are drawn, not near zero."""
    layers: list[nn.Module] = []
    for _ in range(depth):
        layers += [nn.Conv2d(SHAPE[1], SHAPE[1], 3, padding=1, bias=False), KINDS[kind](SHAPE[1])]
    network = nn.Sequential(*layers).double()
    with torch.no_grad():
        for parameter in network.parameters():
            values = draw(generator, *parameter.shape)
            parameter.copy_(values / 12 if parameter.dim() > 1 else 1 + values.abs())
    return network


def measure(setup: Setup) -> Measured:
    kept: dict[str, list[int]] = {}
    gradients: dict[str, list[list[Tensor]]] = {}
    for kind in KINDS:
        found = [_pass(kind, depth, setup) for depth in DEPTHS]
        kept[kind], gradients[kind] = [one[0] for one in found], [one[1] for one in found]
    two_steps, in_place = kept.values()
    return Measured(
        {
            "share": in_place[-1] / two_steps[-1],
            "gradients": most(largest(a, b) for a, b in zip(*gradients.values(), strict=True)),
        },
        [
            Series(BYTES.heading, kind, [float(d) for d in DEPTHS], [n / 2**20 for n in numbers])
            for kind, numbers in kept.items()
        ],
    )


def _pass(kind: str, depth: int, setup: Setup) -> tuple[int, list[Tensor]]:
    """Bytes that are kept, and the gradients by the input and by all parameters."""
    network = build(kind, depth, setup.generator())
    x = draw(setup.generator(1), *SHAPE).requires_grad_()
    kept = Kept(network)
    with torch.autograd.graph.saved_tensors_hooks(kept.pack, lambda tensor: tensor):
        y = network(x)
    g = draw(setup.generator(2), *SHAPE)
    return kept.bytes, list(torch.autograd.grad(y, [x, *network.parameters()], g))


CLAIM = Claim(
    name="in_place",
    title="Batch norm can give its memory back",
    sentence="Batch norm and an invertible activation need to keep nothing but their output for "
    "the backward pass, which the next layer keeps anyway: the gradient is the same in about half "
    "of the memory.",
    source="Rota Bulò et al. 2018 (in-place activated batch norm)",
    paper="up to 50 % of the memory of activations saved",
    experiment=f"{DEPTHS[0]} to {DEPTHS[-1]} convolutions of {SHAPE[1]} channels, each with batch "
    f"norm and leaky ReLU (slope {SLOPE:g}), random images and weights in float64: normkit's batch "
    "norm and PyTorch's activation in place, or both in one that keeps its output only. What "
    "backward keeps is counted, each storage once, parameters not.",
    numbers=(
        Number("share", f"kept, {DEPTHS[-1]} convolutions, in place by one after the other", "%",
               paper="50 %", at_most=0.55),
        Number("gradients", "largest relative difference of a gradient", at_most=1e-10),
    ),
    charts=(BYTES,),
    measure=measure,
    caveat="The share is arithmetic, and the same for every seed. An exact zero of gamma, or a "
    "slope of zero (ReLU), cannot be undone, and in float32 a gamma near zero costs digits; "
    "normkit's own lean_memory() keeps the input of norms instead and computes their output "
    "again, which works with any activation.",
    seconds=1,
)  # fmt: skip
