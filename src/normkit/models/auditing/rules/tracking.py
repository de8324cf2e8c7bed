"""The rule about running statistics that no batch has moved."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from normkit.models.auditing.evidence import Evidence
from normkit.models.auditing.findings import Finding
from normkit.models.auditing.rule import Rule, rule
from normkit.models.auditing.rules.sets import (
    is_initial,
    learns_statistics,
    never_moves,
    numbers,
)
from normkit.models.auditing.rules.statistics import untracked_layers
from normkit.models.sites import NormSite
from normkit.words import counted

Tensor = torch.Tensor
Findings = Iterator[Finding]


@rule(
    needs=("weights",),
    severity="error",
    why="In eval mode the layer normalizes with mean 0 and variance 1 whatever its input is, "
    "which is not what it does in training.",
)
def never_tracked(self: Rule, evidence: Evidence) -> Findings:
    """Running statistics as a new layer has them, where they are needed.

    That is beside gamma and beta that have been trained, and in eval mode on data that they do not
    fit. A new model that is to be trained is in training mode: nothing is wrong with it. Nor is
    without data: what its input would be is not known then.
    """
    trained = _beside_trained_weights(evidence.sites)
    for site in trained:
        seen = (
            "an unknown number of batches"
            if site.batches is None
            else counted(site.batches, "batch")
        )
        yield self.finding(
            site.name,
            f"mean 0 and variance 1 in every channel after {seen}, "
            f"while {'beta' if _varies(site.beta) else 'gamma'} has been trained",
            "normkit.models.recalibrate(model, data)",
        )
    unfit = [each for each in untracked_layers(evidence) if each.site not in trained]
    if unfit and not trained and is_untouched(evidence.sites):
        worst = max(unfit, key=lambda each: each.divergence)
        yield self.finding(
            "",
            "no norm has seen a batch, and the model is in eval mode, where mean 0 and variance 1 "
            f"do not fit the data in {counted(len(unfit), 'layer')}, least of all in "
            f"{worst.site.name or 'the model itself'!r}: {worst.words()}",
            "Load the trained weights (weights=); a new model is to be trained first: "
            "model.train().",
            value=worst.divergence,
            threshold=worst.threshold,
        )
        return
    for each in unfit:
        yield self.finding(
            each.site.name,
            f"it has seen no batch, and is in eval mode, where mean 0 and variance 1 do not fit "
            f"the data: {each.words()}",
            "normkit.models.recalibrate(model, data); or train it first.",
            value=each.divergence,
            threshold=each.threshold,
        )


def is_untouched(sites: Sequence[NormSite]) -> bool:
    """Whether there are running statistics, and all are those of a model that was just made.

    A frozen layer with a scale and shift of its own may have its statistics in these.
    """
    keepers = [site for site in sites if site.tracks]
    return bool(keepers) and all(
        is_initial(site) and not site.batches and not (site.frozen and _has_weights(site))
        for site in keepers
    )


def _beside_trained_weights(sites: Sequence[NormSite]) -> list[NormSite]:
    """Layers that hold the statistics of a new one, and weights that learned.

    Zeros and ones that were counted as batches are not told apart: the values decide.
    """
    tracked = any(site.kind == "batch" and site.tracks and not is_initial(site) for site in sites)
    found = [
        site for site in sites
        if learns_statistics(site)
        and is_initial(site)
        and not never_moves(site)  # which the rule on momentum says
        and (_varies(site.beta) or (tracked and _varies(site.gamma)))
    ]  # fmt: skip
    # A new model's gamma and beta may begin at random.
    return [] if not tracked and _are_drawn(found) else found


def _varies(tensor: Tensor | None) -> bool:
    """Whether the values differ from each other, as those of most initializations do not."""
    values = numbers(tensor)
    return values is not None and bool((values != values.reshape(-1)[0]).any())


def _has_weights(site: NormSite) -> bool:
    return _varies(site.gamma) or _varies(site.beta)


def _are_drawn(sites: Sequence[NormSite]) -> bool:
    """Whether gamma and beta of several layers look like draws from one distribution each.

    Layers that were trained differ in mean or spread; this takes much for chance.
    """
    if len(sites) < 2:
        return False
    for tensors in ([s.gamma for s in sites], [s.beta for s in sites]):
        layers = [values for t in tensors if (values := numbers(t)) is not None]
        spreads = [(values - values.mean()).abs() for values in layers]
        if _differ(layers) or _differ(spreads):
            return False
    return True


def _differ(layers: Sequence[Tensor]) -> bool:
    """Whether the layers' means differ by more than chance: chi-squared, at odds of 1 in 10^4."""
    within = sum(float(v.var(correction=0)) * v.numel() for v in layers)
    total = sum(v.numel() for v in layers)
    mean = sum(float(v.sum()) for v in layers) / max(total, 1)
    between = sum(v.numel() * (float(v.mean()) - mean) ** 2 for v in layers)
    freedom = len(layers) - 1
    return between > (freedom + 4 * (2 * freedom) ** 0.5 + 8) * within / max(total, 1)
