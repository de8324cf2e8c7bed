"""`normkit audit`: a model goes in, findings come out, and a status for continuous integration."""

from __future__ import annotations

import enum
import shlex
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from normkit.cli import options
from normkit.cli.printing import note, print_json
from normkit.cli.shell import in_shell

if TYPE_CHECKING:
    from normkit.models.auditing import Report
    from normkit.models.opening import Opened

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
    size: options.Size = None,
    mean: options.Mean = None,
    std: options.Std = None,
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

    if html is not None:
        _check_page(html, overwrite)
    opened = options.opened_model(model, weights)
    report = audit(
        opened,
        options.opened_data(data, batch_size, size, mean, std),
        ignore=tuple(ignore or ()),
        batch_size=train_batch,
        dataset_size=train_size,
        drop_last=drop_last,
        world_size=ranks,
        broadcast_buffers=broadcast_buffers,
        accumulate=accumulate,
        averaged=averaged,
    )
    report = _in_shell(report)
    command = _repair(report, opened, model, weights, data)
    if html is not None:
        shown = f"in the shell: {command}" if command else ""
        noted = replace(report, notes=[*report.notes, *filter(None, (opened.note, shown))])
        noted.save(html, overwrite=overwrite)
        note(f"page: {html}")
    if as_json:
        print_json(report.to_dict())
    else:
        typer.echo(report.table(verbose=verbose))
        if command:
            typer.echo(f"\nIn the shell: {command}")
    raise typer.Exit(report.exit_status(fail_on.value))


def _check_page(html: Path, overwrite: bool) -> None:
    from normkit.writing import check_output

    check_output(html, overwrite=overwrite, example="audit.html")
    if html.suffix.lower() not in (".html", ".htm"):
        raise typer.BadParameter(f"--html writes a page: a name that ends in .html, not {html}")


def _in_shell(report: Report) -> Report:
    """A report that speaks of Python's arguments, in those of the command."""
    findings = [
        replace(f, measured=in_shell(f.measured), why=in_shell(f.why), repair=in_shell(f.repair))
        for f in report.findings
    ]
    skipped = [replace(each, needs=in_shell(each.needs)) for each in report.skipped]
    notes = [in_shell(each) for each in report.notes]
    return replace(report, findings=findings, skipped=skipped, notes=notes)


def _repair(
    report: Report, opened: Opened, model: str, weights: Path | None, data: str | None
) -> str:
    """The command that does what the first repair does that has one; "" without."""
    if opened.format == "checkpoint":
        model, weights = "PACKAGE.MODULE:FUNCTION", Path(model)
    loaded = "" if weights is None else f" --weights {shlex.quote(str(weights))}"
    source = f"{shlex.quote(model)}{loaded}"
    read = "DATA" if data is None else shlex.quote(data)
    code = opened.format in ("module", "checkpoint")
    commands = {
        "normkit.models.recalibrate(": f"normkit recalibrate {source} --data {read} --out FILE",
        "normkit.models.fold(": f"normkit fold {source} FILE",
        "normkit.models.convert(": f"normkit convert {source} --to KIND --out FILE",
    }
    for finding in report.findings:
        for call, command in commands.items():
            if call in finding.repair and (code or "fold(" in call):
                return command
    return ""
