"""The demo's page: the journey of one network, the learning curves of all, a look at the lab."""

from __future__ import annotations

from collections.abc import Sequence

from normkit.demo.chapters import chapters, verdict
from normkit.demo.journey import Journey
from normkit.demo.lab import Visit
from normkit.demo.networks import DESCRIPTION, Init, Network
from normkit.demo.summary import COLUMNS, NUMERIC, Group
from normkit.demo.training import BATCH, EVERY, Result
from normkit.report import Chart, Line, Section, Table, Text, page

TITLE = "Batch norm on digits: learned with and without, then spoiled, repaired and folded away"


def render(
    groups: Sequence[Group],
    found: Sequence[str],
    checked: str,
    init: Init,
    journey: Journey,
    visit: Visit,
) -> str:
    sections: list[Section] = [
        verdict(journey),
        *chapters(journey),
        Text("With batch norm and without: what the runs show", [*found, checked]),
        Table("The figures", COLUMNS, [group.row for group in groups], NUMERIC, note=_note(groups)),
    ]
    networks = dict.fromkeys(group.network for group in groups)
    for network in networks:
        sections += _charts(network, [group for group in groups if group.network == network])
    sections.append(Text("How they were run", _method(groups, init)))
    sections += visit.sections()
    return page(TITLE, sections)


def _note(groups: Sequence[Group]) -> str:
    return (
        f"{_seeds(groups)} Steps are listed seed by seed, measured every {EVERY} steps in eval "
        "mode; accuracies are means; seconds are those of all seeds, measuring included."
    )


def _seeds(groups: Sequence[Group]) -> str:
    seeds = [result.run.seed for result in groups[0].results]
    return f"Seeds {seeds[0]} to {seeds[-1]}." if len(seeds) > 1 else f"Seed {seeds[0]}."


def _charts(network: Network, groups: Sequence[Group]) -> list[Section]:
    name = network.capitalize()
    rates = sorted({group.rate for group in groups})
    results = [result for group in groups for result in group.results]
    note = "A line a seed. Solid: with batch norm; dashed: without."
    return [
        Chart(
            f"{name}: training loss",
            "training steps",
            "cross-entropy (nats)",
            [_line(result, rates, "loss") for result in results],
            log_y=True,
            y_range=(1e-4, 1e1),
            note=f"{note} A line that leaves the chart has a loss above 10.",
        ),
        Chart(
            f"{name}: test accuracy",
            "training steps",
            "images right (%)",
            [_line(result, rates, "test_accuracy", 100) for result in results],
            y_range=(0, 101),
            note=note,
        ),
    ]


def _line(result: Result, rates: Sequence[float], field: str, factor: float = 1) -> Line:
    run = result.run
    return Line(
        name=f"{run.norm if run.batch_norm else 'no norm'}, rate {run.rate:g}",
        x=[point.step for point in result.points],
        y=[factor * getattr(point, field) for point in result.points],
        colour=rates.index(run.rate),
        dashed=not run.batch_norm,
    )


WEIGHTS: dict[Init, str] = {
    "torch": (
        "The initial weights are PyTorch's default, which are small for these networks: at the "
        "small rate, much of what batch norm gains is that it undoes this. Run with --init he to "
        "see how little of the gain remains there."
    ),
    "he": (
        "The initial weights are He's, which already suit these networks: at the small rate batch "
        "norm has little left to gain. Run with --init torch for PyTorch's default."
    ),
}


def _method(groups: Sequence[Group], init: Init) -> list[str]:
    names = dict.fromkeys(group.network for group in groups)
    networks = "; ".join(f"{name}: {DESCRIPTION[name]}" for name in names)
    data = (
        "The images are scikit-learn's 8 by 8 digits, 1297 to train on and 500 to test with; a "
        "difference of one point of test accuracy is within chance."
    )
    descent = (
        f"Plain gradient descent, batches of {BATCH}, no momentum, no decay, no augmentation. "
        "With batch norm and without, a seed has the same initial weights and the same batches."
    )
    limits = (
        "The rates were chosen where the two ways differ. The output layer is not normalized: for "
        "the convolutional network batch norm gained nothing at rates of 0.4 and more, and at 2 "
        "both ways failed."
    )
    return [
        f"The networks are {networks}; ReLU after each hidden layer, batch norm before the ReLU.",
        data,
        descent,
        WEIGHTS[init],
        limits,
    ]
