"""With batch norm, loss and gradient change less along the gradient."""

from __future__ import annotations

from dataclasses import replace
from statistics import median

from normkit.lab.claim import Axes, Claim, Measured, Number, Series
from normkit.lab.kit.networks import Dense
from normkit.lab.kit.probes import Line, along_gradient, ratio
from normkit.lab.kit.training import Step, train
from normkit.lab.setup import Setup

NETWORK = Dense((64,) * 8)
RATE = 0.1
EVERY = 4
LENGTHS = tuple(RATE * factor for factor in (0.5, 1, 2, 4))
NETWORKS = {"batch": "batch norm", "none": "no norm"}
LOSS = Axes(
    "Loss along the gradient", "training step", "range of the loss (nats)", log_y=True,
    note="Largest loss less smallest, behind half a step to four steps.",
)  # fmt: skip
CHANGE = Axes(
    "How far the gradient predicts", "training step", "change of the gradient (of its size)",
    log_y=True, note="The largest behind half a step to four steps.",
)  # fmt: skip


def measure(setup: Setup) -> Measured:
    lines = {norm: _lines(setup, norm) for norm in NETWORKS}
    series = []
    for norm, name in NETWORKS.items():
        steps = [float(EVERY * n) for n in range(1, len(lines[norm]) + 1)]
        ranges = [line.loss_range for line in lines[norm]]
        changes = [line.relative_change for line in lines[norm]]
        series += [
            Series(LOSS.heading, name, steps, ranges),
            Series(CHANGE.heading, name, steps, changes),
        ]
    return Measured(
        {
            "loss": _share(lines, "loss_range"),
            "gradient": _share(lines, "relative_change"),
            "smoothness": _share(lines, "smoothness"),
        },
        series,
    )


def _lines(setup: Setup, norm: str) -> list[Line]:
    network = replace(NETWORK, norm=norm).build(setup.data, setup.seed)
    found: list[Line] = []

    def probe(step: Step) -> None:
        if step.number % EVERY == 0:
            found.append(along_gradient(network, step.x, step.y, LENGTHS))

    train(
        network, setup.data, rate=RATE, steps=setup.pick(200, 60), seed=setup.seed, every=200,
        before=probe,
    )  # fmt: skip
    return found


def _share(lines: dict[str, list[Line]], quantity: str) -> float:
    """The median over the steps with batch norm, by the one without."""
    batch, plain = (median(getattr(one, quantity) for one in lines[norm]) for norm in NETWORKS)
    return ratio(batch, plain)


CLAIM = Claim(
    name="smoothness",
    title="Batch norm makes the loss smoother",
    sentence="Along the gradient the loss varies less with batch norm, and the gradient found "
    "there is nearer to the one that the step was taken with.",
    source="Santurkar et al. 2018, section 3.1 and figure 4",
    paper="VGG on CIFAR-10, steps of half to four times the rate: loss range and gradient "
    "distance smaller by about two orders of magnitude (read off the plot, no figures given)",
    experiment="Eight ReLU layers of 64 from He weights, rate 0.1, batches of 60, 200 steps. At "
    "every fourth step: loss and gradient at 0.5, 1, 2 and 4 times the rate down the gradient; "
    "the figures are medians over the steps.",
    numbers=(
        Number("loss", "range of the loss, as a share of that without norm", "%", at_most=1 / 5),
        Number(
            "gradient", "relative change of the gradient, as a share of that without norm", "%",
            at_most=1 / 2,
        ),
        Number("smoothness", "effective smoothness constant, as a share of that without", "%"),
    ),
    charts=(LOSS, CHANGE),
    measure=measure,
    caveat="Both networks take steps of one size, so that one with smaller gradients, as from "
    "smaller weights, looks smoother by itself. The paper's third measure, change of the gradient "
    "by distance, differs far less here than the other two.",
    seconds=3,
)  # fmt: skip
