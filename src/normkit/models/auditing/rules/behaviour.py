"""Rules about what a model does when it runs on batches."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from normkit.models.auditing.evidence import Evidence, Labels
from normkit.models.auditing.findings import Finding
from normkit.models.auditing.rule import NotEnoughError, Rule, rule
from normkit.models.auditing.rules.sets import is_initial
from normkit.models.auditing.rules.statistics import SAMPLES, enough, stale_layers

Findings = Iterator[Finding]


# --- statistics of the batch at inference ---------------------------------------------------------


@rule(
    needs=("layers",),
    severity="error",
    why="The answer for one sample depends on the others in its batch, and fails or means nothing "
    "for a sample alone.",
)
def batch_statistics_at_inference(self: Rule, evidence: Evidence) -> Findings:
    """Batch norms that normalize with the batch at hand although the model is in eval mode."""
    study = evidence.study
    if study is not None and study.alone is True:
        return
    confirmed = study is not None and study.alone is False
    words = "; the first sample of a batch comes out otherwise alone" if confirmed else ""
    for site in evidence.sites:
        if site.kind != "batch" or (study is not None and site.name not in study.layers):
            continue
        if not site.tracks:
            yield self.finding(
                site.name,
                f"it has no running statistics{words}",
                "Make it with track_running_stats=True, then "
                "normkit.models.recalibrate(model, data); or use group norm.",
            )
        elif site.uses_batch and not evidence.model.training:
            yield self.finding(
                site.name,
                f"it is in training mode, the model is in eval mode{words}",
                "model.eval() before inference, after whatever set this layer to training.",
            )


# --- batches --------------------------------------------------------------------------------------


@rule(
    needs=("labels",),
    severity="warning",
    why="Batch norm takes a batch for a sample of the whole data; where classes come together, "
    "the statistics tell the class, which they do not in eval mode.",
    yields_to=("shared-across-domains",),
)
def correlated_batches(self: Rule, evidence: Evidence) -> Findings:
    """Batches in which labels are less mixed than chance would mix them.

    A sorted test set does no harm to a model whose statistics fit: then it is worth knowing only.
    """
    labels = evidence.study.labels if evidence.study else None
    if labels is None or not any(s.kind == "batch" and not s.frozen for s in evidence.sites):
        return
    if len(labels.sizes) < 2 or len(labels.counts) < 2:
        raise NotEnoughError("more data: two batches with labels of two classes")
    expected, doubt = mixed_entropy(labels)
    if labels.entropy >= min(MIXED * expected, expected - 5 * doubt):
        return
    harmed = evidence.study is not None and evidence.study.samples >= SAMPLES
    harmed = harmed and bool(stale_layers(evidence))
    yield self.finding(
        "",
        f"entropy of the labels in a batch {labels.entropy:.2f} nats, of mixed batches "
        f"{expected:.2f} (threshold {MIXED} of it)",
        "If the model trains on these batches: DataLoader(..., shuffle=True). Only tested on them, "
        "a model in eval mode does not mind.",
        severity="warning" if harmed else "info",
        value=labels.entropy,
        threshold=MIXED * expected,
    )


#: Entropy of the labels in a batch / that of mixed batches.
MIXED = 0.7


def mixed_entropy(labels: Labels, batches: int = 200) -> tuple[float, float]:
    """Mean entropy of batches whose labels are drawn by chance, and what it may be off by.

    Small batches have less than the whole data, by far more than their logarithm says, so they are
    drawn and counted.

    >>> mean, _ = mixed_entropy(Labels([500, 500], [3] * 10, 0.0))
    >>> round(mean, 1), round(math.log(2), 1)
    (0.5, 0.7)
    """
    draw = np.random.default_rng(0)
    counts, sizes = np.asarray(labels.counts), np.asarray(labels.sizes)
    found = []
    for size in draw.choice(sizes, batches):
        drawn = draw.multivariate_hypergeometric(counts, min(int(size), int(counts.sum())))
        share = drawn[drawn > 0] / drawn.sum()
        found.append(float(-(share * np.log(share)).sum()))
    return float(np.mean(found)), float(np.std(found)) / math.sqrt(len(sizes))


# --- eval mode against training -------------------------------------------------------------------


@rule(
    needs=("labels",),
    severity="error",
    why="The same weights know more with statistics of the batch than with their running "
    "statistics: these are wrong somewhere.",
    yields_to=(
        "bad-buffers", "never-tracked", "momentum", "low-precision-buffers", "stale-statistics",
        "averaged-weights", "dropout-upstream", "batch-statistics-at-inference",
        "shared-across-domains", "correlated-batches",
    ),
)  # fmt: skip
def eval_train_gap(self: Rule, evidence: Evidence) -> Findings:
    """Accuracy that is better with the batch's statistics than with the running ones."""
    moving = [s for s in evidence.sites if s.kind == "batch" and s.tracks and not s.frozen]
    if not moving or all(is_initial(site) for site in moving):
        return
    enough(evidence)
    seen = evidence.study.accuracy if evidence.study else None
    if seen is None:
        raise NotEnoughError("scores by class for batches of at least 8 samples with labels")
    gap = (seen.trained - seen.evaluated) / seen.samples
    doubt = math.sqrt(seen.only_trained + seen.only_evaluated) / seen.samples
    if gap > max(GAP, 4 * doubt):
        yield self.finding(
            "",
            f"accuracy {seen.evaluated / seen.samples:.1%} in eval mode, "
            f"{seen.trained / seen.samples:.1%} on the same data with batch statistics "
            f"(threshold {GAP:.0%} apart)",
            "normkit.models.recalibrate(model, data); if the gap stays, look at the channels that "
            "differ most.",
            value=gap,
            threshold=GAP,
        )


#: Accuracy with batch statistics minus accuracy in eval mode.
GAP = 0.05
