"""Batch norm in residual branches keeps them small beside the skip path."""

from __future__ import annotations

import torch

from normkit.lab.claim import Axes, Claim, Measured, Number, Series
from normkit.lab.kit.probes import power
from normkit.lab.kit.residuals import least, most
from normkit.lab.kit.skips import Block, Residual
from normkit.lab.kit.training import batches
from normkit.lab.setup import Setup

BLOCKS = 50
SHARE = Axes(
    "Branch beside skip path", "block", "variance of the branch by that of its input", log_x=True,
    log_y=True,
)  # fmt: skip
SIZE = Axes("Skip path", "block", "variance in front of the block", log_y=True)


def measure(setup: Setup) -> Measured:
    batch, plain = _sizes(setup, "batch"), _sizes(setup, "none")
    blocks = [float(number) for number in range(1, BLOCKS + 1)]
    shares = [branch / skip for skip, branch in batch]
    scaled = [number * share for number, share in zip(blocks, shares, strict=True)]
    return Measured(
        {
            "smallest": least(scaled),
            "largest": most(scaled),
            "slope": power(blocks, shares) / 2,
            "last": batch[-1][0],
            "last_plain": plain[-1][0],
        },
        [
            Series(SHARE.heading, "batch norm", blocks, shares),
            Series(SHARE.heading, "no norm", blocks, [branch / skip for skip, branch in plain]),
            Series(SHARE.heading, "1 / number of the block", blocks, [1 / n for n in blocks]),
            Series(SIZE.heading, "batch norm", blocks, [skip for skip, _ in batch]),
            Series(SIZE.heading, "no norm", blocks, [skip for skip, _ in plain]),
        ],
    )


@torch.no_grad()
def _sizes(setup: Setup, norm: str) -> list[tuple[float, float]]:
    """Mean squares of the skip path in front of each block, and of its branch."""
    network = Residual(setup.pick(512, 256), BLOCKS, norm).build(setup.data, setup.seed)
    x, _ = next(batches(setup.data, 256, setup.seed))
    sizes = []
    for layer in network:
        if isinstance(layer, Block):
            sizes.append((float(x.square().mean()), float(layer.branch(x).square().mean())))
        x = layer(x)
    return sizes


CLAIM = Claim(
    name="residual_branches",
    title="Batch norm makes residual branches small",
    sentence="At the start of training the branch of the ℓ-th residual block is smaller than the "
    "skip path by √ℓ with batch norm, so that deep residual networks begin near the identity; "
    "without norm both grow exponentially.",
    source="De & Smith 2020, section 3",
    paper="on the order of the square root of the depth",
    experiment=f"{BLOCKS} blocks x + Linear(ReLU(BatchNorm(x))) of 512 units, He weights, a batch "
    "of 256 images, nothing trained. Variance over the draw of the weights, whose mean is 0: the "
    "mean square.",
    numbers=(
        Number(
            "smallest", "ℓ times branch by skip path, variances, smallest of all blocks",
            at_least=0.8,
        ),
        Number("largest", "the same, largest of all blocks", at_most=1.25),
        Number("slope", "power of ℓ that branch by skip path follows", paper="−1/2"),
        Number("last", "variance of the skip path in front of the last block"),
        Number("last_plain", "the same without norm; 2⁴⁹, or 5.6e14, were it to double exactly"),
    ),
    charts=(SHARE, SIZE),
    measure=measure,
    caveat="The variance over images alone, which is what batch norm measures, is about a third "
    "less in skip path and branch: behind a ReLU every unit has a mean.",
    seconds=1,
)  # fmt: skip
