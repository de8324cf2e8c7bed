"""The two networks, each with batch norm and without."""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

from normkit.torch import BatchNorm1d, BatchNorm2d

Network = Literal["dense", "convolutional"]
Init = Literal["torch", "he"]

DESCRIPTION: dict[Network, str] = {
    "dense": "64 - 16 - 32 - softmax of 10",
    "convolutional": "conv 32 - conv 32 - pool 2 - softmax of 10",
}


def build(network: Network, batch_norm: bool, init: Init, seed: int) -> nn.Sequential:
    """A network for (N, 1, 8, 8) images; one seed gives the same weights with batch norm or not.

    Batch norm stands between a layer and its activation. It subtracts the mean, so the layer before
    it goes without the bias that the mean would cancel.
    """
    layers = _dense(batch_norm) if network == "dense" else _convolutional(batch_norm)
    generator = torch.Generator().manual_seed(seed)
    for layer in layers:
        if isinstance(layer, nn.Linear | nn.Conv2d):
            _initialize(layer, init, generator)
    return nn.Sequential(*layers)


def _dense(batch_norm: bool) -> list[nn.Module]:
    layers: list[nn.Module] = [nn.Flatten()]
    for inputs, outputs in ((64, 16), (16, 32)):
        layers.append(nn.Linear(inputs, outputs, bias=not batch_norm))
        if batch_norm:
            layers.append(BatchNorm1d(outputs))
        layers.append(nn.ReLU())
    return [*layers, nn.Linear(32, 10)]


def _convolutional(batch_norm: bool) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for inputs, outputs in ((1, 32), (32, 32)):
        layers.append(nn.Conv2d(inputs, outputs, 3, padding=1, bias=not batch_norm))
        if batch_norm:
            layers.append(BatchNorm2d(outputs))
        layers.append(nn.ReLU())
    return [*layers, nn.MaxPool2d(2), nn.Flatten(), nn.Linear(32 * 4 * 4, 10)]


def _initialize(layer: nn.Linear | nn.Conv2d, init: Init, generator: torch.Generator) -> None:
    """Weights drawn here rather than by the layer, so that a bias more or less changes no draw."""
    if init == "he":
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu", generator=generator)
    else:  # PyTorch's own default for both kinds of layer
        nn.init.kaiming_uniform_(layer.weight, a=5**0.5, generator=generator)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
