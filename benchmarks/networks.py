"""Networks that are timed whole: ResNet-18 for 32 x 32 images, and a plain chain."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 - its usual name

Tensor = torch.Tensor


def _conv(inputs: int, outputs: int, size: int = 3, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False)


class Block(nn.Module):
    """Two convolutions and a way around them (He et al., 2015)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = _conv(inputs, outputs, stride=stride), nn.BatchNorm2d(outputs)
        self.conv2, self.norm2 = _conv(outputs, outputs), nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut.append(_conv(inputs, outputs, 1, stride))
            self.shortcut.append(nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        return self.relu(y + self.shortcut(x))


class ResNet18(nn.Module):
    """Eight blocks in four stages; the stem keeps the size of the image, as for CIFAR."""

    def __init__(self, width: int = 64, classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            _conv(3, width), nn.BatchNorm2d(width), nn.ReLU(inplace=True)
        )  # fmt: skip
        blocks, inputs = [], width
        for stage in range(4):
            outputs = width << stage
            blocks += [Block(inputs, outputs, 1 + (stage > 0)), Block(outputs, outputs, 1)]
            inputs = outputs
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        y = self.blocks(self.stem(x))
        return self.head(torch.flatten(F.adaptive_avg_pool2d(y, 1), 1))


def chain(width: int, depth: int) -> nn.Sequential:
    """Convolution, batch norm and ReLU, again and again."""
    layers: list[nn.Module] = []
    for _ in range(depth):
        layers += [_conv(width, width), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


def network(name: str, channels: int) -> nn.Module:
    """The network of that name, with the same weights in every process."""
    torch.manual_seed(0)
    match name:
        case "ResNet18":
            return ResNet18()
        case "Chain8":
            return chain(channels, 8)
    raise ValueError(f"got the network {name!r}; expected ResNet18 or Chain8")
