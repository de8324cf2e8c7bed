"""convert(): norms of a model turned into another kind, all of them or none."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from torch.nn.parameter import is_lazy

from normkit.errors import DTypeError, ModelError
from normkit.models.batches import example_batch
from normkit.models.conversion.catalogue import RefusedError
from normkit.models.conversion.changing import Change, apply
from normkit.models.conversion.reading import read
from normkit.models.conversion.requests import Request
from normkit.models.conversion.surroundings import Surroundings
from normkit.models.conversion.targets import TARGETS
from normkit.models.proof import copied, difference
from normkit.models.selecting import chosen
from normkit.models.sites import NormSite, find_sites, site_of
from normkit.torch.layers.base import KernelLayer
from normkit.torch.normact import NormAct
from normkit.torch.options import RenormSchedule, check_choice
from normkit.words import listed

__all__ = ["convert"]

Only = str | Iterable[str] | Callable[[NormSite], Any]
_SHOWN = 3  # layers that a message names


def convert(
    model: nn.Module,
    to: str,
    *,
    only: Only | None = None,
    groups: int | str = "auto",
    ghost: int | None = None,
    renorm: bool | RenormSchedule | None = None,
    process_group: Any = None,
    dims: int | None = None,
    layers: str = "same",
    example: Any = None,
    on_refused: str = "raise",
    inplace: bool = False,
    report: Callable[[str], Any] | None = print,
) -> Any:
    """Turn a model's norms into another kind.

    ``"batch"``, ``"sync"``, ``"frozen"``, ``"ghost"`` and ``"renorm"`` are five ways of batch norm
    in training, and one in eval mode: between them nothing is lost, and the way back gives the same
    ``state_dict`` and class. A frozen layer stays frozen but for ``"batch"``.
    ``"group"``, ``"layer"``, ``"instance"`` and ``"frn"`` keep gamma, beta and eps, and are another
    function, which has to be trained; on the way back running statistics start anew. ``"layer"`` is
    group norm with one group. ``"torch"`` and ``"normkit"`` change who made the layer.

    Converted are all batch norms, and what an earlier conversion made of them; ``"torch"`` and
    ``"normkit"`` take every norm that both have. Layers stay the same objects, and so do their
    parameters and buffers: modes, hooks and names in ``state_dict`` remain, shared layers remain
    shared, and with ``inplace=True`` optimizers go on.

    Args:
        model: a model, or a single norm.
        to: see above.
        only: a name, a pattern such as ``"layer1.*"``, several of them, or a function of a
            :class:`normkit.models.sites.NormSite`: those norms alone, whatever their kind.
        groups: for ``"group"``: a number, or ``"auto"``:
            :func:`normkit.models.conversion.samples.auto_groups`.
        ghost: for ``"ghost"``: samples in a ghost batch.
        renorm: for ``"renorm"``: a :class:`normkit.torch.RenormSchedule`; the paper's by default.
        process_group: for ``"sync"``.
        dims: spatial dimensions of norms that nothing tells about, such as a SyncBatchNorm.
        layers: ``"torch"``, ``"normkit"``, or ``"same"``: whose a layer was, where they have it.
        example: an input of the model (a tensor, a tuple of arguments or a dictionary of them).
            With it, shapes are known, and the model's output before and after is compared.
        on_refused: ``"raise"``, or ``"skip"`` for layers that cannot be converted.
        inplace: change the model itself, not a copy.
        report: takes the lines that say what was done; None for silence.

    Returns:
        The converted model.

    Raises:
        ModelError: a layer cannot be converted, or the outputs of kinds that should agree do not.
            The model is as it was.
        OptionError, DTypeError, DataError: an argument is not what it should be.

    >>> import torch
    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
    >>> synced = convert(net, "sync", layers="normkit")
    convert: 1 BatchNorm2d → SyncBatchNorm
    >>> convert(synced, "batch", example=torch.randn(2, 3, 8, 8))[1]
    convert: 1 SyncBatchNorm → BatchNorm2d
    convert: verified in eval mode: outputs differ by at most 0.0e+00 in float64
    BatchNorm2d(8, eps=1e-05, momentum=0.1, affine=True, ...)
    """
    if not isinstance(model, nn.Module):
        raise DTypeError(
            "convert() has no model",
            received=type(model).__name__,
            expected="a torch.nn.Module",
            remedy="Pass the model itself.",
        )
    check_choice("to", to, tuple(TARGETS))
    check_choice("on_refused", on_refused, ("raise", "skip"))
    Request(to, groups, ghost, renorm, process_group, layers)  # complains before any work
    _check_lazy(model)
    around = Surroundings(model, example, dims)
    request = Request(to, groups, ghost, renorm, process_group, layers, around, _like(model))

    def plan(of: nn.Module) -> _Plan:
        return _plan(of, request, only, on_refused)

    lines, result = [], model
    if example is not None or not inplace:
        trial = copied(model)
        planned = plan(trial)
        apply(planned.changes)
        if example is not None and planned.changes:
            lines.append(_verify(model, trial, example, planned))
        result = trial
    if inplace:
        planned, result = plan(model), model
        apply(planned.changes)
    for line in (*planned.lines(), *lines):
        (report or _silence)(f"convert: {line}")
    return result


def _silence(line: str) -> None:
    """Takes a line of the report and leaves it at that."""


def _like(model: nn.Module) -> dict[str, Any]:
    """Device and dtype of a model's tensors."""
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.is_floating_point():
            return {"dtype": tensor.dtype, "device": tensor.device}
    return {}


# --- what is to be done ---------------------------------------------------------------------------


@dataclass(eq=False)
class _Plan:
    """Changes that can be made, and layers that none is made to, with the reason."""

    reason: str
    changes: list[Change] = field(default_factory=list)
    already: list[str] = field(default_factory=list)
    refused: list[tuple[str, RefusedError]] = field(default_factory=list)
    left: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """What was done, for people."""
        pairs = Counter((change.before, change.words) for change in self.changes)
        lines = [f"{number} {old} → {new}" for (old, new), number in pairs.items()]
        if not self.changes:
            what = "every norm is that already" if self.already else "there is no norm to convert"
            lines.append(f"nothing to do: {what}")
        elif self.already:
            lines.append(f"{len(self.already)} {_were(self.already)} that already")
        for name, why in self.refused:
            lines.append(f"{name or 'the model itself'} is left as it was: {why}")
        if self.left:
            lines.append(f"left alone: {listed(self.left)}, {self.reason}")
        notes = dict.fromkeys(note for change in self.changes for note in change.notes)
        return [*lines, *notes]


def _were(names: list[str]) -> str:
    return "was" if len(names) == 1 else "were"


def _plan(model: nn.Module, request: Request, only: Only | None, on_refused: str) -> _Plan:
    target = TARGETS[request.to]
    plan = _Plan(
        "of classes that only one library has" if target.any_library
        else "no batch norm; only= takes such too"
    )  # fmt: skip
    names, sites = _names(model, only, target.means, plan)
    inside = {id(m.norm) for m in model.modules() if isinstance(m, NormAct)}
    for name in names:
        try:
            change = target.make(read(sites[name]), request)
            if change is None:
                plan.already.append(name)
                continue
            if id(change.layer) in inside and not issubclass(change.kind, KernelLayer):
                raise RefusedError(
                    f"it is in a NormAct, which cannot call a {change.words}",
                    "only= leaves it out.",
                )
            plan.changes.append(change)
        except RefusedError as why:
            plan.refused.append((name, why))
    if plan.refused and on_refused == "raise":
        raise _refusal(plan, request.to, len(names))
    return plan


def _names(
    model: nn.Module, only: Only | None, means: Callable[[NormSite], bool], plan: _Plan
) -> tuple[list[str], dict[str, NormSite]]:
    """The norms to convert, each by its first name."""
    sites = {site.name: site for site in find_sites(model)}
    if only is None:
        plan.left = [name for name, site in sites.items() if not means(site)]
        return [name for name, site in sites.items() if means(site)], sites
    if callable(only):
        return chosen(sites, only, "only"), sites
    every = {}
    for name, module in model.named_modules(remove_duplicate=False):
        site = site_of(name, module)
        if site is not None:
            every[name] = site
    first = {id(site.module): name for name, site in reversed(sites.items())}
    found = [first[id(every[name].module)] for name in chosen(every, only, "only")]
    return list(dict.fromkeys(found)), sites


def _check_lazy(model: nn.Module) -> None:
    base = nn.modules.batchnorm._NormBase
    for name, module in model.named_modules():
        held = (*module._parameters.values(), *module._buffers.values())
        if isinstance(module, base) and any(t is not None and is_lazy(t) for t in held):
            raise ModelError(
                "A lazy layer cannot be converted yet",
                received=f"{type(module).__name__} {name!r}",
                expected="layers that know their channels",
                remedy="Run an input through the model first.",
            )


def _refusal(plan: _Plan, to: str, number: int) -> ModelError:
    shown = [f"{name or 'the model itself'}: {why}" for name, why in plan.refused[:_SHOWN]]
    more = f"; and {len(plan.refused) - _SHOWN} more" if len(plan.refused) > _SHOWN else ""
    remedies = dict.fromkeys(why.remedy for _, why in plan.refused)
    return ModelError(
        f"{len(plan.refused)} of {number} norms cannot become {to!r}; nothing was changed",
        received="; ".join(shown) + more,
        expected="norms that can",
        remedy=" ".join([*remedies, 'on_refused="skip" converts the others.']),
    )


# --- verification ---------------------------------------------------------------------------------


def _verify(before: nn.Module, after: nn.Module, example: Any, plan: _Plan) -> str:
    """The line that says how far the outputs lie apart.

    Raises:
        ModelError: they should agree, and do not.
    """
    batch = example_batch(example, before)
    apart = difference(before, after, batch) or difference(before, after, batch, wide=False)
    assert apart is not None
    if not all(change.preserves for change in plan.changes):
        return f"measured in eval mode: outputs differ by up to {apart}"
    if not apart.is_rounding:
        raise ModelError(
            "The converted model does not do the same in eval mode; nothing was changed",
            received=f"outputs that differ by {apart}",
            expected="a difference that rounding explains",
            remedy="Find the layer by converting a few at a time with only=, and report it.",
        )
    return f"verified in eval mode: outputs differ by at most {apart}"
