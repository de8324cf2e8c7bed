"""recalibrate(): passes over the data, then all layers written at once."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from normkit.errors import DataError, ModelError, OptionError
from normkit.models.batches import Forward
from normkit.models.recalibration.averages import METHODS
from normkit.models.recalibration.listening import measuring
from normkit.models.recalibration.passes import Passes
from normkit.models.recalibration.shifts import Shifts
from normkit.models.recalibration.target import Target, write_all
from normkit.models.recalibration.team import team_of
from normkit.models.sites import NormSite, find_sites
from normkit.models.wrappers import plain_model

__all__ = ["recalibrate"]

_NONFINITE = ("raise", "skip")


def recalibrate(
    model: nn.Module,
    data: Any,
    method: str = "population",
    *,
    layerwise: bool = False,
    forward: Forward | None = None,
    group: Any = None,
    momentum: float | None = None,
    limit: int | None = None,
    on_nonfinite: str = "raise",
    include_frozen: bool = False,
    progress: bool | None = None,
) -> Shifts:
    """Take the running statistics of all norms anew from data, in place: all of them or none.

    Everything runs in eval mode (dropout stays off) but that each norm normalizes a batch with that
    batch's own statistics, and so feeds the layers behind it. A batch with a single element a
    channel has none; it is normalized with the running statistics. Whatever goes wrong, also
    Ctrl-C, leaves the model as it was: statistics, modes, hooks, gradients. Random generators go
    back to where they were.

    Args:
        model: also wrapped for data parallelism or compiled, which is looked through.
        data: whatever :func:`normkit.models.batches.batches_of` takes; batches of any sizes.
        method: ``"population"``: mean and unbiased variance of all elements, however they are cut
            into batches; of an instance norm, the average over all samples. ``"cumulative"``: the
            plain average of the batches' statistics, which misses what lies between their means.
            ``"ema"``: torch.nn's running average, going on from what is there.
        layerwise: measure layer after layer, each behind layers that are corrected already and in
            eval mode. Then the statistics are exactly those that the layers meet in eval mode. It
            takes a pass over the data for each layer that lies behind others, and the same batches
            in each pass.
        forward: ``forward(model, batch)`` calls the model on what the data gave; by default the
            input is moved to the model's device, and the model called with it.
        group: the ranks whose data count together, exactly, however much each has: those of a
            process group, all for None, this process alone for False. All of them must call.
        momentum: of ``"ema"``; by default each layer's own.
        limit: use so many batches; data with fewer are an error.
        on_nonfinite: ``"raise"``, or ``"skip"`` batches in which a norm meets NaN or infinity.
        include_frozen: also layers whose statistics are frozen, which are left alone by default.
        progress: show it; by default where standard error is a terminal.

    Returns:
        What changed, one :class:`Shift` a layer (a domain, in layers with several); ``.left`` says
        which layers were left as they were. Nothing if the model keeps no running statistics.

        Momentum stays as it is. ``num_batches_tracked`` becomes the number of batches behind the
        statistics (it goes on counting with ``"ema"``), ``num_elements_tracked`` likewise, so
        that a cumulative or population average goes on from here with the right weight.

    Raises:
        ModelError: a model that cannot be measured.
        DataError: no batch, or not what the model takes, or fewer batches than were announced.
        NonFiniteError: a norm met NaN or infinity, or its buffers cannot hold the result.
        OptionError: an option has no such value.
        SyncError: another rank failed or did not come.

    A model meets data of another domain (AdaBN: Li et al. 2016):

    >>> import torch
    >>> net = torch.nn.Sequential(torch.nn.BatchNorm1d(3), torch.nn.Linear(3, 2)).eval()
    >>> night = 5 + 2 * torch.randn(256, 3, generator=torch.Generator().manual_seed(0))
    >>> shifts = recalibrate(net, night)
    >>> print(shifts)
    layer  largest shift of a mean (σ)  largest KL of a channel  elements
    0                             2.6...                   14...       256
    1 set of statistics from 4 batches in 1 pass
    >>> bool(torch.allclose(net[0].running_var, night.var(0)))
    True
    """
    _check(method, momentum, limit, on_nonfinite)
    inner = plain_model(model)
    sites, left = _targets(inner, include_frozen)
    shifts = Shifts()
    shifts.left = left
    if not sites:
        return shifts
    targets = {site.name: Target.of(site, method, momentum) for site in sites}
    words = [repr((t.site.name, *t.mean.shape, method, layerwise)) for t in targets.values()]
    device = next(iter(targets.values())).mean.device
    team = team_of(group, words, type(inner).__name__, method, device)
    passes = Passes(inner, data, targets, team, forward, limit, on_nonfinite, progress)
    with measuring(inner, sites):
        levels = passes.levels(layerwise)
        for number, level in enumerate(levels, 1):
            with team.step():
                passes.measure(level, f"recalibrating, pass {number} of {len(levels)}")
            team.merge([average for name in level for average in targets[name].averages])
            for name in level:
                targets[name].correct()
    with team.step():
        if not any(target.batches for target in targets.values()):
            raise _nothing(passes)
        changes = [c for target in targets.values() for c in target.changes(team.alone)]
    write_all(changes)
    shifts += [change.shift for change in changes]
    shifts.passes, shifts.batches, shifts.skipped = len(levels), passes.batches, passes.skipped
    shifts.left |= {n: "the model did not call it" for n, t in targets.items() if not t.batches}
    return shifts


def _check(method: str, momentum: Any, limit: Any, on_nonfinite: str) -> None:
    for name, value, known in (("method", method, METHODS),
                               ("on_nonfinite", on_nonfinite, _NONFINITE)):  # fmt: skip
        if value not in known:
            raise OptionError(
                f"There is no such {name}",
                received=repr(value),
                expected=", ".join(map(repr, known)),
                remedy="See recalibrate()'s help for what they do.",
            )
    if momentum is not None and (method != "ema" or not 0 <= momentum <= 1):
        raise OptionError(
            "momentum= does not fit",
            received=f"momentum={momentum!r} with method={method!r}",
            expected='a number from 0 to 1, with method="ema"',
            remedy="The other methods weigh batches by what is in them.",
        )
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 1):
        raise OptionError(
            "limit= is no number of batches",
            received=repr(limit),
            expected="a whole number of at least 1, or None for all",
            remedy="Leave it out to use all the data.",
        )


def _targets(model: nn.Module, include_frozen: bool) -> tuple[list[NormSite], dict[str, str]]:
    """The norms to recalibrate, and those that are left alone, with the reason."""
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise _unfit(name, module, "is a TorchScript module, which hears no hooks",
                         "Recalibrate the model that it was made from.")  # fmt: skip
        own = (*module._parameters.values(), *module._buffers.values())
        if any(t is not None and is_lazy(t) for t in own):
            raise _unfit(name, module, "is lazy and does not know its channels",
                         "Run an input through the model first.")  # fmt: skip
    sites, left = [], {}
    for site in find_sites(model):
        if not site.tracks:
            continue
        if site.frozen and not include_frozen:
            left[site.name] = "its statistics are frozen (include_frozen=True takes it along)"
            continue
        if site.mean is not None and site.mean.is_meta:
            raise _unfit(site.name, site.module, "is on the meta device",
                         "Load the model's weights first.")  # fmt: skip
        sites.append(site)
    return sites, left


def _unfit(name: str, module: nn.Module, what: str, remedy: str) -> ModelError:
    return ModelError(
        "This model cannot be measured",
        received=f"{name or 'the model'}, a {type(module).__name__}, which {what}",
        expected="a model that runs",
        remedy=remedy,
    )


def _nothing(passes: Passes) -> DataError:
    return DataError(
        "No norm was measured; nothing was changed",
        received=f"{passes.batches} batches with samples, {passes.skipped} of them skipped",
        expected="at least one that goes through the norms",
        remedy="Look at what the data give, and at what forward= calls.",
    )
