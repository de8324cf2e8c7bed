"""The networks of the experiments: values that build themselves, alike but for what is compared."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import nn
from torch.nn.utils import skip_init

from normkit import torch as nkt
from normkit.lab.data import Data
from normkit.torch import beyond

__all__ = ["Conv", "Dense", "Flat", "norm_layer", "start"]

Norm = str | Callable[[int], nn.Module]
#: Between weights and activation, or behind the activation.
Placement = Literal["before", "after"]

_ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "leaky": nn.LeakyReLU,
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "linear": nn.Identity,
}


def norm_layer(kind: Norm, features: int, *, dims: int = 0, **options: Any) -> nn.Module:
    """A norm by its name: for (N, C) with ``dims=0``, for feature maps with ``dims=2``.

    Args:
        kind: none, batch, ghost, renorm, group, layer, instance, rms, frn or tanh (dynamic); or a
            function of the number of features.
        options: of the layer; ``groups`` for group norm, ``ghost`` samples for ghost batch norm.
    """
    if callable(kind):
        return kind(features)
    batch = nkt.BatchNorm2d if dims else nkt.BatchNorm1d
    if kind == "none":
        return nn.Identity()
    if kind == "batch":
        return batch(features, **options)
    if kind == "ghost":
        return batch(features, **{"ghost": 16, **options})
    if kind == "renorm":
        return batch(features, **{"renorm": True, **options})
    if kind == "group":
        return nkt.GroupNorm(options.pop("groups", min(10, features)), features, **options)
    if kind == "layer":  # of a feature map: over channels and positions
        layer = nkt.GroupNorm(1, features, **options) if dims else None
        return layer or nkt.LayerNorm(features, **options)
    if kind == "instance" and dims:
        return nkt.InstanceNorm2d(features, **{"affine": True, **options})
    if kind == "rms" and not dims:
        return nkt.RMSNorm(features, **options)
    if kind == "frn" and dims:
        return beyond.FilterResponseNorm(features, **options)
    if kind == "tanh":
        return beyond.DynamicTanh(features, **{"axis": 1, **options})
    raise ValueError(f"no norm called {kind!r} for {'feature maps' if dims else 'vectors'}")


def start(
    layer: nn.Linear | nn.Conv2d, std: float | str, generator: torch.Generator
) -> nn.Linear | nn.Conv2d:
    """Weights drawn with a deviation, or ``"he"``'s, or ``"torch"``'s default; biases zero.

    Drawn here rather than by the layer (hence ``skip_init``), so that a bias more or less changes
    no draw.
    """
    fan = layer.weight[0].numel()
    with torch.no_grad():
        if std == "torch":
            bound = 1 / math.sqrt(fan)
            layer.weight.uniform_(-bound, bound, generator=generator)
        else:
            deviation = math.sqrt(2 / fan) if std == "he" else float(std)
            layer.weight.normal_(0.0, deviation, generator=generator)
        if layer.bias is not None:
            layer.bias.zero_()
    return layer


class Flat(nn.Flatten):
    """Images as vectors."""


@dataclass(frozen=True)
class Dense:
    """A perceptron: for each width Linear, norm and activation, then Linear to the classes.

    Args:
        widths: of the hidden layers.
        norm: see :func:`norm_layer`; ``norm_options`` go to it.
        placement: of the norm: before the activation, or after.
        std: of the initial weights; "he" and "torch" name known ones.
        dropout: behind each activation.
        bias: of the hidden layers; None keeps it where nothing makes it redundant.
    """

    widths: tuple[int, ...] = (100, 100, 100)
    activation: str = "relu"
    norm: Norm = "none"
    placement: Placement = "before"
    std: float | str = "he"
    dropout: float = 0.0
    bias: bool | None = None
    norm_options: dict[str, Any] = field(default_factory=dict)

    def build(self, data: Data, seed: int) -> nn.Sequential:
        """The network for these images; one seed draws the same weights whatever the norm."""
        generator = torch.Generator().manual_seed(seed)
        layers: list[nn.Module] = [Flat()]
        inputs = data.features
        for width in self.widths:
            bias = self.bias if self.bias is not None else _needs_bias(self.norm, self.placement)
            linear = skip_init(nn.Linear, inputs, width, bias=bias)
            norm = norm_layer(self.norm, width, **self.norm_options)
            activation = _ACTIVATIONS[self.activation]()
            layers += [start(linear, self.std, generator)]
            layers += _ordered(norm, activation, self.placement)
            layers += [nn.Dropout(self.dropout)] if self.dropout else []
            inputs = width
        last = skip_init(nn.Linear, inputs, data.classes)
        return nn.Sequential(*layers, start(last, self.std, generator))


@dataclass(frozen=True)
class Conv:
    """A small convolutional network: 3 by 3 convolutions, norm, activation; mean; Linear.

    Args:
        channels: of the convolutions; from the second on they halve the picture.
        norm, placement, std, norm_options: as of :class:`Dense`.
        pool: mean over all positions before the last layer; else all of them go in.
    """

    channels: tuple[int, ...] = (16, 32)
    activation: str = "relu"
    norm: Norm = "none"
    placement: Placement = "before"
    std: float | str = "he"
    pool: bool = True
    norm_options: dict[str, Any] = field(default_factory=dict)

    def build(self, data: Data, seed: int) -> nn.Sequential:
        """The network for these images; one seed draws the same weights whatever the norm."""
        generator = torch.Generator().manual_seed(seed)
        layers: list[nn.Module] = []
        inputs, (height, width) = data.channels, data.size
        for number, channels in enumerate(self.channels):
            stride = 2 if number else 1
            height, width = -(-height // stride), -(-width // stride)
            bias = _needs_bias(self.norm, self.placement)
            layer = skip_init(nn.Conv2d, inputs, channels, 3, stride, padding=1, bias=bias)
            norm = norm_layer(self.norm, channels, dims=2, **self.norm_options)
            layers += [start(layer, self.std, generator)]
            layers += _ordered(norm, _ACTIVATIONS[self.activation](), self.placement)
            inputs = channels
        layers += [nn.AdaptiveAvgPool2d(1), Flat()] if self.pool else [Flat()]
        features = inputs if self.pool else inputs * height * width
        last = skip_init(nn.Linear, features, data.classes)
        return nn.Sequential(*layers, start(last, self.std, generator))


def _needs_bias(norm: Norm, placement: Placement) -> bool:
    """Batch norm behind a layer subtracts its bias."""
    return not (placement == "before" and norm in ("batch", "ghost", "renorm"))


def _ordered(norm: nn.Module, activation: nn.Module, placement: Placement) -> list[nn.Module]:
    parts = [norm, activation] if placement == "before" else [activation, norm]
    return [part for part in parts if not isinstance(part, nn.Identity)]
