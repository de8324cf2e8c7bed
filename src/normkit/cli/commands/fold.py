"""`normkit fold`: batch norm disappears into its neighbours, file to file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from normkit.cli import options
from normkit.cli.printing import note, print_json, print_line

NAME = "fold"
NEEDS_ARGUMENTS = True
EPILOG = options.examples(
    ("normkit fold model.onnx folded.onnx", "compared by onnxruntime before it is written"),
    ("normkit fold model.pt2 folded.pt2", "an exported program"),
    (
        "normkit fold zoo:resnet18 folded.pt2 --weights best.pt --data val.npz",
        "code, exported after folding; the first batch is the example",
    ),
)


def command(
    model: options.Graph,
    out: Annotated[
        Path,
        typer.Argument(
            help="The folded model: a file like the input; for code .pt2, .onnx, or weights.",
            metavar="OUT",
        ),
    ],
    weights: options.Weights = None,
    data: options.Data = None,
    batch_size: options.BatchSize = 2,
    size: options.Size = None,
    mean: options.Mean = None,
    std: options.Std = None,
    tolerance: Annotated[
        float | None, typer.Option(min=0.0, help="Relative difference allowed of the outputs.")
    ] = None,
    as_json: options.Json = False,
    overwrite: options.Overwrite = False,
    debug: options.Debug = False,  # noqa: ARG001
) -> None:
    """Fold norms into the layers beside them, check the result, and write it."""
    from normkit.models.folding.files import fold_file
    from normkit.models.saving import ENDINGS

    example = options.first_batch(options.opened_data(data, batch_size, size, mean, std))
    report = fold_file(
        model,
        out,
        weights=weights,
        example=example,
        tolerance=tolerance,
        overwrite=overwrite,
        report=None if as_json else print_line,
    )
    if as_json:
        print_json(report.to_dict())
    note(f"folded model: {out}")
    if out.suffix in ENDINGS:
        call = "models.fold({model}.eval(), report=None)"
        options.note_loading(out, call, model, weights)
