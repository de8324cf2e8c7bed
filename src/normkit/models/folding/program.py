"""Norms of an exported program folded away, with proof."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import fx
from torch.export import ExportedProgram

from normkit.errors import DataError, DTypeError
from normkit.models.folding.planning import Plan
from normkit.models.folding.program_edit import edited
from normkit.models.folding.program_run import Runner, examples_for, suited
from normkit.models.folding.report import FoldReport, Verification, report_of
from normkit.models.folding.stored import StoredLayers
from normkit.models.folding.verifying import Example, time_both, verify
from normkit.models.graphs import program_ops as ops
from normkit.models.graphs.graph import Node
from normkit.models.graphs.program import read_program
from normkit.models.graphs.program_weights import StoredTensors
from normkit.models.graphs.reading import StandIns, Stored

__all__ = ["fold_program"]

Tensor = torch.Tensor


def fold_program(
    program: ExportedProgram,
    example: Any = None,
    *,
    tolerance: float | None = None,
    measure: bool = True,
) -> tuple[ExportedProgram, FoldReport]:
    """A program whose norms have gone into its layers, and what was done.

    Args:
        program: of ``torch.export``, of a model in eval mode, decomposed or not. It is not changed;
            what stays the same is shared with the result.
        example: the program's input (a tensor, a tuple of arguments, or a dictionary of keyword
            arguments or of inputs by their names), on which the two are compared in float64:
            results and the values in which layers changed. By default random inputs of the shapes
            with which it was exported.
        tolerance: relative difference allowed in the program's own dtype; by default none is asked
            for beside that in float64.
        measure: time both.

    Raises:
        ModelError: the folded program does not do the same.
        DataError: the program does not take the example.

    >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4)).eval()
    >>> program = torch.export.export(net, (torch.zeros(1, 3, 8, 8),))
    >>> folded, report = fold_program(program, measure=False)
    >>> [(fold.norm, fold.into) for fold in report.folded], sorted(folded.state_dict)
    ([('1', ('0',))], ['0.bias', '0.weight'])
    """
    if not isinstance(program, ExportedProgram):
        raise DTypeError(
            "fold_program() has no program",
            received=type(program).__name__,
            expected="a torch.export.ExportedProgram",
            remedy="torch.export.load(file) gives one; for modules there is fold().",
        )
    layers = _layers(program)
    planned = layers.plan()
    before = _parameters(program)
    if not planned.folds:
        nothing = Verification(why_not="nothing was folded")
        return program, report_of(planned, (before, before), nothing)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of PyTorch, about itself
        folded, _ = edited(program, layers, planned)
        used, checked = _proved(program, layers, planned, example, tolerance)
        if measure and used is not None:
            checked = checked.timed(*time_both(program.module(), folded.module(), used))
    return folded, report_of(planned, (before, _parameters(folded)), checked)


def _parameters(program: ExportedProgram) -> int:
    names = {spec.target for spec in program.graph_signature.input_specs}
    parameters = set(program.graph_signature.parameters) & names
    return sum(program.state_dict[name].numel() for name in parameters)


def _layers(program: ExportedProgram) -> StoredLayers:
    reading, stored, number = read_program(program), StoredTensors(program), StandIns()

    def tensor(found: Stored) -> Tensor:
        value = stored.tensor(found.name)
        return value.t() if found.turned else value

    def sizes(node: Node) -> tuple[int, ...] | None:
        return _numbers(node.handle, number)

    return StoredLayers(reading, tensor, sizes, _changed_in_place)


def _numbers(node: Any, number: Callable[[str], int]) -> tuple[int, ...] | None:
    """A value's shape with a number for each symbol, in expressions of them too."""
    value = node.meta.get("val") if isinstance(node, fx.Node) else None
    if isinstance(value, (tuple, list)) and value:
        value = value[0]
    if not isinstance(value, Tensor):
        return None
    sizes: tuple[Any, ...] = tuple(value.shape)
    expressions = [n.node.expr if isinstance(n, torch.SymInt) else None for n in sizes]
    return tuple(
        n if e is None else int(e.subs({s: number(str(s)) for s in e.free_symbols}))
        for n, e in zip(sizes, expressions, strict=True)
    )


def _changed_in_place(node: Node) -> str:
    """A norm gives a copy; without it, later changes of its input in place would be seen."""
    norm: fx.Node = node.handle
    source = ops.arguments_of(norm).get("input", norm.all_input_nodes[0])
    order = {n: place for place, n in enumerate(norm.graph.nodes)}
    for alias in _aliases(source):
        for user in alias.users:
            if ops.is_inplace(user) and user.args[0] is alias and order[user] > order[norm]:
                return f"{user.name} changes its input in place"
    return ""


def _aliases(value: fx.Node) -> set[fx.Node]:
    """The values that may share memory with this one."""
    base = value
    while base.op == "call_function" and ops.is_alias(base):
        base = base.args[0]  # type: ignore[assignment]
    found, waiting = {base}, [base]
    while waiting:
        for user in waiting.pop().users:
            if user.op == "call_function" and ops.is_alias(user) and user not in found:
                found.add(user)
                waiting.append(user)
    return found


def _proved(
    program: ExportedProgram,
    layers: StoredLayers,
    planned: Plan,
    example: Any,
    tolerance: float | None,
) -> tuple[Example | None, Verification]:
    if example is None:
        inputs = examples_for(program)
    else:
        inputs = iter([_fitting(program, Example.of(example))])
    _, same = edited(program, layers, planned)

    def change(trial: torch.nn.Module) -> None:
        assert isinstance(trial, Runner)
        dtypes = {parameter.dtype for parameter in trial.parameters()}
        wide = torch.float64 if dtypes == {torch.float64} else None
        trial.become(edited(program, layers, planned, wide)[0], list(same.values()))
        trial.to(wide)

    try:
        return verify(Runner(program, list(same)), change, inputs, (), tolerance)
    except DataError:
        if example is not None:
            raise
    return None, Verification(why_not="no input could be guessed: pass example=")


def _fitting(program: ExportedProgram, example: Example) -> Example:
    try:
        return suited(program, example)
    except ValueError as error:
        raise DataError(
            "The program does not take the example",
            received=str(error),
            expected="what it was exported with",
            remedy="A tuple holds several arguments, a dictionary keyword arguments.",
        ) from error
