"""Models and data that the command line's tests name as code."""

from __future__ import annotations

import torch
from torch import nn


def net():
    """A small network in eval mode whose statistics are those of images()."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8, momentum=None),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, bias=False),
        nn.BatchNorm2d(8, momentum=None),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 4),
    )
    model.train()
    with torch.no_grad():
        model(images())
    return model.eval()


def stale():
    """The same with statistics of other data."""
    model = net()
    with torch.no_grad():
        model[1].running_mean += 3.0 * model[1].running_var.sqrt()
        model[1].running_var *= 4.0
    return model


def plain():
    """Without norms."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 2)).eval()


def lone():
    """A norm whose sets have one element each once it is an instance norm."""
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8)).eval()


def images():
    return torch.randn(256, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def batches():
    return images().split(32)


def nothing():
    return []


def wrong_shape():
    return [torch.randn(4, 5, 8, 8)]


def dictionaries():
    return [{"pixels": torch.randn(4, 3, 8, 8)}]


def interrupted():
    yield torch.randn(16, 3, 8, 8)
    raise KeyboardInterrupt


def failing():
    yield torch.randn(16, 3, 8, 8)
    raise RuntimeError("the disk is gone")


def raises():
    raise RuntimeError("no weights here")


def no_model():
    return "a string"


def linear():
    return nn.Linear(2, 2)
