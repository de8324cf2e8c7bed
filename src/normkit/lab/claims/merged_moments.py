"""Moments of parts merge into those of the whole, and so batch norm can be spread over machines."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from operator import add

import torch
from torch import Tensor

import normkit as nk
from normkit.lab.claim import Claim, Measured, Number
from normkit.lab.kit.residuals import apart, draw, equal, kernels, largest, most, residual
from normkit.lab.setup import Setup

COUNTS = (1, 2, 5, 17, 40, 3)
CHANNELS, OFFSET = 8, 1e3


@kernels()
def measure(setup: Setup) -> Measured:
    generator = setup.generator()
    centres = torch.arange(len(COUNTS)).repeat_interleave(torch.tensor(COUNTS))[:, None]
    x = centres + draw(generator, sum(COUNTS), CHANNELS)
    far = [nk.BatchNorm().moments(part) for part in (x + OFFSET).split(COUNTS)]
    whole, parts = nk.Moments.of((x + OFFSET).numpy(), axis=0), far
    shuffled = [parts[i] for i in torch.randperm(len(parts), generator=generator).tolist()]
    orders = (_fold(parts), _fold(parts[::-1]), _fold(shuffled), _tree(parts))
    weights = torch.tensor(COUNTS, dtype=torch.float64)[:, None] / sum(COUNTS)
    averaged = (weights * torch.stack([part.var for part in parts])).sum(0)
    squares = ((x + OFFSET) ** 2).mean(0) - (x + OFFSET).mean(0) ** 2
    return Measured(
        {
            "mean": most(residual(merged.mean, whole.mean) for merged in orders),
            "spread": most(residual(merged.m2, whole.m2) for merged in orders),
            "synchronized": _synchronized(x, generator),
            "averaged": residual(averaged, whole.var),
            "squares": residual(squares, whole.var),
        }
    )


def _fold(parts: Sequence[nk.Moments]) -> nk.Moments:
    return reduce(nk.Moments.merge, parts)


def _tree(parts: Sequence[nk.Moments]) -> nk.Moments:
    if len(parts) == 1:
        return parts[0]
    half = len(parts) // 2
    return _tree(parts[:half]).merge(_tree(parts[half:]))


def _synchronized(x: Tensor, generator: torch.Generator) -> float:
    """Batch norm of the parts, each with the merged moments, against that of the whole batch."""
    norm, gamma, beta = nk.BatchNorm(), draw(generator, CHANNELS), draw(generator, CHANNELS)
    xs, g = x.split(COUNTS), draw(generator, *x.shape)
    gs = g.split(COUNTS)
    moments = _fold([norm.moments(part) for part in xs])
    outputs, saved = zip(*(norm.apply(part, moments, gamma, beta) for part in xs), strict=True)
    total = reduce(add, [norm.gradient_sums(*pair) for pair in zip(gs, saved, strict=True)])
    grads = [norm.gradient_apply(*pair, total) for pair in zip(gs, saved, strict=True)]
    y, kept = norm.forward(x, gamma, beta)
    want = norm.backward(g, kept)
    found = torch.cat(outputs), torch.cat([one.x for one in grads]), total.gamma, total.beta
    return largest(found, (y, want.x, want.gamma, want.beta))


CLAIM = Claim(
    name="merged_moments",
    title="Statistics of parts merge exactly",
    sentence="Count, mean and sum of squared deviations of parts, of any sizes and merged in any "
    "order, give those of the whole; so batch norm of a batch that is spread over machines is "
    "batch norm of the whole batch, forward and backward.",
    source="Chan, Golub & LeVeque 1979",
    paper="exact",
    experiment="68 samples of 8 channels in parts of 1, 2, 5, 17, 40 and 3 whose means lie apart, "
    "shifted by 1000, merged from the left, from the right, shuffled and as a tree, against "
    "one pass over all, float64. Batch norm part by part with the merged moments and sums, "
    "against the batch in one piece (not shifted).",
    numbers=(
        equal("mean", "merged mean against one pass"),
        equal("spread", "merged sum of squared deviations against one pass"),
        equal("synchronized", "output and gradients of the parts against the whole batch"),
        apart("averaged", "the parts' variances averaged by their counts, against the whole's"),
        Number("squares", "variance as mean square minus squared mean, against the whole's"),
    ),
    measure=measure,
    caveat="The machines here are parts of one process; the package's tests try real ones.",
    seconds=0.1,
)
