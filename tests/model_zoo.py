"""Small models with every kind of normalization, fresh and trained on scikit-learn's digits.

They have the structure of well-known networks, and nothing is wrong with them: tests plant faults
in copies.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 - its usual name

import normkit.torch as nt

BATCH = 64


@functools.cache
def digits():
    """Images (1797, 1, 8, 8) around zero, and their digits, in an order without meaning."""
    datasets = pytest.importorskip("sklearn.datasets", reason="scikit-learn is not installed")
    images, labels = datasets.load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))
    x = torch.as_tensor(images[order] / 8.0 - 1.0, dtype=torch.float32).reshape(-1, 1, 8, 8)
    return x, torch.as_tensor(labels[order])


def batches(size=BATCH, samples=None):
    """Pairs (images, labels), of the first samples."""
    x, y = digits()
    return list(zip(x[:samples].split(size), y[:samples].split(size), strict=True))


# --- networks -------------------------------------------------------------------------------------


def dense(norm=nn.BatchNorm1d):
    layers = [nn.Flatten()]
    for inputs, outputs in ((64, 48), (48, 32)):
        layers += [nn.Linear(inputs, outputs, bias=False), norm(outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(32, 10))


def convolutional(norm=nn.BatchNorm2d, widths=(16, 24, 32), bias=False):
    layers, inputs = [], 1
    for i, width in enumerate(widths):
        stride = 1 if i == 0 else 2
        conv = nn.Conv2d(inputs, width, 3, stride=stride, padding=1, bias=bias)
        layers += [conv, norm(width), nn.ReLU()]
        inputs = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, 10))


class Residual(nn.Module):
    """A block of ResNet, the last gamma starting at zero as in torchvision and timm."""

    def __init__(self, inputs, outputs, stride=1):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.act = nn.ReLU(inplace=True)
        self.downsample = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )
        nn.init.zeros_(self.bn2.weight)

    def forward(self, x):
        shortcut = x if self.downsample is None else self.downsample(x)
        return self.act(self.bn2(self.conv2(self.act(self.bn1(self.conv1(x))))) + shortcut)


def residual():
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
        Residual(16, 16), Residual(16, 24, 2),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 10),
    )  # fmt: skip


class PreActivation(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(width), nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.norm2, self.conv2 = nn.BatchNorm2d(width), nn.Conv2d(width, width, 3, 1, 1)

    def forward(self, x):
        inner = self.conv1(F.relu(self.norm1(x)))
        return x + self.conv2(F.relu(self.norm2(inner)))


def preactivation():
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, 1, 1), PreActivation(16), nn.AvgPool2d(2), PreActivation(16),
        nn.BatchNorm2d(16), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10),
    )  # fmt: skip


class Inverted(nn.Module):
    """MobileNetV2's block."""

    def __init__(self, width, expand=3):
        super().__init__()
        inner = width * expand
        self.body = nn.Sequential(
            nn.Conv2d(width, inner, 1, bias=False), nn.BatchNorm2d(inner), nn.ReLU6(),
            nn.Conv2d(inner, inner, 3, 1, 1, groups=inner, bias=False), nn.BatchNorm2d(inner),
            nn.ReLU6(), nn.Conv2d(inner, width, 1, bias=False), nn.BatchNorm2d(width),
        )  # fmt: skip

    def forward(self, x):
        return x + self.body(x)


def mobile():
    return nn.Sequential(
        nn.Conv2d(1, 12, 3, 1, 1, bias=False), nn.BatchNorm2d(12), nn.ReLU6(),
        Inverted(12), nn.MaxPool2d(2), Inverted(12),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(12, 10),
    )  # fmt: skip


class Concatenating(nn.Module):
    """DenseNet's layer: what comes in goes on beside what it makes."""

    def __init__(self, inputs, growth):
        super().__init__()
        self.norm = nn.BatchNorm2d(inputs)
        self.conv = nn.Conv2d(inputs, growth, 3, 1, 1, bias=False)

    def forward(self, x):
        return torch.cat([x, self.conv(F.relu(self.norm(x)))], 1)


def concatenating():
    return nn.Sequential(
        nn.Conv2d(1, 12, 3, 2, 1, bias=False), Concatenating(12, 8), Concatenating(20, 8),
        nn.BatchNorm2d(28), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(28, 10),
    )  # fmt: skip


class Attention(nn.Module):
    """A transformer's block, normalized in front of its two parts."""

    def __init__(self, width, heads=2, norm=nn.LayerNorm):
        super().__init__()
        self.norm1, self.norm2, self.heads = norm(width), norm(width), heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Dropout(0.1), nn.Linear(2 * width, width)
        )

    def forward(self, x):
        samples, tokens, width = x.shape
        parts = self.qkv(self.norm1(x)).reshape(samples, tokens, 3, self.heads, width // self.heads)
        q, k, v = parts.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        x = x + self.proj(mixed.reshape(samples, tokens, width))
        return x + self.mlp(self.norm2(x))


class Transformer(nn.Module):
    def __init__(self, width=24, norm=nn.LayerNorm):
        super().__init__()
        self.embed = nn.Conv2d(1, width, 2, 2)
        self.position = nn.Parameter(0.02 * torch.randn(1, 16, width))
        self.blocks = nn.Sequential(Attention(width, norm=norm), Attention(width, norm=norm))
        self.norm, self.head = norm(width), nn.Linear(width, 10)

    def forward(self, x):
        x = self.embed(x).flatten(2).transpose(1, 2) + self.position
        return self.head(self.norm(self.blocks(x)).mean(1))


class Mixed(nn.Module):
    """Batch norm in the stem, group norm in the middle, layer norm in front of the head."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16))
        self.middle = nn.Sequential(nn.Conv2d(16, 24, 3, 2, 1), nn.GroupNorm(4, 24))
        self.norm, self.head = nn.LayerNorm(24), nn.Linear(24, 10)

    def forward(self, x):
        x = F.silu(self.middle(F.silu(self.stem(x))))
        return self.head(self.norm(x.mean((2, 3))))


class Sequence(nn.Module):
    """The rows of an image as a sequence."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv1d(8, 24, 3, padding=1, bias=False), nn.BatchNorm1d(24), nn.LeakyReLU(0.1),
            nn.Conv1d(24, 24, 3, padding=1, bias=False), nn.BatchNorm1d(24), nn.GELU(),
        )  # fmt: skip
        self.head = nn.Linear(24, 10)

    def forward(self, x):
        return self.head(self.body(x[:, 0]).mean(2))


class Siamese(nn.Module):
    """One trunk for an image and for its mirror image: two calls, one distribution."""

    def __init__(self):
        super().__init__()
        self.trunk = nn.Sequential(
            nn.Conv2d(1, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
            nn.Conv2d(16, 24, 3, 2, 1, bias=False), nn.BatchNorm2d(24), nn.ReLU(),
        )  # fmt: skip
        self.head = nn.Linear(48, 10)

    def forward(self, x):
        left, right = self.trunk(x), self.trunk(x.flip(3))
        return self.head(torch.cat([left.mean((2, 3)), right.mean((2, 3))], 1))


def synced():
    return nn.SyncBatchNorm.convert_sync_batchnorm(convolutional())


def groups(width):
    return nn.GroupNorm(4, width)


def instances(width):
    return nn.InstanceNorm2d(width, affine=True)


def no_momentum(width):
    return nn.BatchNorm2d(width, momentum=None)


def population(width):
    return nt.BatchNorm2d(width, running="population")


def ghost(width):
    return nt.BatchNorm2d(width, ghost=32)


BUILDERS = {
    "dense": dense,
    "convolutional": convolutional,
    "residual": residual,
    "preactivation": preactivation,
    "mobile": mobile,
    "concatenating": concatenating,
    "transformer": Transformer,
    "rms transformer": functools.partial(Transformer, norm=nn.RMSNorm),
    "group norm": functools.partial(convolutional, groups, bias=True),
    "instance norm": functools.partial(convolutional, instances, widths=(16, 24), bias=True),
    "mixed": Mixed,
    "sequence": Sequence,
    "siamese": Siamese,
    "synced": synced,
    "cumulative": functools.partial(convolutional, no_momentum),
    "normkit": functools.partial(convolutional, nt.BatchNorm2d),
    "normkit dense": functools.partial(dense, nt.BatchNorm1d),
    "ghost": functools.partial(convolutional, ghost),
}
NAMES = tuple(BUILDERS)


def fresh(name):
    """A model as it was made, with the same weights each time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return BUILDERS[name]()


# --- training -------------------------------------------------------------------------------------


@contextlib.contextmanager
def one_thread():
    """Sums in one order: the same seed gives the same network, with the same units alive."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def fit(model, epochs=5, rate=1e-2, *, size=BATCH, augment=None, schedule=True, seed=0, order=None):
    """Train in place on the digits; ``augment(images)``; ``order(labels)`` arranges an epoch."""
    x, y = digits()
    with torch.random.fork_rng(), one_thread():
        torch.manual_seed(seed)
        optimizer = torch.optim.AdamW(model.parameters(), rate, weight_decay=1e-2)
        steps = epochs * math.ceil(len(y) / size)
        half = 0.5 if schedule else 0.0
        course = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda i: 1 - half + half * math.cos(math.pi * i / steps)
        )
        model.train()
        for _ in range(epochs):
            chosen = torch.randperm(len(y)) if order is None else order(y)
            for rows in chosen.split(size):
                images = x[rows] if augment is None else augment(x[rows])
                loss = F.cross_entropy(model(images), y[rows])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                course.step()
    return model.eval()


@functools.cache
def _trained(name):
    return fit(fresh(name))


def trained(name):
    """A copy of a model trained on the digits (in a second), in eval mode."""
    return copy.deepcopy(_trained(name))


def accuracy(model):
    x, y = digits()
    with torch.no_grad():
        return float((model(x).argmax(1) == y).float().mean())
