"""Rules that compare running statistics with what the data really gives."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import torch

from normkit.models.auditing.evidence import Evidence, Observation
from normkit.models.auditing.findings import Finding
from normkit.models.auditing.rule import NotEnoughError, Rule, rule
from normkit.models.auditing.rules.sets import (
    channels_where,
    is_initial,
    never_moves,
    numbers,
    option,
)
from normkit.models.graphs.graph import Graph, Node
from normkit.models.measuring.drift import Drift, between, from_running
from normkit.models.measuring.spread import Spread
from normkit.models.sites import NormSite
from normkit.words import counted

Tensor = torch.Tensor
Findings = Iterator[Finding]

#: Divergence from which running statistics count as stale, and the share of it that has to be the
#: layer's own fault. Models in the middle of their training stay below 0.2, trained ones below 0.1
#: where the training data was augmented and the audited is not, and below 0.02 where it was not.
STALE, OWN = 0.2, 0.1
#: Divergence at which a single channel of a wide layer counts: a mean that is off by six standard
#: deviations.
ALONE = 20.0
#: Divergence that is wrong rather than costly.
WRONG = 1.0
#: A divergence has to be so many times what chance makes of it.
CHANCE = 10.0
#: Samples below which nothing is said about statistics.
SAMPLES = 30
_BATCH = 16  # samples in a training batch, where the user does not say


# --- stale statistics -----------------------------------------------------------------------------


@rule(
    needs=("data",),
    severity="warning",
    why="In eval mode the layer normalizes with statistics that its input does not have, "
    "so that what follows sees values that it was not trained on.",
    yields_to=(
        "bad-buffers", "never-tracked", "momentum", "low-precision-buffers", "averaged-weights",
        "constant-channel", "dropout-upstream", "shared-across-domains", "correlated-batches",
    ),
)  # fmt: skip
def stale_statistics(self: Rule, evidence: Evidence) -> Findings:
    """Running statistics that diverge from those of the data."""
    enough(evidence)
    for each in stale_layers(evidence):
        yield self.finding(
            each.site.name,
            each.words(),
            "normkit.models.recalibrate(model, data) takes them anew from data like that of use.",
            severity="error" if each.divergence > WRONG else self.severity,
            value=each.divergence,
            threshold=each.threshold,
            channels=each.channels,
        )


@rule(
    needs=("data", "configuration.averaged"),
    severity="error",
    why="Averaged weights make activations that no model had whose statistics were taken, "
    "so the running statistics belong to other weights.",
)
def averaged_weights(self: Rule, evidence: Evidence) -> Findings:
    """Weights that are an average (SWA, EMA) beside statistics that were not taken with them."""
    if not evidence.configuration.averaged:
        return
    enough(evidence)
    stale = stale_layers(evidence)
    if stale:
        worst = max(stale, key=lambda each: each.divergence)
        yield self.finding(
            "",
            f"stale statistics in {counted(len(stale), 'layer')}, the most in "
            f"{worst.site.name or 'the model itself'!r}: "
            f"{worst.words()}",
            "normkit.models.recalibrate(model, training_data), or "
            "torch.optim.swa_utils.update_bn(loader, model), after averaging.",
            value=worst.divergence,
            threshold=worst.threshold,
        )


@dataclass(frozen=True, eq=False)
class Stale:
    """A layer with stale statistics, and by how much.

    Args:
        drift: of its input in eval mode, with what the layers before it make of it.
        divergence: that many channels reach, or that single ones do which are far off.
        channels: those beyond the threshold, and beyond chance.
        own: the largest divergence of a channel if the layers before it normalized properly.
    """

    site: NormSite
    drift: Drift
    divergence: float
    threshold: float
    channels: tuple[int, ...]
    own: float | None = None

    def words(self) -> str:
        """What was measured."""
        worst = _worst(self.drift.divergence, self.channels)
        largest = float(self.drift.divergence[worst])
        words = (
            f"{in_words(self.drift.divergence, self.channels, self.divergence, self.threshold)}: "
            f"its mean is off by {float(self.drift.mean_shift[worst]):+.2g} standard deviations, "
            f"its variance {float(self.drift.ratio[worst]):.3g} times what is stored"
        )
        if self.own is not None and abs(self.own - largest) > 0.1 * largest:
            words += f"; were the norms before it right, {self.own:.2g} at most"
        return words


def in_words(
    divergence: Tensor, channels: tuple[int, ...], reached: float, threshold: float
) -> str:
    """Channels beyond a threshold: how many, what several of them reach, and the worst.

    >>> in_words(torch.tensor([0.1, 0.3, 0.5, 0.7]), (1, 2, 3), 0.5, 0.2)
    'KL beyond the threshold of 0.2 at 3 of 4 channels, 0.5 or more at 2, at most 0.7 at channel 3'
    """
    worst = _worst(divergence, channels)
    largest = f"{float(divergence[worst]):.2g}"
    count = sum(float(divergence[channel]) >= reached for channel in channels)
    some = f", {reached:.2g} or more at {count}" if f"{reached:.2g}" != largest else ""
    return (
        f"KL beyond the threshold of {threshold:.2g} at {len(channels)} of "
        f"{counted(len(divergence), 'channel')}{some}, at most {largest} at channel {worst}"
    )


def _worst(divergence: Tensor, channels: tuple[int, ...]) -> int:
    return max(channels, key=lambda channel: float(divergence[channel]))


def stale_layers(evidence: Evidence) -> list[Stale]:
    """Layers whose statistics are off by themselves.

    Behind a stale layer all others see an input that they do not know. A layer whose statistics fit
    once the layers before it normalize properly is not to blame; if none is, the one that comes
    nearest to it.
    """
    found, to_blame, nearest = [], [], None
    for site, seen in comparable(evidence):
        drift = running_drift(evidence, site, seen.input)
        own = running_drift(evidence, site, seen.in_training or seen.input)
        stale = _stale(site, drift, STALE)
        if stale is not None:
            found.append(stale)
            if _stale(site, own, OWN) is not None and own is not None:
                to_blame.append(replace(stale, own=float(own.divergence.max())))
        near = _nearest(site, own)
        if near is not None and (nearest is None or near.divergence > nearest.divergence):
            nearest = near
    if not found or to_blame:
        return to_blame
    return [found[0] if nearest is None else nearest]


def untracked_layers(evidence: Evidence) -> list[Stale]:
    """Layers in eval mode with the mean 0 and variance 1 of a new layer, which do not fit."""
    found: list[Stale] = []
    if evidence.study is None or evidence.study.samples < SAMPLES:
        return found
    for site, seen in comparable(evidence, initial=True):
        if site.training or never_moves(site):
            continue
        own = running_drift(evidence, site, seen.in_training or seen.input)
        stale = _stale(site, running_drift(evidence, site, seen.input), STALE)
        if stale is not None and _stale(site, own, OWN) is not None:
            found.append(stale)
    return found


def _stale(site: NormSite, drift: Drift | None, threshold: float) -> Stale | None:
    """Where many channels are off by the threshold, or one by far."""
    if drift is None:
        return None
    over = drift.divergence > torch.clamp(CHANCE * drift.chance, min=threshold)
    if not bool(over.any()):
        return None
    needed = many(len(over))
    if int(over.sum()) >= needed:
        reached = float(drift.divergence[over].topk(needed).values[-1])
        return Stale(site, drift, reached, threshold, channels_where(over))
    far = over & (drift.divergence > ALONE)
    if not bool(far.any()):
        return None
    return Stale(site, drift, float(drift.divergence[far].max()), ALONE, channels_where(far))


def _nearest(site: NormSite, drift: Drift | None) -> Stale | None:
    """The channels that chance does not explain, however few."""
    if drift is None:
        return None
    over = drift.divergence > torch.clamp(CHANCE * drift.chance, min=OWN)
    if not bool(over.any()):
        return None
    return Stale(site, drift, float(drift.divergence[over].max()), OWN, channels_where(over))


def running_drift(evidence: Evidence, site: NormSite, seen: Spread | None) -> Drift | None:
    """What a layer saw against its running statistics; None where these are not numbers."""
    mean, var = numbers(site.mean), numbers(site.var)
    if seen is None or mean is None or var is None or mean.shape != seen.elements.mean.shape:
        return None
    if not bool(mean.isfinite().all() & var.isfinite().all() & seen.elements.m2.isfinite().all()):
        return None
    size = evidence.configuration.batch_size or _BATCH
    batches = site.batches or 1
    if not site.cumulative and site.momentum:
        batches = min(batches, math.ceil((2 - site.momentum) / site.momentum))
    behind = math.inf if is_initial(site) else float(size * max(batches, 1))
    return from_running(mean, var, seen, site.eps, behind)


def comparable(
    evidence: Evidence, *, initial: bool = False
) -> Iterator[tuple[NormSite, Observation]]:
    """Batch norms whose running statistics should be those of their input.

    Frozen ones are fixed scales and shifts, which the weights around them grew used to. Those that
    keep statistics for each domain are left out.

    Args:
        initial: those with the statistics of a new layer instead of the others.
    """
    layers = evidence.study.layers if evidence.study else {}
    for site in evidence.sites:
        seen = layers.get(site.name)
        one = site.mean is not None and site.mean.dim() == 1
        if site.kind != "batch" or not (site.tracks and one) or site.frozen:
            continue
        if is_initial(site) is not initial:
            continue
        if seen is not None and seen.input is not None and not option(site, "mean_only"):
            yield site, seen


def many(channels: int) -> int:
    """Channels that have to be off before a layer is: 5 %, and no single one of a wide layer."""
    return max(math.ceil(0.05 * channels), 2 if channels >= 8 else 1)


def enough(evidence: Evidence) -> None:
    """Raises:
    NotEnoughError: there are too few samples to say anything about statistics.
    """
    samples = evidence.study.samples if evidence.study else 0
    if samples < SAMPLES:
        raise NotEnoughError(f"more data: at least {SAMPLES} samples, there were {samples}")


# --- dropout in front of batch norm ---------------------------------------------------------------


@rule(
    needs=("graph", "data"),
    severity="warning",
    why="Dropout widens the layer's input in training only, so the running variance is larger than "
    "the variance in eval mode, and the output too small.",
    yields_to=("bad-buffers", "never-tracked", "momentum"),
)
def dropout_upstream(self: Rule, evidence: Evidence) -> Findings:
    """Dropout whose noise reaches a batch norm's statistics."""
    enough(evidence)
    graph = evidence.graph
    assert graph is not None
    for site, seen in comparable(evidence):
        sources = {n.name: n for call in graph.calls(site.name) for n in _noise(graph, call)}
        spread = seen.in_training or seen.input
        if not sources or spread is None:
            continue
        drift = running_drift(evidence, site, spread)
        if drift is None:
            continue
        # A channel's log variance may be off by the root of four times its divergence by chance;
        # the median of many by less, but not for ever so many: they come from the same samples.
        doubt = float((4 * drift.chance.median() / min(len(drift.ratio), 16)).sqrt())
        ratio = float(drift.ratio.median())
        if ratio < NARROWED - 2 * doubt:
            names = ", ".join(node.target or node.name for node in sources.values())
            yield self.finding(
                site.name,
                f"in eval mode the variance is {ratio:.2f} of the running variance (median of the "
                f"channels; threshold {NARROWED}), behind dropout at {names}",
                "Move dropout behind the last batch norm, or "
                "normkit.models.recalibrate(model, data), which keeps dropout off.",
                value=ratio,
                threshold=NARROWED,
            )


#: Variance in eval mode / running variance.
NARROWED = 0.9
_NOISY = ("droppath", "stochasticdepth", "dropblock")


def _noise(graph: Graph, call: Node) -> Iterator[Node]:
    """Dropout on the way to a call, with no other norm in between."""
    waiting, known = list(graph.sources(call.name)), set()
    while waiting:
        node = waiting.pop()
        if node.name in known or node.op == "norm":
            continue
        known.add(node.name)
        if _drops(node):
            yield node
        waiting += graph.sources(node.name)


def _drops(node: Node) -> bool:
    word = node.function.lower().replace("_", "")
    if node.op != "dropout" and not word.startswith(_NOISY):
        return False
    share = node.attributes.get("p")
    given: Any = node.attributes.get("args", ())
    if share is None and given and isinstance(given[0], (int, float)):
        share = given[0]
    return share is None or not isinstance(share, (int, float)) or share > 0


# --- several distributions in one layer -----------------------------------------------------------


@rule(
    needs=("data",),
    severity="warning",
    why="One running mean and variance stand for inputs that differ, and fit none of them.",
)
def shared_across_domains(self: Rule, evidence: Evidence) -> Findings:
    """A batch norm that is called for inputs of several distributions."""
    enough(evidence)
    for site, seen in comparable(evidence):
        calls = {f"call {i}": spread for i, spread in enumerate(seen.by_call, 1)}
        domains = {f"domain {name}": spread for name, spread in seen.by_domain.items()}
        for groups, repair in ((calls, _REPAIRS[0]), (domains, _REPAIRS[1])):
            apart = _farthest(site, groups)
            if apart is not None:
                value, pair, channels, by_channel = apart
                yield self.finding(
                    site.name,
                    f"between {pair[0]} and {pair[1]} "
                    f"{in_words(by_channel, channels, value, STALE)}",
                    repair,
                    value=value,
                    threshold=STALE,
                    channels=channels,
                )
                break


_REPAIRS = (
    "Give each call a batch norm of its own (the weights may stay shared), or use group norm.",
    "normkit.torch.BatchNorm2d(..., domains=number) keeps statistics for each; or use group norm.",
)


def _farthest(
    site: NormSite, groups: dict[str, Spread]
) -> tuple[float, tuple[str, str], tuple[int, ...], Tensor] | None:
    """The two groups that differ most, where any do; with their divergence by channel."""
    large = {name: spread for name, spread in groups.items() if spread.samples >= SAMPLES}
    best = None
    for one, other in combinations(large, 2):
        there, back = (
            between(large[a], large[b], site.eps) for a, b in ((one, other), (other, one))
        )
        value = 0.5 * (there.divergence + back.divergence)
        chance = torch.maximum(there.chance, back.chance)
        over = value > torch.clamp(CHANCE * chance, min=STALE)
        needed = many(len(over))
        if int(over.sum()) >= needed:
            reached = float(value[over].topk(needed).values[-1])
            if best is None or reached > best[0]:
                best = (reached, (one, other), channels_where(over), value)
    return best
