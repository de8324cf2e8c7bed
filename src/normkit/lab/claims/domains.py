"""What the statistics are taken over in use has to be what it was in training."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from normkit.lab.claim import Axes, Claim, Measured, Number, Series
from normkit.lab.kit.networks import Dense
from normkit.lab.kit.shifts import adapted, shifted
from normkit.lab.kit.training import accuracy, batches, train
from normkit.lab.setup import Setup

Tensor = torch.Tensor
NETWORK = Dense((100, 100, 100), norm="batch")
BLUR, NEGATIVE = 2.0, ("inversion", 1.0)
CURVES = Axes(
    "Sharp and blurred images", "times that the second domain is blurred",
    "test images right (share)", y_range=(0, 1.02),
)  # fmt: skip
WAYS = {
    "joint": "trained apart, joint statistics",
    "own": "trained apart, statistics of each domain",
    "mixed": "trained mixed, joint statistics",
    "mixed_own": "trained mixed, statistics of each domain",
}


def measure(setup: Setup) -> Measured:
    strengths = list(setup.pick((0.0, 1.0, BLUR, 3.0), (0.0, BLUR)))
    found = [_compare(setup, "blur", strength) for strength in strengths]
    negative = _compare(setup, *NEGATIVE)
    return Measured(
        found[strengths.index(BLUR)] | {f"negative_{way}": a for way, a in negative.items()},
        [
            Series(CURVES.heading, words, strengths, [one[way] for one in found])
            for way, words in WAYS.items()
        ],
    )


def _compare(setup: Setup, kind: str, strength: float) -> dict[str, float]:
    """Test accuracy, the mean of two domains, of two networks with two kinds of statistics."""
    data, numbers = setup.data, {}
    steps = setup.pick(200, 100)
    seen = _domains(setup, data.train_images, kind, strength)
    tests = _domains(setup, data.test_images, kind, strength)
    for apart, (joint, own) in ((True, ("joint", "own")), (False, ("mixed", "mixed_own"))):
        network = NETWORK.build(data, setup.seed)
        feed = _feed(setup, kind, strength, apart)
        train(network, data, rate=0.1, steps=steps, seed=setup.seed, every=steps, source=feed)
        numbers[joint] = _mean_accuracy(setup, [adapted(network, torch.cat(seen))] * 2, tests)
        numbers[own] = _mean_accuracy(setup, [adapted(network, one) for one in seen], tests)
    return numbers


def _domains(setup: Setup, images: Tensor, kind: str, strength: float) -> tuple[Tensor, Tensor]:
    return images, shifted(setup, images, kind, strength)


def _feed(setup: Setup, kind: str, strength: float, apart: bool) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of one domain in turn, or with half of each."""
    for number, (x, y) in enumerate(batches(setup.data, 60, setup.seed)):
        first, second = _domains(setup, x, kind, strength)
        if apart:
            yield (second if number % 2 else first), y
        else:
            yield torch.cat((first[::2], second[1::2])), torch.cat((y[::2], y[1::2]))


def _mean_accuracy(setup: Setup, networks: list[nn.Module], tests: tuple[Tensor, Tensor]) -> float:
    pairs = zip(networks, tests, strict=True)
    return sum(accuracy(network, setup.data, images) for network, images in pairs) / len(tests)


CLAIM = Claim(
    name="domains",
    title="Statistics by domain, as in training",
    sentence="Where training batches hold one domain each, test images have to be normalized with "
    "the statistics of their domain; where batches are mixed, with joint ones. What differs "
    "between training and use costs accuracy.",
    source="Wu & Johnson 2021, section 5",
    paper="RetinaNet, whose heads meet feature maps of several sizes: joint statistics lose where "
    "each size was normalized by itself in training",
    experiment="A second domain: the images blurred twice (means of 3×3 pixels), or their "
    "negatives. A perceptron of 3×100 with batch norm, 200 steps of 60 at rate 0.1, from batches "
    "of one domain in turn or with half of each. normkit.models.recalibrate then takes the "
    "statistics from the training images of both domains, or of each; accuracy is the mean of the "
    "two domains.",
    numbers=(
        *(Number(way, f"sharp and blurred: {words}", "%") for way, words in WAYS.items()),
        *(Number(f"negative_{way}", f"with negatives: {w}", "%") for way, w in WAYS.items()),
    ),
    charts=(CURVES,),
    measure=measure,
    caveat="Reported without a verdict: how much a mismatch costs depends on the domains. A "
    "brighter domain is not tried: statistics of each domain take an offset out entirely, so it "
    "would not show the second mismatch. Only negatives make that plain: a network that was "
    "trained on mixed batches tells them by their statistics, and statistics of each domain hide "
    "that.",
    seconds=4,
)
