"""A trained network is audited, spoiled, found out, recalibrated and folded, and still agrees."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from normkit.demo.networks import build
from normkit.demo.training import BATCH, Agreement, Result, Run
from normkit.lab.data import Data
from normkit.models import FoldReport, Report, Shifts, audit, fold_with_report, recalibrate

FAULT = "stale-statistics"
RATE, STEPS = 0.2, 200


def wanted(seed: int, init: str) -> Run:
    """The network that goes on the journey: the convolutional one, trained until it has settled."""
    return Run("convolutional", True, RATE, STEPS, seed, "he" if init == "he" else "torch")


@dataclass(frozen=True, eq=False)
class Station:
    """The network as it stood at one time.

    Args:
        name: what had been done to it.
        right: test images that it recognized.
        report: its audit; None where it has no norms left.
    """

    name: str
    right: int
    report: Report | None


@dataclass(frozen=True, eq=False)
class Journey:
    """What was done and measured.

    Args:
        result: of the training.
        images: to test with.
        trained, spoiled, repaired, folded: the stations.
        shifts: what recalibrating changed.
        folding: what folding did.
        logits: of the test images, before folding and after, one after the other.
        alike: test images for which both say the same digit.
        agreement: of those logits.
    """

    result: Result
    images: int
    trained: Station
    spoiled: Station
    repaired: Station
    folded: Station
    shifts: Shifts
    folding: FoldReport
    logits: tuple[list[float], list[float]]
    alike: int
    agreement: Agreement

    @property
    def checks(self) -> dict[str, bool]:
        """What the journey is to show, and whether it did."""
        spoiled = self.spoiled.report
        found = {finding.rule for finding in spoiled.findings} if spoiled else set()
        return {
            "nothing was found in the trained network": _clean(self.trained),
            "the spoiled statistics were found, and nothing else": found == {FAULT},
            "nothing was found after recalibrating": _clean(self.repaired),
            "all norms were folded": not self.folding.refused and bool(self.folding.folded),
            "all predictions agree": self.alike == self.images and self.agreement.holds,
        }

    def to_dict(self) -> dict[str, Any]:
        """What was measured, as values."""
        stations = (self.trained, self.spoiled, self.repaired, self.folded)
        return {
            "images": self.images,
            "stations": [
                {
                    "name": one.name,
                    "right": one.right,
                    "findings": None if one.report is None else one.report.to_dict()["findings"],
                }
                for one in stations
            ],
            "recalibrated": self.shifts.to_dict(),
            "folded": self.folding.to_dict(),
            "alike": self.alike,
            "difference": self.agreement.difference,
            "checks": self.checks,
        }

    @property
    def holds(self) -> bool:
        return all(self.checks.values())


def _clean(station: Station) -> bool:
    return station.report is not None and not station.report.findings


def travel(result: Result, data: Data, say: Callable[[str], None]) -> Journey:
    """Take a trained network on the journey; ``say`` takes a short line at each station."""
    network = result.network
    assert network is not None, "train() keeps the network"
    training = (data.train_images, data.train_labels)

    def station(name: str, model: nn.Module) -> Station:
        report = None if name == "folded" else _audit(model, training, result.run)
        found = Station(name, _right(model, data), report)
        say(line(found, len(data.test_labels)))
        return found

    trained = station("trained", network)
    model = spoil(network, result.run, training)
    spoiled = station("spoiled", model)
    shifts = recalibrate(model, training, progress=False)
    repaired = station("recalibrated", model)
    small, folding = fold_with_report(model, data.test_images)
    folded = station("folded", small)
    before, after = _logits(model, data), _logits(small, data)
    journey = Journey(
        result=result,
        images=len(data.test_labels),
        trained=trained,
        spoiled=spoiled,
        repaired=repaired,
        folded=folded,
        shifts=shifts,
        folding=folding,
        logits=(before.flatten().tolist(), after.flatten().tolist()),
        alike=int((before.argmax(1) == after.argmax(1)).sum()),
        agreement=Agreement(float((after - before).abs().max()), float(before.abs().max())),
    )
    say(compared(journey))
    return journey


def spoil(network: nn.Module, run: Run, training: tuple[torch.Tensor, torch.Tensor]) -> nn.Module:
    """A copy with the running statistics of the network before its training.

    So it goes where statistics are frozen too early, or weights are loaded without them.
    """
    young = build(run.network, run.batch_norm, run.init, run.seed).eval()
    recalibrate(young, training, progress=False)
    stale = {name: one for name, one in young.state_dict().items() if "running_" in name}
    spoiled = copy.deepcopy(network)
    spoiled.load_state_dict(stale, strict=False)
    return spoiled


def line(station: Station, images: int) -> str:
    """One station in words."""
    words = f"  {station.name:<13} {station.right / images:6.1%} right"
    report = station.report
    if report is None:
        return words
    if not report.findings:
        return f"{words}; audit: nothing found by {len(report.ran)} rules"
    rules = dict.fromkeys(f"{f.rule} ({f.severity}) at layer {f.site}" for f in report.findings)
    return f"{words}; audit: {', '.join(rules)}"


def compared(journey: Journey) -> str:
    """The comparison of the network before folding and after, in words."""
    folding, agreement = journey.folding, journey.agreement
    saved = folding.parameters_before - folding.parameters_after
    norms = len(folding.folded) + len(folding.refused)
    return (
        f"  compared      {len(folding.folded)} of {norms} norms folded, {saved} parameters fewer; "
        f"{journey.alike} of {journey.images} predictions alike, logits within "
        f"{agreement.roundings:.1f} roundings ({agreement.difference:.1e})"
    )


def _audit(model: nn.Module, training: tuple[torch.Tensor, torch.Tensor], run: Run) -> Report:
    """With all that is known of the training, so that every rule can look."""
    return audit(
        model,
        training,
        name=f"the {run.network} network",
        batch_size=BATCH,
        dataset_size=len(training[1]),
        drop_last=True,
        optimizer=torch.optim.SGD(model.parameters(), lr=run.rate),
        world_size=1,
        broadcast_buffers=True,
        accumulate=1,
        averaged=False,
        progress=False,
    )


@torch.no_grad()
def _logits(model: nn.Module, data: Data) -> torch.Tensor:
    return model.eval()(data.test_images)


def _right(model: nn.Module, data: Data) -> int:
    return int((_logits(model, data).argmax(1) == data.test_labels).sum())
