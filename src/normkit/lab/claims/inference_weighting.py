"""At inference, the image itself may count among the statistics, as it did in training."""

from __future__ import annotations

import copy

import torch
from torch import nn

from normkit.lab.claim import Axes, Claim, Measured, Number, Series
from normkit.lab.kit.networks import Conv
from normkit.lab.kit.training import accuracy, batches, descend, loss_of
from normkit.lab.setup import Setup
from normkit.torch import BatchNorm2d

Tensor = torch.Tensor
NETWORK = Conv((16, 32), norm="batch", pool=True)
SMALL, LARGE = 4, 32
SHARES = (0.0, 0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5)
CHART = Axes(
    "Accuracy by the weight of the image itself", "weight α of the image's own statistics",
    "test images right (share)",
)  # fmt: skip


class Weighted(nn.Module):
    """A trained batch norm that mixes moments of the image itself into the running ones.

    With weight α: the means, and the means of squares, of which the variance follows.
    """

    def __init__(self, norm: BatchNorm2d, share: float) -> None:
        super().__init__()
        self.norm, self.share = norm, share

    def forward(self, x: Tensor) -> Tensor:
        """In eval mode; each image by itself."""
        norm, share = self.norm, self.share
        mean, var = norm.running_mean[:, None, None], norm.running_var[:, None, None]
        squares = torch.lerp(mean.square() + var, x.square().mean((2, 3), keepdim=True), share)
        mean = torch.lerp(mean, x.mean((2, 3), keepdim=True), share)
        scaled = (x - mean) * (squares - mean.square() + norm.eps).rsqrt()
        return scaled * norm.weight[:, None, None] + norm.bias[:, None, None]


def weighted(network: nn.Sequential, share: float) -> nn.Sequential:
    """A copy of the network with such norms."""
    return nn.Sequential(*(
        Weighted(layer, share) if isinstance(layer, BatchNorm2d) else layer
        for layer in copy.deepcopy(network)
    ))  # fmt: skip


def measure(setup: Setup) -> Measured:
    data = setup.data
    networks = {batch: _trained(setup, batch) for batch in (SMALL, LARGE)}
    curves = {
        batch: [accuracy(weighted(network, share), data) for share in SHARES]
        for batch, network in networks.items()
    }
    network, by_share = networks[SMALL], curves[SMALL]
    best = max(range(len(SHARES)), key=by_share.__getitem__)
    with torch.no_grad():
        plain, unweighted = network(data.test_images), weighted(network, 0.0)(data.test_images)
    losses = [
        loss_of(weighted(network, share), data.test_images, data.test_labels)
        for share in (0.0, SHARES[best])
    ]
    return Measured(
        {
            "gain": 100 * (by_share[best] - by_share[0]),
            "share": SHARES[best],
            "plain": accuracy(network, data),
            "half": by_share[-1],
            "gain_large": 100 * (max(curves[LARGE]) - curves[LARGE][0]),
            "loss": losses[1] / losses[0],
            "difference": float((unweighted - plain).abs().max() / plain.abs().max()),
        },
        [
            Series(CHART.heading, f"trained with batches of {batch}", list(SHARES), values)
            for batch, values in curves.items()
        ],
    )


def _trained(setup: Setup, batch: int) -> nn.Sequential:
    network = NETWORK.build(setup.data, setup.seed)
    feed = batches(setup.data, batch, setup.seed)
    for _ in descend(network, feed, rate=0.1, steps=setup.pick(1000, 300)):
        pass
    return network.eval()


CLAIM = Claim(
    name="inference_weighting",
    title="The image's own statistics at inference",
    sentence="In training an image is part of the statistics that normalize it; giving it a small "
    "weight at inference too narrows the gap between training and use.",
    source="Summers & Dinneen 2020, section 3.1",
    paper="According to the abstract, four such changes gain on six data sets at all batch sizes; "
    "what this one gains was not checked in the paper",
    experiment="Two convolutions with batch norm and a mean over all positions, 1000 steps at rate "
    "0.1 with batches of 4, or of 32. In use mean and mean of squares of each image count with "
    "weight α, the running ones with 1 − α; α from 0 to 0.5.",
    numbers=(
        Number("gain", "gained by the best α, batches of 4", "points"),
        Number("share", "the best α, chosen on the test images themselves"),
        Number("plain", "right in plain eval mode", "%"),
        Number("half", "right with α = 0.5", "%"),
        Number("gain_large", "gained by the best α, batches of 32", "points"),
        Number("loss", "test cross-entropy with the best α, by that without"),
        Number("difference", "outputs with α = 0 by those of plain eval mode, relative"),
    ),
    charts=(CHART,),
    measure=measure,
    caveat="Reported without a verdict: the gain is within what 500 test images can tell, α is "
    "chosen on them, and in some seeds it is one image of 500. The cross-entropy grows where the "
    "accuracy does: outputs become too sure. Without the mean over positions at the end nothing "
    "was gained.",
    seconds=3,
)
