"""Test images as another camera would see them, and networks that are used on them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 - its usual name

from normkit.lab.setup import Setup
from normkit.models import recalibrate

__all__ = ["SHIFTS", "adapted", "shifted"]

Tensor = torch.Tensor
Shift = Callable[[Tensor, float, torch.Generator], Tensor]


def _contrast(x: Tensor, factor: float, _: torch.Generator) -> Tensor:
    return x * factor


def _brightness(x: Tensor, added: float, _: torch.Generator) -> Tensor:
    return x + added


def _blur(x: Tensor, times: float, _: torch.Generator) -> Tensor:
    """The mean of 3 by 3 pixels, some times over; the border repeats the outermost ones."""
    for _time in range(int(times)):
        x = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    return x


def _noise(x: Tensor, deviation: float, generator: torch.Generator) -> Tensor:
    return x + deviation * torch.randn(x.shape, generator=generator)


def _inversion(x: Tensor, strength: float, _: torch.Generator) -> Tensor:
    """From the image (0) to its negative (1)."""
    return x * (1 - 2 * strength)


#: By name; pixels have mean 0 and deviation 1 over the training images.
SHIFTS: dict[str, Shift] = {
    "contrast": _contrast,
    "brightness": _brightness,
    "blur": _blur,
    "noise": _noise,
    "inversion": _inversion,
}


def shifted(setup: Setup, images: Tensor, kind: str, strength: float) -> Tensor:
    """Images under one of :data:`SHIFTS`; of one seed always the same."""
    return SHIFTS[kind](images, strength, setup.generator(sum(map(ord, kind))))


def adapted(network: nn.Module, images: Tensor | Sequence[Tensor]) -> nn.Module:
    """A copy of a network whose norms have the statistics of these images (AdaBN).

    Each norm gets what it meets in eval mode, behind norms that have theirs already.
    """
    network = copy.deepcopy(network)
    batches = [images] if isinstance(images, Tensor) else images
    recalibrate(network, batches, layerwise=True, progress=False)
    return network
