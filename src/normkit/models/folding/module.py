"""Norms of a torch.nn.Module folded away, with proof."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from normkit.errors import DataError, ModelError
from normkit.models.folding.algebra import changed
from normkit.models.folding.planning import Plan
from normkit.models.folding.probing import tail_of, without_affine
from normkit.models.folding.reading import Reading, layer_of, read
from normkit.models.folding.replacing import Edits
from normkit.models.folding.report import FoldReport, Verification, report_of
from normkit.models.folding.verifying import Example, examples_for, time_both, verify
from normkit.models.proof import copied
from normkit.models.sites import site_of

__all__ = ["fold", "fold_with_report", "plan_folds"]


def fold(
    model: nn.Module,
    example: Any = None,
    *,
    tolerance: float | None = None,
    report: Callable[[str], Any] | None = print,
    inplace: bool = False,
) -> nn.Module:
    """A model for inference whose norms have gone into its layers, and which computes the same.

    A batch norm becomes part of the convolution or linear layer before it, or of those after it;
    ``torch.nn.Identity`` or the norm's own activation stands in its place. Of layer, RMS, group and
    instance norms gamma and beta go into the layers after them. Norms for which that would change
    the function stay as they are. Mode, devices, dtypes and other hooks stay; in training the
    folded norms would be frozen ones.

    Args:
        model: in eval mode.
        example: the model's input (a tensor, a tuple of arguments or a dictionary of keyword
            arguments), on which the two are compared in float64: the outputs, and those of each
            layer that changed. By default random inputs of the first layer's shape are tried.
        tolerance: relative difference allowed in the model's own dtype; by default nothing is asked
            for beside 1e-8 in float64.
        report: takes the lines that say what was done; None for silence, which saves measuring
            the speed.
        inplace: change the model itself and return it, instead of a copy.

    Raises:
        ModelError: the model is in training mode, cannot be copied, or does not do the same when
            folded. It is as it was.
        DataError: the model does not take the example.

    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).eval()
    >>> folded = fold(net)
    fold: 1 of 1 norm folded into 1 layer; 8 parameters fewer (6.7%)
    fold: verified on random input of shape (2, 3, 32, 32): outputs differ by at most ...
    >>> folded[1]
    Identity()
    """
    ready = _prepare(model, example, tolerance, measure=report is not None)
    if report is not None:
        for line in ready.report.lines():
            report(line)
    return ready.result(inplace)


def fold_with_report(
    model: nn.Module,
    example: Any = None,
    *,
    tolerance: float | None = None,
    inplace: bool = False,
    measure: bool = True,
) -> tuple[nn.Module, FoldReport]:
    """As :func:`fold`, without printing: the model and what was done.

    Args:
        model, example, tolerance, inplace: as there.
        measure: measure the speed too, which takes a second or a few forwards.

    >>> folded, report = fold_with_report(nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3)).eval())
    >>> report.folded, report.refused
    ((), (('1', 'not into the layers after it: its result is an output of the model'),))
    """
    ready = _prepare(model, example, tolerance, measure)
    return ready.result(inplace), ready.report


def plan_folds(model: nn.Module) -> FoldReport:
    """What :func:`fold` would do; nothing is run on data.

    Raises:
        ModelError: the model is in training mode.

    >>> net = nn.Sequential(nn.LayerNorm(3), nn.Linear(3, 8), nn.BatchNorm1d(8)).eval()
    >>> [(fold.norm, fold.direction, fold.into) for fold in plan_folds(net).folded]
    [('0', 'after', ('1',)), ('2', 'before', ('1',))]
    """
    planned = read(model).plan()
    return _ready(model, copied(model), planned, Verification(why_not="it is only planned")).report


@dataclass(frozen=True, eq=False)
class _Ready:
    """A model that has been examined, and what is to be done to it."""

    model: nn.Module
    folded: nn.Module
    plan: Plan
    report: FoldReport

    def result(self, inplace: bool) -> nn.Module:
        """The folded copy, or the model after the same changes."""
        if not inplace:
            return self.folded
        _edits(self.model, self.plan)[0].make()
        return self.model


def _prepare(model: Any, example: Any, tolerance: float | None, measure: bool) -> _Ready:
    """Plan, prove and measure; the model itself is only looked at."""
    reading = read(model)
    spare = copied(model)
    planned = reading.plan()
    if not planned.folds:
        return _ready(model, spare, planned, Verification(why_not="nothing was folded"))
    given = None if example is None else Example.of(example)
    try:
        used, checked = _proved(reading, planned, given, tolerance)
    except ModelError:
        safe = reading.plan(islands="its surroundings cannot be traced, and folding it changed "
                            "the result")  # fmt: skip
        if len(safe.folds) == len(planned.folds):
            raise
        planned = safe
        used, checked = _proved(reading, planned, given, tolerance)
    if checked.why_not:
        planned = reading.plan(islands="its surroundings cannot be traced: pass example=, so that "
                               "folding can be verified")  # fmt: skip
    ready = _ready(model, spare, planned, checked)
    if not measure or used is None or checked.why_not:
        return ready
    checked = checked.timed(*time_both(model, ready.folded, given or used))
    return replace(ready, report=replace(ready.report, verification=checked))


def _proved(
    reading: Reading, planned: Plan, given: Example | None, tolerance: float | None
) -> tuple[Example | None, Verification]:
    """The comparison, and the example on which it was made."""
    if given is None:
        inputs = examples_for(reading.model, reading.first_layer())
    else:
        inputs = iter([given.few(), given])
    try:
        return verify(
            reading.model,
            lambda trial: _edits(trial, planned)[0].make(),
            inputs,
            _watched(planned),
            tolerance,
        )
    except DataError:
        if given is not None:
            raise
    return None, Verification(why_not="no input could be guessed: pass example=")


def _ready(model: nn.Module, folded: nn.Module, planned: Plan, checked: Verification) -> _Ready:
    """The copy folded, and the report on it."""
    edits, left = _edits(folded, planned)
    edits.make()
    counts = _parameters(model), _parameters(folded)
    return _Ready(model, folded, planned, report_of(planned, counts, checked, left))


def _parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _watched(planned: Plan) -> list[str]:
    """For each changed layer the place behind which everything is as it was.

    That is the layer itself, or the last of the norms that went into its outputs.
    """
    places: dict[str, str] = {}
    for fold in planned.folds:
        for node in fold.into:
            if fold.direction == "before":
                places[node.name] = fold.site.name
            else:
                places.setdefault(node.name, node.target)
    return list(places.values())


def _edits(model: nn.Module, planned: Plan) -> tuple[Edits, dict[str, str]]:
    """The plan's changes to a model or a copy, not made yet; what is left of norms, in words."""
    edits, left = Edits(), {}
    for fold in planned.folds:
        norm = model.get_submodule(fold.site.name)
        if fold.whole:
            edits.replace(model, norm, tail_of(norm) if fold.tail else nn.Identity())
            continue
        site = site_of(fold.site.name, norm)
        assert site is not None
        tensors, flags = without_affine(site, fold.form)
        for name, value in tensors.items():
            edits.tensor(norm, name, value)
        for name, flag in flags.items():
            edits.attribute(norm, name, flag)
        if any(value is not None for value in tensors.values()):
            left[site.name] = "the normalization with ones for gamma and zeros for beta"
    for node in {n.name: n for fold in planned.folds for n in fold.into}.values():
        module = model.get_submodule(node.target)
        layer = changed(layer_of(node.op, module), planned.changes[node.name])
        edits.tensor(module, "weight", layer.weight)
        if layer.bias is not None:
            edits.tensor(module, "bias", layer.bias)
    return edits, left
