"""`normkit recalibrate`: exact statistics of a data set, written with the weights."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Annotated

import typer

from normkit.cli import options
from normkit.cli.printing import print_json

NAME = "recalibrate"
NEEDS_ARGUMENTS = True
EPILOG = options.examples(
    (
        "normkit recalibrate zoo:resnet18 --weights best.pt --data train.npz -o repaired.pt",
        "statistics of all the training data, exactly",
    ),
    (
        "normkit recalibrate zoo:net --weights best.pt --data night_images/ -o night.safetensors",
        "statistics of another domain (AdaBN)",
    ),
)


class Method(enum.StrEnum):
    population = "population"
    ema = "ema"
    cumulative = "cumulative"


def command(
    model: options.Code,
    data: options.NeededData,
    out: Annotated[
        Path,
        typer.Option("--out", "-o", help="The new weights: .safetensors or .pt.", metavar="FILE"),
    ],
    weights: options.Weights = None,
    method: Annotated[
        Method,
        typer.Option(help="Exact statistics of everything, or what training batches would leave."),
    ] = Method.population,
    layerwise: Annotated[
        bool,
        typer.Option("--layerwise", help="Layer after layer, each behind corrected ones: slower."),
    ] = False,
    batch_size: options.BatchSize = 64,
    size: options.Size = None,
    mean: options.Mean = None,
    std: options.Std = None,
    as_json: options.Json = False,
    overwrite: options.Overwrite = False,
    debug: options.Debug = False,  # noqa: ARG001
) -> None:
    """Take the running statistics anew from data; nothing is written if that fails."""
    from normkit.models.recalibration import recalibrate
    from normkit.models.saving import check_weights_output, save_weights

    options.check_code(model)
    inputs = options.inputs(model, weights)
    check_weights_output(out, inputs, overwrite=overwrite)
    opened = options.opened_model(model, weights)
    module = options.module_of(opened)
    batches = options.opened_data(data, batch_size, size, mean, std)
    shifts = recalibrate(module, batches, method.value, layerwise=layerwise)
    save_weights(module, out, inputs, overwrite=overwrite)
    if as_json:
        print_json(shifts.to_dict())
    else:
        typer.echo(str(shifts))
    options.note_weights(out, opened)
