"""How the loss looks around the weights, with batch norm and without."""

from __future__ import annotations

from dataclasses import dataclass, replace
from statistics import fmean

from normkit.lab.claim import Axes, Claim, Field, Measured, Number, Series
from normkit.lab.kit.networks import Dense
from normkit.lab.kit.probes import gradient, loss_slice, ratio
from normkit.lab.kit.training import batches, train
from normkit.lab.setup import Setup

NETWORK = Dense((64,) * 8)
RATE = 0.1
FARTHEST = 10  # steps of gradient descent
NETWORKS = {"batch": "batch norm", "none": "no norm"}
LINE = Axes("Loss along the gradient", "steps down the gradient", "loss (nats)", log_y=True)
SLICE = Axes(
    "Slice of the loss", "steps down the gradient", "steps down that of other images",
    note="The weights are in the middle. Up is the part of the other images' gradient that is at "
    "right angles to the first, stretched to its length. Colours: loss (nats).",
)  # fmt: skip


@dataclass(frozen=True)
class View:
    """Losses around the weights: rows go up, columns go down the gradient."""

    places: list[float]
    losses: list[list[float]]

    @property
    def line(self) -> list[float]:
        """The row of the weights."""
        return self.losses[len(self.losses) // 2]

    @property
    def spread(self) -> float:
        """The largest loss by the smallest."""
        values = [loss for row in self.losses for loss in row]
        return ratio(max(values), min(values))

    @property
    def lower(self) -> float:
        """Share of places with less loss than the weights have."""
        here = self.line[len(self.line) // 2]
        return fmean(loss < here for row in self.losses for loss in row)


def measure(setup: Setup) -> Measured:
    views = {norm: _view(setup, norm) for norm in NETWORKS}
    batch, plain = views["batch"], views["none"]
    return Measured(
        {
            "spread_batch": batch.spread,
            "spread_plain": plain.spread,
            "lower_batch": batch.lower,
            "lower_plain": plain.lower,
        },
        [
            Series(LINE.heading, name, views[norm].places, views[norm].line)
            for norm, name in NETWORKS.items()
        ],
        [
            Field(SLICE.heading, name, views[norm].places, views[norm].places, views[norm].losses)
            for norm, name in NETWORKS.items()
        ],
    )


def _view(setup: Setup, norm: str) -> View:
    data = setup.data
    network = replace(NETWORK, norm=norm).build(data, setup.seed)
    steps = setup.pick(100, 40)
    train(network, data, rate=RATE, steps=steps, seed=setup.seed, every=steps)
    network.train()
    feed = batches(data, 256, setup.seed + 1)
    (x, y), others = next(feed), next(feed)
    down, other = gradient(network, x, y)[1], gradient(network, *others)[1]
    across = other - down * (other @ down) / (down @ down)
    across *= down.norm() / across.norm()
    fineness = setup.pick(2, 1)  # points a step
    places = [n / fineness for n in range(-FARTHEST * fineness, FARTHEST * fineness + 1)]
    return View(places, loss_slice(network, x, y, -RATE * down, -RATE * across, places))


CLAIM = Claim(
    name="landscape",
    title="The loss around the weights",
    sentence="Seen from the weights in the midst of training, the loss is a gentle slope with "
    "batch norm, and a narrow valley between steep walls without.",
    source="a picture of ours, of what Santurkar et al. 2018 measure in section 3.1",
    experiment="Eight ReLU layers of 64 from He weights, 100 steps of rate 0.1 with batches of 60. "
    "Then the loss of 256 images, statistics taken from them, on a grid in the plane of their "
    f"gradient and that of 256 others: up to {FARTHEST} steps of rate 0.1 either way.",
    numbers=(
        Number("spread_batch", "largest loss by smallest in the slice, batch norm", "×"),
        Number("spread_plain", "the same without norm", "×"),
        Number("lower_batch", "share of the slice below the loss in its middle, batch norm", "%"),
        Number("lower_plain", "the same without norm", "%"),
    ),
    charts=(LINE, SLICE),
    measure=measure,
    caveat="A plane shows little of a space of thousands of dimensions. The unit is a step of one "
    "rate for both networks, and gradients are shorter with batch norm; but it is what training "
    "goes by.",
    seconds=4,
)
