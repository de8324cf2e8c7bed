"""The noise of batch statistics falls with the batch, and so does what it adds to the loss."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from statistics import fmean

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 - its usual name

from normkit import torch as nkt
from normkit.lab.claim import Axes, Claim, Measured, Number, Series
from normkit.lab.kit.networks import Dense
from normkit.lab.kit.probes import power
from normkit.lab.kit.training import train
from normkit.lab.setup import Setup

Tensor = torch.Tensor

NETWORK = Dense((100, 100, 100), norm="batch")
SIZES = (8, 16, 32, 64, 128, 256)
IMAGES, DRAWS = 8, 64  # that are looked at; batches of each size
NOISE = Axes(
    "Noise of a normalized image", "images in a batch", "variance over batches", log_x=True,
    log_y=True,
)  # fmt: skip
EXCESS = Axes(
    "What the noise adds to the loss", "images in a batch", "training loss (nats)", log_x=True,
    log_y=True,
)  # fmt: skip


@torch.no_grad()
def measure(setup: Setup) -> Measured:
    network = NETWORK.build(setup.data, setup.seed)
    with torch.enable_grad():
        train(network, setup.data, rate=0.1, steps=100, seed=setup.seed, every=100)
    noises, excesses = [], []
    for size in SIZES:
        small = replace(NETWORK, norm="ghost", norm_options={"ghost": size}).build(
            setup.data, setup.seed
        )
        small.load_state_dict(network.state_dict())
        noises.append(_noise(small, size, setup))
        excesses.append(_excess(network, small, size, setup))
    by_layer = list(zip(*noises, strict=True))
    expected = [_expected(network, setup) / size for size in SIZES]
    xs = [float(size) for size in SIZES]
    return Measured(
        {
            "first": power(SIZES, by_layer[0]),
            "last": power(SIZES, by_layer[-1]),
            "explained": by_layer[0][-1] / expected[-1],
            "loss": power(SIZES, excesses),
        },
        [
            *(
                Series(NOISE.heading, f"norm {number}", xs, list(noise))
                for number, noise in enumerate(by_layer, start=1)
            ),
            Series(NOISE.heading, "norm 1, expected", xs, expected),
            Series(
                EXCESS.heading, "loss in batches less loss with the statistics of all", xs, excesses
            ),
        ],
    )


def _normalized(network: nn.Sequential, x: Tensor) -> Iterator[Tensor]:
    """What each norm puts out, without gamma and beta."""
    for layer in network.train():
        x = layer(x)
        if isinstance(layer, nkt.BatchNorm1d):
            yield (x - layer.bias) / layer.weight


def _noise(small: nn.Sequential, size: int, setup: Setup) -> list[float]:
    """By layer, how far the batch's other images move an image: its variance over batches."""
    generator, images = setup.generator(1), setup.data.train_images
    variances = []
    for image in range(IMAGES):
        chosen = torch.randint(len(images), (DRAWS, size), generator=generator)
        chosen[:, 0] = image
        found = _normalized(small, images[chosen.flatten()])
        variances.append([float(y.view(DRAWS, size, -1)[:, 0].var(0).mean()) for y in found])
    return [fmean(layer) for layer in zip(*variances, strict=True)]


def _expected(network: nn.Sequential, setup: Setup) -> float:
    """The first layer's noise times the size of the batch, from the moments of all images.

    The mean's variance, the deviation's and their covariance, to first order in 1 / size.
    """
    x = next(_normalized(network, setup.data.train_images))
    skewness, kurtosis = x.pow(3).mean(0), x.pow(4).mean(0)
    x = x[:IMAGES]
    return float((1 + x * skewness + x.square() * (kurtosis - 1) / 4).mean())


def _excess(network: nn.Sequential, small: nn.Sequential, size: int, setup: Setup) -> float:
    """Loss with the statistics of random batches, less the loss with those of all images."""
    data = setup.data
    chosen = torch.randint(len(data.train_labels), (DRAWS * size,), generator=setup.generator(2))
    labels = data.train_labels[chosen]
    noisy = F.cross_entropy(small.train()(data.train_images[chosen]), labels)
    still = F.cross_entropy(network.train()(data.train_images)[chosen], labels)
    return float(noisy - still)


CLAIM = Claim(
    name="regularizing_noise",
    title="Batch norm adds noise that falls as one by the batch",
    sentence="Since the other images of a batch change an image's normalized values at random, "
    "batch norm regularizes; the variance of this noise is in proportion to one by the number of "
    "images.",
    source="Luo et al. 2019",
    paper="noise of order 1/B: batch norm as normalization by the population's statistics and a "
    "penalty on γ (as remembered, not checked in the paper)",
    experiment="Three ReLU layers of 100 with batch norm, trained for 100 steps of rate 0.1. Then "
    f"{IMAGES} images are normalized among others, drawn anew {DRAWS} times, for batches of "
    f"{SIZES[0]} to {SIZES[-1]}: the power of the size that the variance follows. So too for what "
    "the statistics of random batches add to the training loss.",
    numbers=(
        Number(
            "first", "power of the size that the noise follows, first norm", paper="−1",
            at_least=-1.15, at_most=-0.85,
        ),
        Number(
            "last", "the same, last norm", paper="−1", at_least=-1.15, at_most=-0.85,
        ),
        Number(
            "explained", f"noise of the first norm by the one expected, batches of {SIZES[-1]}",
            paper="1, from skewness and kurtosis",
        ),
        Number("loss", "power of the size that the added loss follows", paper="−1"),
    ),
    charts=(NOISE, EXCESS),
    measure=measure,
    caveat="Only the noise is measured. That it acts as a penalty on γ is derived in the paper "
    "for one layer; scaling γ of the last norm here, the added loss grows with it in batches of "
    "8 and 16, and not in larger ones.",
    seconds=2,
)  # fmt: skip
