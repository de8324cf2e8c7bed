"""`normkit demo`: the journey of a small network, as a page."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Annotated

import typer

from normkit.cli import options

NAME = "demo"
NEEDS_ARGUMENTS = False
EPILOG = options.examples(
    ("normkit demo", "under two minutes on two cores"),
    ("normkit demo --quick --out page.html", "one seed, fewer steps"),
)


class Init(enum.StrEnum):
    torch = "torch"
    he = "he"


def command(
    quick: Annotated[bool, typer.Option("--quick", help="One seed and fewer steps.")] = False,
    seed: Annotated[int, typer.Option(help="Of the split, the weights and the batches.")] = 0,
    init: Annotated[Init, typer.Option(help="Initial weights: PyTorch's, or He's.")] = Init.torch,
    out: Annotated[
        Path | None, typer.Option(help="The page (out/demo.html by default).", metavar="FILE")
    ] = None,
    show: Annotated[bool, typer.Option("--open", help="Open the page in a browser.")] = False,
    as_json: options.Json = False,
    overwrite: options.Overwrite = False,
    debug: options.Debug = False,  # noqa: ARG001
) -> None:
    """Train with and without batch norm; audit, spoil, repair and fold; write one page."""
    from normkit.demo.main import main

    words = ["--seed", str(seed), "--init", init.value]
    words += ["--quick"] if quick else []
    words += ["--open"] if show else []
    words += ["--json"] if as_json else []
    words += ["--overwrite"] if overwrite else []
    words += [] if out is None else ["--out", str(out)]
    raise typer.Exit(main(words))
