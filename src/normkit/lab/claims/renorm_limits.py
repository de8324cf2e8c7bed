"""Batch renormalization between batch norm and the running statistics."""

from __future__ import annotations

from copy import deepcopy

import torch

from normkit import torch as nkt
from normkit.lab.claim import Claim, Measured
from normkit.lab.kit.residuals import apart, draw, equal, kernels, largest, residual, through
from normkit.lab.kit.residuals import with_random_affine as randomized
from normkit.lab.setup import Setup

CHANNELS = 6
FREE = nkt.RenormSchedule(r_max=1e9, d_max=1e9, start=0, r_end=0, d_end=0)
SHUT = nkt.RenormSchedule(r_max=1.0, d_max=0.0)


@kernels()
def measure(setup: Setup) -> Measured:
    generator = setup.generator()
    x, g = 2 + 1.5 * draw(generator, 12, CHANNELS, 5), draw(generator, 12, CHANNELS, 5)
    layers = [
        randomized(nkt.BatchNorm1d(CHANNELS, renorm=schedule), setup.generator(1))
        for schedule in (FREE, SHUT, None)
    ]
    with torch.no_grad():
        for layer in layers:  # the schedule's limits are those after a batch; statistics move
            layer(1 + draw(setup.generator(2), 12, CHANNELS, 5))
    unclipped, clipped, plain = layers
    given = deepcopy(unclipped).eval()
    y, dx, *_ = through(unclipped, x, g)
    y_given, dx_given, *_ = through(given, x, g)
    batch = through(plain, x, g)
    variance = x.var((0, 2), correction=0) + plain.eps
    r = (variance / (given.running_var + plain.eps)).sqrt()
    return Measured(
        {
            "forward": residual(y, y_given),
            "clipped": largest(through(clipped, x, g), batch),
            "constants": residual(dx, r[:, None] * batch[1]),
            "not_batch": residual(y, batch[0]),
            "not_given": residual(dx, dx_given),
        }
    )


CLAIM = Claim(
    name="renorm_limits",
    title="Batch renormalization's two ends",
    sentence="With r and d unclipped, batch renormalization in training mode gives the output of "
    "eval mode with the statistics from before the batch; with r = 1 and d = 0 it is batch norm; "
    "r and d get no gradient, so that dx is batch norm's times r.",
    source="Ioffe 2017, section 3",
    paper="exact",
    experiment="Batch norm layers with renorm=, limits of 1e9 or of 1 and 0, after one batch, on "
    "12×6×5 other random numbers, random γ, β and g, float64.",
    numbers=(
        equal("forward", "unclipped output against eval mode before the batch"),
        equal("clipped", "r = 1, d = 0 against batch norm: output and gradients"),
        equal("constants", "dx against r times batch norm's"),
        apart("not_batch", "unclipped output against batch norm's"),
        apart("not_given", "dx against that of eval mode, whose output is the same"),
    ),
    measure=measure,
    seconds=0.1,
)
