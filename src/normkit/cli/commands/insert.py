"""`normkit insert`: batch norm is added to a network that computes the same as before."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from normkit.cli import options
from normkit.cli.printing import print_json, print_line

NAME = "insert"
NEEDS_ARGUMENTS = True
EPILOG = options.examples(
    (
        "normkit insert zoo:vgg --after 'features.*' --data train.npz -o with_norm.pt",
        "γ = √(Var + ε) and β = E, measured: every norm starts as the identity",
    ),
    (
        "normkit insert zoo:vgg --after conv --data train.npz --drop-bias -o with_norm.pt",
        "without the biases that it makes redundant",
    ),
)


def command(
    model: options.Code,
    after: Annotated[
        list[str],
        typer.Option(help="Layers: names, patterns, 'conv' or 'linear'; repeatable."),
    ],
    data: options.NeededData,
    out: Annotated[
        Path,
        typer.Option("--out", "-o", help="The new weights: .safetensors or .pt.", metavar="FILE"),
    ],
    weights: options.Weights = None,
    drop_bias: Annotated[
        bool, typer.Option("--drop-bias", help="Drop the biases that become redundant.")
    ] = False,
    batch_size: options.BatchSize = 64,
    size: options.Size = None,
    mean: options.Mean = None,
    std: options.Std = None,
    as_json: options.Json = False,
    overwrite: options.Overwrite = False,
    debug: options.Debug = False,  # noqa: ARG001
) -> None:
    """Add batch norm behind layers without changing what the network computes."""
    from normkit.models.inserting import insert
    from normkit.models.saving import check_weights_output, save_weights

    options.check_code(model)
    inputs = options.inputs(model, weights)
    check_weights_output(out, inputs, overwrite=overwrite)
    opened = options.opened_model(model, weights)
    module = options.module_of(opened)
    lines: list[str] = []
    say = lines.append if as_json else print_line
    changed = insert(
        module,
        after=after,
        data=options.opened_data(data, batch_size, size, mean, std),
        drop_bias=drop_bias,
        report=say,
    )
    save_weights(changed, out, inputs, overwrite=overwrite)
    if as_json:
        print_json({"out": str(out), "report": lines})
    options.note_weights(out, opened)
    batches = ", ".join([repr(data), *([f"size={size}"] if size is not None else [])])
    bare = ", drop_bias=True" if drop_bias else ""
    call = f"models.insert({{model}}, {after!r}, models.open_data({batches}){bare})"
    options.note_loading(out, call, model)
