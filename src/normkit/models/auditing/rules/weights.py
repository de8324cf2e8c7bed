"""Rules that look at weights, buffers and settings alone: a file of weights is enough."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence

import torch

from normkit.models.auditing.evidence import Evidence
from normkit.models.auditing.findings import Finding
from normkit.models.auditing.rule import Rule, rule
from normkit.models.auditing.rules.sets import (
    OFF,
    SHARE,
    channels_where,
    learns_statistics,
    listed,
    named,
    numbers,
    option,
)
from normkit.models.measuring.drift import divergence
from normkit.models.sites import NormSite
from normkit.words import counted

Tensor = torch.Tensor
Findings = Iterator[Finding]

# --- broken values --------------------------------------------------------------------------------


@rule(
    needs=("weights",),
    severity="error",
    why="Every output of these channels is NaN, infinite or meaningless, "
    "and with it all that follows.",
)
def bad_buffers(self: Rule, evidence: Evidence) -> Findings:
    """Statistics or weights that are NaN or infinite; variances below zero."""
    for site in evidence.sites:
        repairs: list[str] = []
        said: list[str] = []
        channels: set[int] = set()
        for what, tensor in _values(site).items():
            values = numbers(tensor)
            if values is None or tensor is None:
                continue
            bad = ~torch.isfinite(values)
            if what.startswith("running") and tensor.dtype == torch.float16:
                bad = torch.isnan(values)  # infinity there is an overflow: low-precision-buffers
            negative = (values < 0) & torch.isfinite(values) & (what == "running_var")
            for mask, word in ((bad, "not finite"), (negative, "below zero")):
                if mask.any():
                    found = channels_where(mask)
                    channels.update(found)
                    said.append(f"{what} {word} at {listed(found)}")
                    repairs.append(what)
        if said:
            weights = [what for what in repairs if not what.startswith("running")]
            repair = (
                f"Load {' and '.join(dict.fromkeys(weights))} from a checkpoint before the damage."
                if weights
                else "normkit.models.recalibrate(model, data)"
            )
            yield self.finding(site.name, "; ".join(said), repair, channels=tuple(sorted(channels)))


def _values(site: NormSite) -> dict[str, Tensor | None]:
    return {
        "running_mean": site.mean,
        "running_var": site.var,
        "gamma": site.gamma,
        "beta": site.beta,
    }


# --- precision ------------------------------------------------------------------------------------


@rule(
    needs=("weights",),
    severity="warning",
    why="Running statistics need more digits than 16 bits have: large variances overflow, "
    "and small updates are rounded away.",
)
def low_precision_buffers(self: Rule, evidence: Evidence) -> Findings:
    """Statistics in 16 bits that overflowed, or that rounding keeps from what they should be.

    An update of momentum·Δ is lost below half a unit in the last place, so statistics stop moving
    that unit over the momentum away from the truth. What this does to the output is measured as
    the divergence of the two normal distributions.
    """
    for site in evidence.sites:
        mean, var = numbers(site.mean), numbers(site.var)
        if site.mean is None or site.var is None or mean is None or var is None:
            continue
        dtype = site.var.dtype
        if dtype not in (torch.float16, torch.bfloat16):
            continue
        word = str(dtype).removeprefix("torch.")
        repair = f"model.get_submodule({site.name!r}).float(), also after model.half(); then "
        repair += "normkit.models.recalibrate(model, data)"
        lost = torch.isinf(mean) | torch.isinf(var)
        if dtype == torch.float16 and lost.any():
            channels = channels_where(lost)
            said = f"beyond 65504, the largest number of float16, at {listed(channels)}"
            yield self.finding(site.name, said, repair, severity="error", channels=channels,
                               threshold=65504.0)  # fmt: skip
            continue
        momentum = _momentum(site) if site.training and learns_statistics(site) else 1.0
        off = _rounding(mean, var, dtype, momentum, site.eps or 0.0)
        bad = (off > OFF) & torch.isfinite(off)
        if bad.double().mean() >= SHARE:
            worst = float(off[bad].max())
            cause = "rounding" if momentum == 1 else f"updates lost at momentum {momentum:.2g}"
            yield self.finding(
                site.name,
                f"{cause} in {word} can shift the statistics by a KL of up to {worst:.2g} > "
                f"{OFF} at {int(bad.sum())} of {counted(bad.numel(), 'channel')}",
                repair,
                value=worst,
                threshold=OFF,
                channels=channels_where(bad),
            )


def _momentum(site: NormSite) -> float:
    if site.cumulative:
        return 1.0 / ((site.batches or 0) + 1)
    return site.momentum if site.momentum and 0 < site.momentum < 1 else 1.0


def _rounding(mean: Tensor, var: Tensor, dtype: torch.dtype, momentum: float, eps: float) -> Tensor:
    """Divergence that the largest error which rounding leaves uncorrected can make."""
    deviation = (var + eps).clamp_min(torch.finfo(torch.float64).tiny)
    shift = _half_ulp(mean, dtype) / momentum / deviation.sqrt()
    return divergence(shift, 1 + _half_ulp(var, dtype) / momentum / deviation)


def _half_ulp(values: Tensor, dtype: torch.dtype) -> Tensor:
    limits = torch.finfo(dtype)
    size = values.abs().clamp_min(limits.smallest_normal)
    return 0.5 * limits.eps * torch.exp2(torch.floor(torch.log2(size)))


# --- scales ---------------------------------------------------------------------------------------

DOMINATED = 9.3  # var < 9.3 eps: the output's deviation is more than 5 % below 1


@rule(
    needs=("weights",),
    severity="warning",
    why="Where eps is not small beside the variance the layer does not normalize: "
    "its output shrinks with its input.",
    yields_to=("bad-buffers", "low-precision-buffers"),
)
def eps_dominates(self: Rule, evidence: Evidence) -> Findings:
    """Variances that eps drowns; worth knowing at some channels, a warning at half of them."""
    for site in evidence.sites:
        var = numbers(site.var)
        if var is None or not site.eps or option(site, "mean_only"):
            continue
        live = torch.isfinite(var) & (var > 1e-8 * var.median()) & (var > 0)
        small = live & (var < DOMINATED * site.eps)
        share = float(small.sum() / live.sum().clamp_min(1))
        if not small.any() or share < SHARE:
            continue
        typical = float(var[small].median())
        shrunk = 1 - (typical / (typical + site.eps)) ** 0.5
        yield self.finding(
            site.name,
            f"variance {typical:.2g} < {DOMINATED} eps = {DOMINATED * site.eps:.2g} at "
            f"{share:.0%} of the channels: their output is {shrunk:.0%} too small",
            f"Train with eps <= {typical / 100:.0e} or a larger input; in a trained model multiply "
            "gamma by sqrt((var + new_eps) / (var + eps)) when eps changes.",
            severity="warning" if share >= 0.5 else "info",
            value=typical,
            threshold=DOMINATED * site.eps,
            channels=channels_where(small),
        )


PRUNABLE = 1e-3


@rule(
    needs=("weights",),
    severity="info",
    why="These channels cost time and carry a constant, whatever the input is.",
)
def prunable_channels(self: Rule, evidence: Evidence) -> Findings:
    """Gains a thousand times smaller than the layer's.

    A layer whose gains are all zero was initialized so, as the last one of a residual branch. Where
    most channels have gone the median has gone with them: the upper tenth stands in for it. Where
    gains lie on both sides of zero some are near it by chance, so that these must be nearer.
    """
    for site in evidence.sites:
        gain = numbers(site.gamma)
        if gain is None or gain.dim() != 1 or site.kind not in ("batch", "instance", "group"):
            continue
        if not torch.isfinite(gain).all():
            continue
        signed, gain = gain, gain.abs()
        usual = gain.median()
        upper = gain.quantile(0.9)
        usual = upper if usual < PRUNABLE * upper else usual
        limit = PRUNABLE * usual
        if (signed < -0.1 * usual).any() and (signed > 0.1 * usual).any():
            limit = 1e-2 * limit
        small = gain < limit
        if not small.any():
            continue
        channels = channels_where(small)
        beta = numbers(site.beta)
        constants = torch.zeros(0) if beta is None else beta[small]
        size = f", up to {float(constants.abs().max()):.2g}" if constants.numel() else " (0)"
        yield self.finding(
            site.name,
            f"|gamma| < {float(limit / usual):g} of the layer's {float(usual):.2g} "
            f"at {listed(channels)}",
            "Remove these channels from the layers before and after; their output is the constant "
            f"beta{size}, which goes into the next layer's bias.",
            value=float(gain[small].max()),
            threshold=float(limit),
            channels=channels,
        )


# --- settings -------------------------------------------------------------------------------------


@rule(
    needs=("weights",),
    severity="warning",
    why="A layer with another eps or momentum than its like was usually forgotten "
    "when the model was ported or extended.",
)
def inconsistent_configuration(self: Rule, evidence: Evidence) -> Findings:
    """One eps or momentum among layers of one kind and role, and another in a minority of them.

    Layers have one role if their names differ in numbers only. A part of a model that has its own
    settings throughout was meant so, but for TensorFlow's eps beside PyTorch's, which a half-ported
    model has too: that is worth knowing.
    """
    groups: dict[tuple[str, str], list[NormSite]] = {}
    for site in evidence.sites:
        role = re.sub(r"\d+", "#", site.name)
        groups.setdefault((site.kind, role), []).append(site)
    odd: list[NormSite] = []
    for sites in groups.values():
        usual = {what: _usual(sites, what) for what in ("eps", "momentum")}
        for site in sites:
            differs = [w for w, common in usual.items() if _setting(site, w) not in (None, common)]
            if differs:
                odd.append(site)
                yield self.finding(
                    site.name,
                    " and ".join(f"{w} {_setting(site, w):g} where {_count(sites, w, usual[w])} "
                                 f"of its like have {usual[w]:g}" for w in differs),
                    "; ".join(f"model.get_submodule({site.name!r}).{w} = {usual[w]:g}"
                              for w in differs) + ", unless it was trained so.",
                )  # fmt: skip
    yield from _two_habits(self, [s for s in evidence.sites if s.kind == "batch" and s not in odd])


def _two_habits(self: Rule, sites: Sequence[NormSite]) -> Findings:
    """eps 1e-3 beside 1e-5 in whole parts of a model."""
    parts = {eps: [s for s in sites if s.eps is not None and abs(s.eps / eps - 1) < 1e-6]
             for eps in (1e-3, 1e-5)}  # fmt: skip
    if not all(parts.values()):
        return
    few, many = sorted(parts, key=lambda eps: len(parts[eps]))
    yield self.finding(
        parts[few][0].name,
        f"eps {few:g} in {named(parts[few])}, {many:g} in {counted(len(parts[many]), 'other')}",
        "Ask for the eps that each part was trained with: 1e-3 is TensorFlow's default, "
        "1e-5 PyTorch's.",
        severity="info",
    )


def _setting(site: NormSite, what: str) -> float | None:
    """What to compare; None for momenta that do not matter, or that are a fault anywhere."""
    if what == "eps":
        return site.eps
    usable = learns_statistics(site) and site.momentum is not None and 0 < site.momentum < 0.9
    return site.momentum if usable else None


def _usual(sites: Sequence[NormSite], what: str) -> float | None:
    """What most have; with as many on either side, what comes first."""
    known = [value for site in sites if (value := _setting(site, what)) is not None]
    return Counter(known).most_common(1)[0][0] if known else None


def _count(sites: Sequence[NormSite], what: str, value: float | None) -> str:
    same = sum(_setting(site, what) == value for site in sites)
    return f"{same} of {len(sites)}" if same < len(sites) else str(same)
