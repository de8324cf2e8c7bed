"""Rules about how a model is trained: batch sizes, momentum, optimizers, ranks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from normkit.models.auditing.evidence import Configuration, Evidence
from normkit.models.auditing.findings import Finding
from normkit.models.auditing.rule import NotEnoughError, Rule, rule
from normkit.models.auditing.rules.sets import (
    OFF,
    SHARE,
    is_initial,
    learns_statistics,
    moving,
    named,
    never_moves,
    numbers,
    option,
    positions,
    samples_in_a_set,
)
from normkit.models.measuring.drift import divergence, from_running
from normkit.models.sites import NormSite
from normkit.words import counted

Findings = Iterator[Finding]

# --- the batch ------------------------------------------------------------------------------------

SAMPLES = 8
ELEMENTS = 16
INFLATED = 21  # elements below which n / (n - 1) is more than 1.05


@rule(
    needs=("configuration.batch_size",),
    severity="warning",
    why="Statistics of a small batch are mostly noise: training is held back, "
    "and eval mode differs from it.",
)
def small_batch(self: Rule, evidence: Evidence) -> Findings:
    """Fewer than 8 samples, or than 16 elements a channel, behind a batch's statistics."""
    few = {}
    for site in moving(evidence.sites):
        samples, elements = _samples(evidence, site), _elements(evidence, site)
        if samples is None or _is_single(evidence, site, samples):
            continue
        if samples < SAMPLES:
            few[site] = samples
        elif elements is not None and elements < ELEMENTS:
            yield self.finding(
                site.name,
                f"statistics over {counted(round(elements), 'element')} a channel < {ELEMENTS}",
                _larger_sets(evidence.configuration),
                value=elements,
                threshold=float(ELEMENTS),
            )
    if few:
        least = min(few.values())
        yield self.finding(
            "" if len(few) > 1 else next(iter(few)).name,
            f"statistics over {counted(least, 'sample')} < {SAMPLES} in {named(list(few))}",
            _larger_sets(evidence.configuration),
            value=float(least),
            threshold=float(SAMPLES),
        )


def _samples(evidence: Evidence, site: NormSite) -> int | None:
    """In the smallest set of a full batch."""
    known = evidence.configuration
    assert known.batch_size is not None
    return samples_in_a_set(site, known.batch_size, known.world_size)


def _elements(evidence: Evidence, site: NormSite) -> float | None:
    samples, each = _samples(evidence, site), positions(evidence, site)
    return None if samples is None or each is None else samples * each


def _larger_sets(known: Configuration) -> str:
    ranks = known.world_size or 1
    together = (known.batch_size or 0) * ranks
    if ranks > 1 and together >= ELEMENTS:
        return (
            "normkit.torch.SyncBatchNorm.convert_sync_batchnorm(model) takes statistics over "
            f"{counted(together, 'sample')}."
        )
    return (
        f'A batch of at least {ELEMENTS}, or normkit.models.convert(model, to="group"); '
        "in a pretrained model normkit.models.freeze(model)."
    )


@rule(
    needs=("configuration.batch_size",),
    severity="error",
    why="The variance of one element is 0: torch.nn raises an error there, "
    "and other layers give a constant or NaN.",
)
def single_element_batch(self: Rule, evidence: Evidence) -> Findings:
    """A batch, or the rest of the samples at an epoch's end, that leaves a norm one element."""
    known = evidence.configuration
    assert known.batch_size is not None
    rest = 0
    if known.dataset_size is not None and not known.drop_last:
        rest = known.dataset_size % known.batch_size
    for site in moving(evidence.sites):
        if option(site, "on_small_batch") == "running":
            continue
        for samples, repair in ((known.batch_size, _larger_sets(known)),
                                (rest, "drop_last=True in the DataLoader")):  # fmt: skip
            smallest = samples_in_a_set(site, samples, known.world_size)
            if samples and _is_single(evidence, site, smallest):
                which = "a batch" if samples == known.batch_size else "the last batch of an epoch"
                yield self.finding(
                    site.name,
                    f"{which} has {counted(samples, 'sample')}, a sample one position: "
                    "the statistics are over 1 element < 2",
                    repair,
                    value=1.0,
                    threshold=2.0,
                )
                break
    if known.dataset_size is None and known.batch_size > 1:
        raise NotEnoughError("the training configuration: pass dataset_size=")


def _is_single(evidence: Evidence, site: NormSite, samples: int | None) -> bool:
    return samples == 1 and positions(evidence, site) == 1


@rule(
    needs=("configuration.batch_size",),
    severity="warning",
    why="Training divides by n, the running variance by n - 1: with few elements every layer's "
    "output is smaller in eval mode than it was in training.",
    yields_to=("small-batch", "single-element-batch"),
)
def bessel_inflation(self: Rule, evidence: Evidence) -> Findings:
    """Running variances that are more than 5 % above what training divided by."""
    for site in moving(evidence.sites):
        elements = _elements(evidence, site)
        if not site.tracks or elements is None or not 1 < elements < INFLATED:
            continue
        if option(site, "mean_only"):
            continue
        factor = elements / (elements - 1)
        yield self.finding(
            site.name,
            f"n / (n - 1) = {factor:.3f} > 1.05 with {counted(round(elements), 'element')} a "
            "channel",
            f"A batch of at least {INFLATED} elements a channel, or "
            'normkit.models.convert(model, to="group").',
            value=factor,
            threshold=1.05,
        )


@rule(
    needs=("configuration.accumulate",),
    severity="warning",
    why="Gradients add up over the micro-batches, statistics do not: each is normalized alone, "
    "and the running statistics move at each.",
)
def gradient_accumulation(self: Rule, evidence: Evidence) -> Findings:
    """Batch norm where several micro-batches make a step; info where each is large by itself."""
    known = evidence.configuration
    steps, sites = known.accumulate or 1, moving(evidence.sites)
    if steps < 2 or not sites:
        return
    micro = known.batch_size
    large = micro is not None and micro >= 32
    moved = [s.momentum for s in sites if learns_statistics(s) and s.momentum]
    decay = f"; a step leaves {(1 - moved[0]) ** steps:.0%} of them" if moved else ""
    size = "a part" if micro is None else counted(micro, "sample")
    yield self.finding(
        "",
        f"{counted(steps, 'micro-batch')} a step: statistics see {size} of the batch "
        f"in {named(sites)}{decay}",
        "Nothing, if the micro-batch is large enough by itself; else "
        'normkit.models.convert(model, to="group"), or fewer and larger micro-batches.',
        severity="info" if large else "warning",
        value=float(steps),
        threshold=2.0,
    )


# --- momentum -------------------------------------------------------------------------------------

FLIPPED = 0.9
REMAINS = 0.01


@rule(
    needs=("weights",),
    severity="warning",
    why="The running statistics are those of eval mode: they must cover many batches "
    "and keep nothing of their first values.",
)
def momentum(self: Rule, evidence: Evidence) -> Findings:
    """Momenta with which the running statistics never, or always, or barely move."""
    sites = [s for s in evidence.sites if learns_statistics(s) and s.momentum is not None
             and option(s, "running") in (None, "ema")]  # fmt: skip
    began = _beginners(evidence, sites)
    for site in sites:
        weight = site.momentum or 0.0
        setting = f"model.get_submodule({site.name!r}).momentum"
        if never_moves(site):
            fresh = is_initial(site)
            yield self.finding(
                site.name,
                "momentum 0: batches never move the running statistics",
                f"{setting} = 0.1, then normkit.models.recalibrate(model, data)" if fresh else
                f"{setting} = 0.1, or normkit.models.freeze(model) if they should stand still",
                severity="error" if fresh else self.severity,
                value=0.0,
            )  # fmt: skip
        elif not 0 <= weight <= 1:
            yield self.finding(
                site.name,
                f"momentum {weight:g} is not between 0 and 1: the statistics diverge",
                f"{setting} = 0.1, then normkit.models.recalibrate(model, data)",
                severity="error",
                value=weight,
            )
        elif weight >= FLIPPED:
            last = "the last batch alone" if weight == 1 else "little but the last batch"
            usual = 0.1 if weight == 1 else 1 - weight
            yield self.finding(
                site.name,
                f"momentum {weight:g} >= {FLIPPED}: {last} counts",
                f"{setting} = {usual:.2g} (Keras counts it from the other end), "
                "then normkit.models.recalibrate(model, data)",
                value=weight,
                threshold=FLIPPED,
            )
        elif site in began:
            left = (1 - weight) ** (site.batches or 0)
            seen = counted(site.batches or 0, "batch")
            yield self.finding(
                site.name,
                f"{left:.0%} > {REMAINS:.0%} of the first values, 0 and 1, is left after {seen} "
                f"at momentum {weight:g}",
                "normkit.models.recalibrate(model, data)",
                value=left,
                threshold=REMAINS,
            )


def _beginners(evidence: Evidence, sites: Sequence[NormSite]) -> list[NormSite]:
    """Layers out of training in which mean 0 and variance 1 still weigh enough to be seen.

    The variance is then nowhere below that weight. Where a layer that counted as many batches says
    otherwise, the statistics were measured afresh, and the count is that of another average.
    """
    found, refuted = [], set()
    for site in sites:
        weight = site.momentum or 0.0
        if not site.batches or site.training or not 0 < weight < FLIPPED:
            continue
        left = (1 - weight) ** site.batches
        mean, var = numbers(site.mean), numbers(site.var)
        if left <= REMAINS or mean is None or var is None or not var.isfinite().all():
            continue
        if bool((var < left * (1 - 1e-3)).any()) or _agrees(evidence, site, mean, var):
            refuted.add((weight, site.batches))
        elif float((_debiasing(mean, var, left, site.eps or 0.0) > OFF).double().mean()) >= SHARE:
            found.append(site)
    return [site for site in found if (site.momentum, site.batches) not in refuted]


def _debiasing(mean: torch.Tensor, var: torch.Tensor, left: float, eps: float) -> torch.Tensor:
    """Divergence of what the statistics were without their first values."""
    own = ((var - left) / (1 - left)).clamp_min(0)
    shift = mean * left / (1 - left)
    deviation = var + eps
    return divergence(shift / deviation.sqrt(), (own + eps) / deviation)


def _agrees(evidence: Evidence, site: NormSite, mean: torch.Tensor, var: torch.Tensor) -> bool:
    """Whether data show that the statistics are right."""
    seen = evidence.study.layers.get(site.name) if evidence.study else None
    if seen is None or seen.in_training is None or mean.dim() != 1:
        return False
    drift = from_running(mean, var, seen.in_training, site.eps, float(seen.samples))
    return float((drift.divergence > OFF + drift.chance).double().mean()) < SHARE


# --- what learns ----------------------------------------------------------------------------------


@rule(
    needs=("weights",),
    severity="warning",
    why="Without gradients gamma and beta stand still, but in training mode the running statistics "
    "move on: the frozen layer changes.",
)
def half_frozen(self: Rule, evidence: Evidence) -> Findings:
    """Norms in training mode whose gamma and beta take no gradient.

    Where nothing in the model does, it may be a copy that follows another: that is worth knowing.
    """
    tensors = evidence.tensors.values()
    others = any(t.requires_grad for t in tensors) or any(s.learns for s in evidence.sites)
    for site in evidence.sites:
        if site.learns is not False or not site.training or not learns_statistics(site):
            continue
        if site.momentum == 0:
            continue
        yield self.finding(
            site.name,
            "gamma and beta take no gradient, the running statistics move at each batch",
            f"normkit.models.freeze(model.get_submodule({site.name!r})), or its .eval() after each "
            "model.train()",
            severity=self.severity if others else "info",
        )


@rule(
    needs=("configuration.optimizer",),
    severity="info",
    why="Decay pulls gains toward 0, which is no simpler a function than 1; "
    "many recipes leave gamma and beta out, and some gain by it.",
)
def decayed_affine(self: Rule, evidence: Evidence) -> Findings:
    """gamma and beta in a group of the optimizer with weight decay."""
    decays = {id(p): group["weight_decay"]
              for group in getattr(evidence.configuration.optimizer, "param_groups", ())
              if group.get("weight_decay") for p in group["params"]}  # fmt: skip
    sites = [s for s in evidence.sites if any(id(t) in decays for t in (s.gamma, s.beta))]
    if not sites:
        return
    largest = max(decays[id(t)] for s in sites for t in (s.gamma, s.beta) if id(t) in decays)
    yield self.finding(
        "",
        f"weight_decay {largest:g} on gamma and beta of {named(sites)}",
        "If it was not meant: a group with weight_decay=0 for parameters of one dimension.",
        value=float(largest),
        threshold=0.0,
    )


# --- ranks ----------------------------------------------------------------------------------------


@rule(
    needs=("configuration.world_size", "configuration.broadcast_buffers"),
    severity="warning",
    why="Each rank keeps running statistics of its own samples, and they drift apart: "
    "a checkpoint holds those of the rank that wrote it.",
)
def unsynced_ranks(self: Rule, evidence: Evidence) -> Findings:
    """Several ranks, whose running statistics nothing brings together.

    Buffers of other ranks are not asked for: an audit on one rank would wait for them for ever.
    """
    known = evidence.configuration
    sites = [s for s in moving(evidence.sites) if s.tracks and not s.synced]
    if (known.world_size or 1) < 2 or known.broadcast_buffers or not sites:
        return
    yield self.finding(
        "",
        f"{counted(known.world_size or 1, 'rank')}, broadcast_buffers=False and {named(sites)} not "
        "synchronized",
        "normkit.torch.SyncBatchNorm.convert_sync_batchnorm(model), or "
        "normkit.torch.sync_statistics(model) before each save",
        value=float(known.world_size or 1),
        threshold=2.0,
    )
