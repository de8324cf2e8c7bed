"""`normkit convert`: one kind of norm becomes another."""

from __future__ import annotations

import enum
from typing import Annotated

import typer

from normkit.cli import options
from normkit.cli.printing import note, print_json, reporter

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


def command(
    model: options.Model,
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
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say it, write nothing.")] = False,
    as_json: options.Json = False,
    overwrite: options.Overwrite = False,
    debug: options.Debug = False,  # noqa: ARG001
) -> None:
    """Turn norms into another kind; the weights of the converted model are written."""
    from normkit.models.conversion import convert
    from normkit.models.opening import open_model
    from normkit.models.saving import check_weights_output, save_weights

    if out is None and not dry_run:
        raise typer.BadParameter("say where the weights go with --out, or --dry-run")
    if groups != "auto" and not groups.isdecimal():
        raise typer.BadParameter(f"--groups takes a number or 'auto', not {groups!r}")
    inputs = options.inputs(model, weights)
    if out is not None:
        check_weights_output(out, inputs, overwrite=overwrite)
    module = options.module_of(open_model(model, weights=weights))
    lines: list[str] = []
    say = lines.append if as_json else reporter(False)
    converted = convert(
        module,
        to.value,
        only=only or None,
        groups=groups if groups == "auto" else int(groups),
        ghost=ghost,
        report=say,
    )
    if out is not None and not dry_run:
        save_weights(converted, out, inputs, overwrite=overwrite)
    if as_json:
        print_json({"to": to.value, "out": None if dry_run else str(out), "report": lines})
    if out is not None and not dry_run:
        note(f"weights: {out}")
