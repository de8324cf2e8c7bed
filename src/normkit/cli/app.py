"""The commands and their names. No framework is imported before a command runs."""

from __future__ import annotations

from typing import Annotated

import typer

from normkit.cli.commands import (
    audit,
    bench,
    convert,
    demo,
    explain,
    fold,
    insert,
    lab,
    port,
    recalibrate,
)

app = typer.Typer(
    name="normkit",
    help="Find, repair, fold away, convert and understand the normalization of a network.",
    epilog="[dim]normkit COMMAND --help shows examples.[/dim]",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)

for module in (audit, recalibrate, fold, convert, port, insert, bench, demo, explain):
    app.command(module.NAME, epilog=module.EPILOG, no_args_is_help=module.NEEDS_ARGUMENTS)(
        module.command
    )
app.add_typer(lab.app, name=lab.NAME, help=lab.HELP)


def _version(asked: bool) -> None:
    if asked:
        import normkit

        typer.echo(f"normkit {normkit.__version__}")
        raise typer.Exit


@app.callback()
def common(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Find, repair, fold away, convert and understand the normalization of a network."""
