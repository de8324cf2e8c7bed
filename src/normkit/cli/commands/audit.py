"""`normkit audit`: a model goes in, findings come out, and a status for continuous integration."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Annotated

import typer

from normkit.cli import options
from normkit.cli.printing import note, print_json

TRAINING = "How the model is trained"
NAME = "audit"
NEEDS_ARGUMENTS = True
EPILOG = options.examples(
    ("normkit audit weights.safetensors", "what weights alone can tell"),
    ("normkit audit zoo:resnet18 --weights best.pt --data val.npz", "all rules, fresh statistics"),
    ("normkit audit model.onnx --html report.html", "a page to look at"),
    ("normkit audit zoo:net --batch-size 2 --json --fail-on error", "for continuous integration"),
)


class Severity(enum.StrEnum):
    info = "info"
    warning = "warning"
    error = "error"


def command(
    model: options.Model,
    weights: options.Weights = None,
    data: options.Data = None,
    batch_size: options.BatchSize = 64,
    html: Annotated[
        Path | None, typer.Option(help="Write a page with pictures of every layer.", metavar="FILE")
    ] = None,
    as_json: options.Json = False,
    fail_on: Annotated[
        Severity, typer.Option(help="The least severity that makes the exit status 1.")
    ] = Severity.warning,
    ignore: Annotated[
        list[str] | None, typer.Option(help="A rule to leave out; repeatable.", metavar="RULE")
    ] = None,
    train_batch: Annotated[
        int | None,
        typer.Option(min=1, help="Samples a batch on one rank.", rich_help_panel=TRAINING),
    ] = None,
    train_size: Annotated[
        int | None,
        typer.Option(min=1, help="Samples an epoch on one rank.", rich_help_panel=TRAINING),
    ] = None,
    drop_last: Annotated[
        bool | None,
        typer.Option(help="An incomplete last batch is left out.", rich_help_panel=TRAINING),
    ] = None,
    ranks: Annotated[
        int | None, typer.Option(min=1, help="Ranks that train together.", rich_help_panel=TRAINING)
    ] = None,
    broadcast_buffers: Annotated[
        bool | None,
        typer.Option(help="DistributedDataParallel's argument.", rich_help_panel=TRAINING),
    ] = None,
    accumulate: Annotated[
        int | None,
        typer.Option(min=1, help="Micro-batches in an optimizer step.", rich_help_panel=TRAINING),
    ] = None,
    averaged: Annotated[
        bool | None,
        typer.Option(
            help="The weights are an average of trained ones (SWA, EMA).", rich_help_panel=TRAINING
        ),
    ] = None,
    verbose: Annotated[
        bool, typer.Option("--verbose", help="List each rule that could not look.")
    ] = False,
    overwrite: options.Overwrite = False,
    debug: options.Debug = False,  # noqa: ARG001 - read where errors are caught
) -> None:
    """Look for faults of normalization; exit status 0: clean, 1: findings, 2: could not run."""
    from normkit.models.auditing import audit
    from normkit.models.opening import open_model
    from normkit.writing import check_output

    if html is not None:
        check_output(html, overwrite=overwrite)
    opened = open_model(model, weights=weights)
    report = audit(
        opened,
        options.opened_data(data, batch_size),
        ignore=tuple(ignore or ()),
        batch_size=train_batch,
        dataset_size=train_size,
        drop_last=drop_last,
        world_size=ranks,
        broadcast_buffers=broadcast_buffers,
        accumulate=accumulate,
        averaged=averaged,
    )
    if html is not None:
        report.save(html, overwrite=overwrite)
        note(f"page: {html}")
    if as_json:
        print_json(report.to_dict())
    else:
        typer.echo(_in_options(report.table(verbose=verbose)))
    raise typer.Exit(report.exit_status(fail_on.value))


def _in_options(words: str) -> str:
    """A report that speaks of Python's arguments, in those of the command."""
    for argument, option in _OPTIONS.items():
        words = words.replace(f"{argument}=", option)
    return words


_OPTIONS = {
    "data": "--data", "weights": "--weights", "batch_size": "--train-batch",
    "dataset_size": "--train-size", "drop_last": "--drop-last", "world_size": "--ranks",
    "broadcast_buffers": "--broadcast-buffers", "accumulate": "--accumulate",
    "averaged": "--averaged", "optimizer": "an optimizer (from Python only)",
}  # fmt: skip
