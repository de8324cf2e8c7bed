"""Folding from file to file: what comes out is a file of the kind that its name says."""

from __future__ import annotations

import contextlib
import re
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from normkit.errors import FileError, ModelError
from normkit.extras import needed
from normkit.models.folding.module import fold_with_report
from normkit.models.folding.report import FoldReport
from normkit.models.folding.verifying import Example
from normkit.models.opening import Opened, open_model
from normkit.models.opening.checkpoints import split_part
from normkit.models.saving import ENDINGS, save_weights
from normkit.writing import check_output, replacing

__all__ = ["fold_file"]

#: What each kind of model can be written as.
_OUTPUTS = {
    "module": (".pt2", ".onnx", *ENDINGS),
    "program": (".pt2",),
    "onnx": (".onnx",),
}


def fold_file(
    model: Any,
    out: str | Path,
    *,
    weights: str | Path | None = None,
    example: Any = None,
    tolerance: float | None = None,
    overwrite: bool = False,
    report: Callable[[str], Any] | None = print,
) -> FoldReport:
    """Fold a model and write the result; nothing is written unless both compute the same.

    Args:
        model: as of :func:`normkit.models.open_model`: a ``.pt2`` or ``.onnx`` file, or code.
        out: a ``.pt2`` file from a ``.pt2`` file, ``.onnx`` from ``.onnx``; from code ``.pt2`` or
            ``.onnx``, which are exported on ``example``, or the folded weights alone
            (``.safetensors``, ``.pt``).
        weights: a checkpoint for the model that code makes.
        example: an input; by default one is made up.
        tolerance: relative difference allowed; see :func:`normkit.models.fold`.
        overwrite: replace ``out`` if it exists.
        report: takes the lines that say what was done.

    Raises:
        FileError: the input is damaged, or the output cannot be written.
        ModelError: there is nothing that can be folded in a file of weights alone, or the folded
            model does not do the same.
    """
    out = Path(out)
    inputs = [Path(each) for each in (model, weights) if isinstance(each, (str, Path))]
    inputs = [split_part(path)[0] for path in inputs]
    opened = open_model(model, weights=weights)
    _check_ending(opened, out)
    check_output(out, inputs, overwrite=overwrite)
    _check_example(opened, out, example)
    folded, found = _fold(opened, model, example, tolerance)
    if report is not None:
        for line in found.lines():
            report(line)
    if found.folded and found.verification.why_not:
        raise ModelError(
            "Nothing was written: the folded model could not be compared",
            received=f"{opened.name}: {found.verification.why_not}",
            expected="an input on which both can be run",
            remedy="Pass example=, an input of the model.",
        )
    _write(folded, out, example)
    return found


def _check_ending(opened: Opened, out: Path) -> None:
    possible = _OUTPUTS.get(opened.format)
    if possible is None:
        raise ModelError(
            "Weights alone do not say which layers stand side by side",
            received=opened.name,
            expected="a .pt2 or .onnx file, or code",
            remedy="Name a function, package.module:function, and this file as its weights.",
        )
    if out.suffix not in possible:
        raise FileError(
            "This model cannot be written as such a file",
            received=f"{out} for {opened.name}",
            expected=f"a name that ends in {', '.join(possible)}",
            remedy=f"For instance {out.with_suffix(possible[0])}.",
        )


def _fold(
    opened: Opened, model: Any, example: Any, tolerance: float | None
) -> tuple[Any, FoldReport]:
    if opened.module is not None:
        made_here = opened.module is not model
        module = opened.module.eval() if made_here else opened.module
        return fold_with_report(module, example, tolerance=tolerance)
    if opened.program is not None:
        from normkit.models.folding.program import fold_program

        return fold_program(opened.program, example, tolerance=tolerance)
    from normkit.models.folding.onnx_file import fold_onnx

    return fold_onnx(opened.proto, example, tolerance=tolerance)


def _write(folded: Any, out: Path, example: Any) -> None:
    if isinstance(folded, nn.Module):
        if out.suffix in ENDINGS:
            save_weights(folded, out, overwrite=True)
            return
        folded = _exported(folded, Example.of(example))
    with replacing(out) as temporary, _quiet():
        if out.suffix == ".pt2":
            torch.export.save(folded, temporary)
        elif isinstance(folded, ExportedProgram):
            exported: Any = torch.onnx.export(folded, dynamo=True, verbose=False)
            exported.save(str(temporary))
            _name_batches(temporary)
        else:
            needed("onnx").save(folded, str(temporary))


def _exported(model: nn.Module, example: Example) -> ExportedProgram:
    """The model as a program for batches of any size, where it allows that."""

    def first(value: Any) -> Any:
        many = isinstance(value, torch.Tensor) and value.dim() and len(value) > 1
        return {0: torch.export.Dim.AUTO} if many else None

    args, kwargs = pytree.tree_map(first, (example.args, example.kwargs))
    shapes = kwargs if kwargs else args  # an example is one or the other
    with _quiet():
        return torch.export.export(
            model, example.args, example.kwargs or None, dynamic_shapes=shapes
        )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what libraries warn of in their own code while they export."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _name_batches(path: Path) -> None:
    """Call the size that may vary "batch" instead of a symbol of the exporter's."""
    onnx = needed("onnx")
    proto = onnx.load(str(path), load_external_data=False)
    graph = proto.graph
    first = [i.type.tensor_type.shape.dim[:1] for i in graph.input]
    symbols = {size.dim_param for sizes in first for size in sizes if size.dim_param}
    if len(symbols) != 1:
        return
    symbol = re.compile(rf"\b{re.escape(symbols.pop())}\b")
    for value in (*graph.input, *graph.output, *graph.value_info):
        for size in value.type.tensor_type.shape.dim:
            if size.dim_param:
                size.dim_param = symbol.sub("batch", size.dim_param)
    onnx.save(proto, str(path))


def _check_example(opened: Opened, out: Path, example: Any) -> None:
    if opened.format == "module" and out.suffix not in ENDINGS:
        if example is None:
            raise ModelError(
                "A model is exported by running it",
                received="no example",
                expected="an input of the model",
                remedy="Pass example=, an input of the model, or write weights: .safetensors.",
            )
        if out.suffix == ".onnx":
            needed("onnxscript")
