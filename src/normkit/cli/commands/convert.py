"""`normkit convert`: one kind of norm becomes another."""

from __future__ import annotations

import enum
from typing import Annotated

import typer

from normkit.cli import options
from normkit.cli.printing import print_json, print_line

NAME = "convert"
NEEDS_ARGUMENTS = True
EPILOG = options.examples(
    (
        "normkit convert zoo:net --to group --weights best.pt -o grouped.pt",
        "group norm for small batches, groups chosen by divisor",
    ),
    (
        "normkit convert zoo:net --to frozen --only 'layer1.*' --dry-run",
        "what would change",
    ),
)


class Target(enum.StrEnum):
    batch = "batch"
    sync = "sync"
    frozen = "frozen"
    ghost = "ghost"
    renorm = "renorm"
    group = "group"
    layer = "layer"
    instance = "instance"
    frn = "frn"
    torch = "torch"
    normkit = "normkit"


class OnRefused(enum.StrEnum):
    stop = "raise"
    skip = "skip"


def command(
    model: options.Code,
    to: Annotated[Target, typer.Option(help="The kind of norm that is wanted.")],
    out: options.Out = None,
    weights: options.Weights = None,
    only: options.Only = None,
    groups: Annotated[
        str, typer.Option(help="For --to group: a number, or 'auto'.", metavar="N")
    ] = "auto",
    ghost: Annotated[
        int | None, typer.Option(min=1, help="For --to ghost: samples in a ghost batch.")
    ] = None,
    on_refused: Annotated[
        OnRefused, typer.Option(help="What becomes of layers that cannot be converted.")
    ] = OnRefused.stop,
    data: options.Data = None,
    batch_size: options.BatchSize = 2,
    size: options.Size = None,
    mean: options.Mean = None,
    std: options.Std = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say it, write nothing.")] = False,
    as_json: options.Json = False,
    overwrite: options.Overwrite = False,
    debug: options.Debug = False,  # noqa: ARG001
) -> None:
    """Turn norms into another kind; the weights of the converted model are written."""
    from normkit.models.conversion import convert
    from normkit.models.saving import check_weights_output, save_weights

    options.check_code(model)
    if out is None and not dry_run:
        raise typer.BadParameter("say where the weights go with --out, or --dry-run")
    if groups != "auto" and not groups.isdecimal():
        raise typer.BadParameter(f"--groups takes a number or 'auto', not {groups!r}")
    inputs = options.inputs(model, weights)
    if out is not None:
        check_weights_output(out, inputs, overwrite=overwrite)
    opened = options.opened_model(model, weights)
    module = options.module_of(opened)
    batches = options.opened_data(data, batch_size, size, mean, std)
    lines: list[str] = []
    say = lines.append if as_json else print_line
    converted = convert(
        module,
        to.value,
        only=only or None,
        groups=groups if groups == "auto" else int(groups),
        ghost=ghost,
        example=options.first_batch(batches),
        on_refused=on_refused.value,
        report=say,
    )
    if out is not None and not dry_run:
        save_weights(converted, out, inputs, overwrite=overwrite)
    if as_json:
        print_json({"to": to.value, "out": None if dry_run else str(out), "report": lines})
    if out is not None and not dry_run:
        options.note_weights(out, opened)
        told = {
            "only": only or None, "ghost": ghost,
            "groups": None if groups == "auto" else int(groups),
            "on_refused": "skip" if on_refused is OnRefused.skip else None,
        }  # fmt: skip
        given = "".join(f", {name}={value!r}" for name, value in told.items() if value is not None)
        options.note_loading(out, f"models.convert({{model}}, {to.value!r}{given})", model)
