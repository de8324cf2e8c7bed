"""Rules about channels that say nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from normkit.models.auditing.evidence import Evidence, Observation
from normkit.models.auditing.findings import Finding
from normkit.models.auditing.rule import Rule, rule
from normkit.models.auditing.rules.sets import channels_where, is_initial, listed, numbers
from normkit.models.graphs.graph import Graph
from normkit.models.measuring.spread import Spread
from normkit.models.sites import NormSite

Tensor = torch.Tensor
Findings = Iterator[Finding]

#: Samples below which a channel may be quiet by chance.
LIVELY = 100


@rule(
    needs=("weights",),
    severity="warning",
    why="A channel that never changes carries nothing, costs time, and eps alone keeps the norm "
    "from dividing by zero.",
    yields_to=("bad-buffers", "eps-dominates", "prunable-channels", "single-element-group"),
)
def constant_channel(self: Rule, evidence: Evidence) -> Findings:
    """Channels without variance, and channels that the ReLU behind the norm never lets through."""
    layers = evidence.study.layers if evidence.study else {}
    for site in evidence.sites:
        seen = layers.get(site.name)
        if seen is not None and (seen.samples < LIVELY or is_initial(site)):
            seen = None
        channels, said = _constant(site, seen)
        if channels:
            yield self.finding(
                site.name,
                f"{listed(channels)} of {site.channels}: {said}",
                "Look at what makes them (dead units, constant inputs), or remove them.",
                channels=channels,
            )
        dead = _dead(evidence, site, seen, channels)
        if dead:
            yield self.finding(
                site.name,
                f"{listed(dead)} of {site.channels}: the largest output over the data is at most "
                "0, and a ReLU follows",
                "Lower the learning rate or raise beta where they died, or remove them.",
                channels=dead,
            )


#: Variance / the layer's median variance.
CONSTANT = 1e-8


def _constant(site: NormSite, seen: Observation | None) -> tuple[tuple[int, ...], str]:
    """Channels without variance, in what is stored or in what was seen."""
    if site.kind != "batch":
        return (), ""
    var = numbers(site.var)
    if var is not None and var.dim() == 1 and not site.frozen:
        stored = (var >= 0) & (var < CONSTANT * var.median())
        if stored.any():
            return channels_where(stored), f"running variance below {CONSTANT:g} of the median"
    if seen is None or seen.input is None:
        return (), ""
    still = _still(seen.input)
    if seen.in_training is not None:  # what a fault further up stops is not dead by itself
        still &= _still(seen.in_training)
    return channels_where(still), "no variance over the data" if still.any() else ""


def _still(spread: Spread) -> Tensor:
    var = spread.elements.var
    return var <= CONSTANT * max(float(var.median()), _rounding(spread))


def _rounding(spread: Spread) -> float:
    """A variance beside which a channel's own rounding, of its mean in float32, is nothing."""
    return float(spread.elements.mean.square().median()) * 1e-6


def _dead(
    evidence: Evidence, site: NormSite, seen: Observation | None, constant: Sequence[int]
) -> tuple[int, ...]:
    graph = evidence.graph
    if seen is None or graph is None or not _into_relu(graph, site.name):
        return ()
    dead = seen.output_max <= 0
    gain = numbers(site.gamma)
    if gain is not None and gain.shape == dead.shape:
        dead &= gain != 0  # switched off, as zero-initialized gains are
    return tuple(c for c in channels_where(dead) if c not in constant)


def _into_relu(graph: Graph, name: str) -> bool:
    """Whether a ReLU is all that a norm's result goes into."""
    users = [user for call in graph.calls(name) for user in graph.users(call.name)]
    return bool(users) and all(
        user.op == "activation" and user.function.lower() in _RELUS for user in users
    )


_RELUS = ("relu", "relu_", "relu6")
