"""The journey as parts of the demo's page."""

from __future__ import annotations

from normkit.demo.journey import FAULT, Journey, Station
from normkit.demo.training import ROUNDINGS
from normkit.models.auditing.page import sections_of
from normkit.report import (
    LEVELS,
    Curve,
    Dots,
    Fold,
    Folds,
    Plot,
    Plots,
    Section,
    Table,
    Text,
    Verdict,
)

DONE = {
    "trained": "Trained on the digits.",
    "spoiled": "Its running statistics replaced by those of the untrained network.",
    "recalibrated": "Its running statistics taken anew from the training images.",
    "folded": "Its norms folded into the convolutions before them.",
}


def verdict(journey: Journey) -> Verdict:
    """Whether everything went as it should, at the top of the page."""
    failed = [words for words, held in journey.checks.items() if not held]
    words = (
        f"Not as it should be. Expected, and not so: {'; '.join(failed)}"
        if failed
        else "A trained network was spoiled, found out, repaired and folded, and still agrees"
    )
    story = (
        f"The convolutional network recognized {_share(journey, journey.trained)} of the test "
        f"images, and its audit found {_found(journey.trained)}. With statistics of before its "
        f"training it recognized {_share(journey, journey.spoiled)}; the audit found "
        f"{_found(journey.spoiled)}. Recalibrated, it recognizes "
        f"{_share(journey, journey.repaired)}; the audit finds {_found(journey.repaired)}. "
        f"Folded, it has {len(journey.folding.refused) or 'no'} norms left and says the same digit "
        f"for {journey.alike} of {journey.images} images."
    )
    return Verdict("error" if failed else "good", words, paragraphs=[story])


def chapters(journey: Journey) -> list[Section]:
    """The journey, station by station."""
    return [_stations(journey), _training(journey), _audits(journey), _repair(journey),
            *_folding(journey)]  # fmt: skip


def _share(journey: Journey, station: Station) -> str:
    return f"{station.right / journey.images:.1%}"


def _found(station: Station) -> str:
    findings = station.report.findings if station.report else []
    return ", ".join(dict.fromkeys(f.rule for f in findings)) or "nothing"


def _stations(journey: Journey) -> Table:
    stations = (journey.trained, journey.spoiled, journey.repaired, journey.folded)
    rows = [
        (one.name, DONE[one.name], _share(journey, one), _found(one) if one.report else "no norms")
        for one in stations
    ]
    return Table(
        "The journey of one network",
        ("station", "what was done", "test accuracy", "audit"),
        rows,
        frozenset({"test accuracy"}),
    )


def _training(journey: Journey) -> Plots:
    points = journey.result.points
    steps = [point.step for point in points]
    run = journey.result.run
    return Plots(
        "How it was trained",
        [
            Plot("Training loss", "training steps", "cross-entropy (nats)",
                 Curve(steps, [point.loss for point in points]), log_y=True),
            Plot("Test accuracy", "training steps", "images right (%)",
                 Curve(steps, [100 * point.test_accuracy for point in points])),
        ],
        note=f"Rate {run.rate:g}, seed {run.seed}.",
    )  # fmt: skip


def _audits(journey: Journey) -> Folds:
    stations = (journey.trained, journey.spoiled, journey.repaired)
    folds = []
    for one in stations:
        assert one.report is not None
        inside = sections_of(one.report, prefix=one.name)
        level = max(("good", *(f.severity for f in one.report.findings)), key=LEVELS.index)
        folds.append(Fold(f"The {one.name} network", f"found: {_found(one)}", inside, level,
                          anchor=one.name, opened=one is journey.spoiled))  # fmt: skip
    return Folds(
        "Its audits",
        folds,
        note=f"The fault that was planted is called {FAULT}. Each audit saw all training images "
        "and knew how the network was trained, so that every rule could look.",
    )


def _repair(journey: Journey) -> Table:
    columns = (
        "layer",
        "largest shift of a mean (σ)",
        "largest KL of a channel",
        "elements a channel",
    )
    rows = [
        (one.name, f"{one.worst:.3g}", f"{one.divergence:.3g}", f"{one.elements:,}")
        for one in journey.shifts
    ]
    return Table(
        "What recalibrating changed",
        columns,
        rows,
        frozenset(columns[1:]),
        note=f"{journey.shifts.summary()}. Of each layer, the channel that moved farthest.",
    )


def _folding(journey: Journey) -> list[Section]:
    before, after = journey.logits
    agreement = journey.agreement
    words = [line.removeprefix("fold: ").rstrip(".") + "." for line in journey.folding.lines()]
    plot = Plot(
        "Logits of the test images", "before folding", "after folding",
        Dots(before, after), diagonal=True,
        note="A dot a logit; on the dashed line the two agree.",
    )  # fmt: skip
    note = (
        f"{journey.alike} of {journey.images} predictions alike. The largest difference of a logit "
        f"is {agreement.difference:.1e}, {agreement.roundings:.1f} roundings of the largest one "
        f"({ROUNDINGS} are allowed)."
    )
    return [
        Text("What folding did", [word[0].upper() + word[1:] for word in words]),
        Plots("Whether the folded network agrees", [plot], note=note),
    ]
