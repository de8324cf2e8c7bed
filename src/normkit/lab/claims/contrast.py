"""Instance norm removes the contrast of an image."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from normkit.lab.claim import Axes, Claim, Measured, Number, Series
from normkit.lab.kit.networks import Conv
from normkit.lab.kit.training import accuracy, train
from normkit.lab.setup import Setup
from normkit.torch import InstanceNorm2d

Tensor = torch.Tensor
NETWORK = Conv((16, 32), norm="instance", pool=False)
TINY = 1e-30  # as good as none in float64
LESS = 0.3
FACTORS = (0.03, 0.1, 0.2, LESS, 0.5, 0.7, 1.0)
CURVES = Axes(
    "Less contrast", "contrast left (factor)", "test images right (share)",
    log_x=True, y_range=(0, 1.02),
)  # fmt: skip


def measure(setup: Setup) -> Measured:
    data, steps = setup.data, setup.pick(300, 100)
    factors = list(setup.some(FACTORS))
    curves: dict[str, list[float]] = {}
    for norm in ("instance", "batch"):
        network = replace(NETWORK, norm=norm).build(data, setup.seed)
        train(network, data, rate=0.1, steps=steps, seed=setup.seed, every=steps)
        curves[norm] = [accuracy(network, data, factor * data.test_images) for factor in factors]
    less = factors.index(LESS)
    instance, batch = curves["instance"], curves["batch"]
    return Measured(
        {
            "identity": identity_error(setup, InstanceNorm2d(4, eps=TINY)),
            "change": 100 * abs(instance[less] - instance[-1]),
            "instance": instance[-1],
            "batch": batch[-1],
            "batch_change": 100 * abs(batch[less] - batch[-1]),
        },
        [
            Series(CURVES.heading, f"{norm} norm", factors, values)
            for norm, values in curves.items()
        ],
    )


def identity_error(setup: Setup, norm: nn.Module) -> float:
    """How far norm(a·x + b) is from norm(x), with a > 0 and b drawn for each image and channel."""
    generator, images, channels = setup.generator(1), 8, 4

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    x = draw(images, channels, 7, 5)
    a, b = draw(images, channels, 1, 1).exp(), draw(images, channels, 1, 1)
    return float((norm(a * x + b) - norm(x)).abs().max())


CLAIM = Claim(
    name="contrast",
    title="Instance norm removes contrast",
    sentence="An image's contrast, and the brightness of each channel, leave the output of an "
    "instance norm as it is.",
    source="Ulyanov et al. 2016",
    paper="Of stylized images only, without figures (as remembered, not checked in the paper)",
    experiment="IN(a·x + b) against IN(x) in float64, with a > 0 and b drawn for each image and "
    "channel, ε = 1e-30. Then two convolutions with instance norm, or batch norm: 300 steps of 60 "
    "at rate 0.1, tested on images of less contrast (all pixels × a factor).",
    numbers=(
        Number("identity", "largest change of an output of instance norm", at_most=1e-10),
        Number("change", "accuracy changes at contrast × 0.3, instance norm", "points", at_most=1),
        Number("batch_change", "the same with batch norm", "points"),
        Number("instance", "right at full contrast, instance norm", "%"),
        Number("batch", "right at full contrast, batch norm", "%"),
    ),
    charts=(CURVES,),
    measure=measure,
    caveat="Pixels are scaled about the mean of all training pixels, which is 0 here, as are the "
    "zeros that the convolutions pad with: so the accuracy has to stay as it is, by construction. "
    "An offset would make a border visible, and no longer go away. In float32 ε = 1e-5 begins to "
    "count at very low contrast.",
    seconds=2,
)
