"""Statistics of the shifted images bring the accuracy back, for shifts that a norm takes out."""

from __future__ import annotations

from torch import nn

from normkit.lab.claim import Axes, Claim, Measured, Number, Series
from normkit.lab.kit.networks import Conv, Dense
from normkit.lab.kit.shifts import adapted, shifted
from normkit.lab.kit.training import accuracy, train
from normkit.lab.setup import Setup

NETWORK = Dense((100, 100, 100), norm="batch")
WITH_BORDERS = Conv((16, 32), norm="batch", pool=False)
STRENGTHS = {"contrast": 0.3, "brightness": 1.0, "blur": 1.0, "noise": 1.0, "inversion": 1.0}
WHERE = "test images right (share)"
CONTRAST = Axes("Less contrast", "contrast left (factor)", WHERE, log_x=True, y_range=(0, 1.02))
NOISE = Axes("More noise", "deviation of the noise (of the pixels')", WHERE, y_range=(0, 1.02))


def measure(setup: Setup) -> Measured:
    network, convolutions = _trained(setup, NETWORK), _trained(setup, WITH_BORDERS)
    numbers = {"clean": accuracy(network, setup.data)}
    for kind, strength in STRENGTHS.items():
        numbers[f"{kind}_before"], numbers[kind] = _both(setup, network, kind, strength)
    _, numbers["borders"] = _both(setup, convolutions, "brightness", STRENGTHS["brightness"])
    series = [
        *_curves(setup, network, CONTRAST, "contrast", (0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0)),
        *_curves(setup, network, NOISE, "noise", (0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0)),
    ]
    return Measured(numbers, series)


def _trained(setup: Setup, network: Dense | Conv) -> nn.Module:
    built = network.build(setup.data, setup.seed)
    steps = setup.pick(300, 150)
    train(built, setup.data, rate=0.1, steps=steps, seed=setup.seed, every=steps)
    return built


def _both(setup: Setup, network: nn.Module, kind: str, strength: float) -> tuple[float, float]:
    """Accuracy with the statistics of the training, and with those of the shifted images."""
    images = shifted(setup, setup.data.test_images, kind, strength)
    return (
        accuracy(network, setup.data, images),
        accuracy(adapted(network, images), setup.data, images),
    )


def _curves(
    setup: Setup, network: nn.Module, chart: Axes, kind: str, strengths: tuple[float, ...]
) -> list[Series]:
    chosen = list(setup.some(strengths))
    pairs = [_both(setup, network, kind, strength) for strength in chosen]
    names = ("statistics of the training", "of the shifted images")
    return [
        Series(chart.heading, name, chosen, values)
        for name, values in zip(names, map(list, zip(*pairs, strict=True)), strict=True)
    ]


CLAIM = Claim(
    name="adaptation",
    title="New statistics for another camera",
    sentence="A trained network that meets images with another contrast, brightness or sharpness "
    "regains accuracy when its batch norms get the statistics of those images; no labels, no "
    "training.",
    source="Li et al. 2016 (AdaBN); Schneider et al. 2020",
    paper="Schneider et al.: ResNet-50 on ImageNet-C, mean corruption error from 76.7 to 62.2 %",
    experiment="A perceptron of 3×100 with batch norm, 300 steps of 60 at rate 0.1. Then the test "
    "images change: contrast × 0.3, brightness + 1 deviation, the mean of 3×3 pixels, noise of 1 "
    "deviation, or their negative. normkit.models.recalibrate takes the statistics from the "
    "changed test images without their labels.",
    numbers=(
        Number("contrast", "right at contrast × 0.3, adapted", "%", at_least=0.95),
        Number("brightness", "right at brightness + 1, adapted", "%", at_least=0.95),
        Number("clean", "right on the images as they were", "%"),
        Number("contrast_before", "contrast × 0.3, not adapted", "%"),
        Number("brightness_before", "brightness + 1, not adapted", "%"),
        Number("borders", "brightness + 1, adapted, convolutions that pad with zeros", "%"),
        Number("blur_before", "blurred, not adapted", "%"),
        Number("blur", "blurred, adapted", "%"),
        Number("noise_before", "noise, not adapted", "%"),
        Number("noise", "noise, adapted", "%"),
        Number("inversion_before", "the negative, not adapted", "%"),
        Number("inversion", "the negative, adapted", "%"),
    ),
    charts=(CONTRAST, NOISE),
    measure=measure,
    caveat="In a perceptron contrast and brightness come back exactly to what statistics of the "
    "unchanged test images give: they change every input of the first norm by one positive "
    "factor and an offset for each unit, which new statistics remove. Zeros around a picture do "
    "not become brighter with it, so for convolutions it is no longer exact. Blur comes back in "
    "part, noise hardly, the negative not at all: a norm removes a positive factor, and not a "
    "sign. So the gain depends on which changes are averaged.",
    seconds=2,
)
