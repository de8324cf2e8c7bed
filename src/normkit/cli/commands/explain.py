"""`normkit explain`: a page about how normalization works, or the graph's numbers as text."""

from __future__ import annotations

import contextlib
import webbrowser
from pathlib import Path
from typing import Annotated

import typer

from normkit.cli import options
from normkit.cli.printing import note, print_json

INPUTS = "What the graph starts with"
NAME = "explain"
NEEDS_ARGUMENTS = False
DEFAULT_OUT = Path("out/explain.html")
EPILOG = options.examples(
    ("normkit explain --open", "a page to look at, to change numbers in, and to read"),
    ("normkit explain --text", "every step of batch norm, forward and backward, as numbers"),
    ('normkit explain --text --x "1,2;3,4;8,0" --eps 1e-5', "of numbers of your own"),
)


def _option(words: str) -> typer.models.OptionInfo:
    return typer.Option(help=words, metavar="NUMBERS", rich_help_panel=INPUTS)


def command(
    text: Annotated[
        bool, typer.Option("--text", help="Print the numbers instead of writing the page.")
    ] = False,
    x: Annotated[
        str | None, _option('Samples with ; between them, channels with ,: "1,2;3,4".')
    ] = None,
    dout: Annotated[
        str | None, _option("The loss's gradient by the output, in the shape of x.")
    ] = None,
    gamma: Annotated[str | None, _option("A number, or one a channel.")] = None,
    beta: Annotated[str | None, _option("The same.")] = None,
    eps: Annotated[
        float | None,
        typer.Option(
            help="Added to the variance (1e-5 with --x; 0.5 for the example).",
            metavar="NUMBER",
            rich_help_panel=INPUTS,
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help=f"The page ({DEFAULT_OUT}).", metavar="FILE")
    ] = None,
    show: Annotated[bool, typer.Option("--open", help="Open the page in a browser.")] = False,
    as_json: options.Json = False,
    overwrite: options.Overwrite = False,
    debug: options.Debug = False,  # noqa: ARG001
) -> None:
    """Show what a norm averages over, and batch norm step by step, with numbers to change."""
    from normkit.explain import values

    given = values(x, dout, gamma, beta, eps)
    if text or as_json:
        if out is not None or show:
            raise typer.BadParameter("--text and --json print; --out and --open are for the page")
        from normkit.explain.text import lines, numbers

        if as_json:
            print_json(numbers(given))
        else:
            typer.echo("\n".join(lines(given)))
        return
    from normkit.explain.page import save

    if out is None:
        out = DEFAULT_OUT
        with contextlib.suppress(OSError):  # what is wrong with the folder is said by save
            out.parent.mkdir(exist_ok=True)
        overwrite = True
    save(given, out, overwrite=overwrite)
    note(f"page: {out}")
    if show:
        webbrowser.open(out.resolve().as_uri())
