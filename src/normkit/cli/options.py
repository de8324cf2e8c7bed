"""Arguments and options that several commands share, each said once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from normkit.errors import ModelError

Model = Annotated[
    str,
    typer.Argument(
        help="A .safetensors, .pt/.pth, .pt2 or .onnx file, or code: package.module:function, "
        "which returns a torch.nn.Module.",
        metavar="MODEL",
    ),
]
Weights = Annotated[
    Path | None,
    typer.Option(help="A checkpoint to load into the model that code gave.", metavar="FILE"),
]
Data = Annotated[
    str | None,
    typer.Option(
        help="An .npz or .npy file, a folder of images, or code: package.module:function, which "
        "returns batches.",
    ),
]
NeededData = Annotated[
    str,
    typer.Option(
        help="An .npz or .npy file, a folder of images, or code: package.module:function, which "
        "returns batches.",
    ),
]
BatchSize = Annotated[
    int, typer.Option(min=1, help="Samples a batch, of files and folders of images.")
]
Out = Annotated[
    Path | None,
    typer.Option(
        "--out", "-o", help="Where the new weights go: .safetensors or .pt.", metavar="FILE"
    ),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the output if it exists.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of words.")]
Only = Annotated[
    list[str] | None,
    typer.Option("--only", help="Names of layers, or patterns such as 'layer4.*'; repeatable."),
]
Debug = Annotated[bool, typer.Option("--debug", help="Show where an error comes from.")]


def examples(*lines: tuple[str, str]) -> str:
    """The end of a command's help: commands that can be pasted, each with what it does."""
    shown = [f"  {command}\n    [dim]{what}[/dim]" for command, what in lines]
    return "[bold]Examples[/bold]\n\n" + "\n\n".join(shown)


def opened_data(what: str | None, batch_size: int) -> Any:
    """The data that the user named; None without."""
    if what is None:
        return None
    from normkit.models.opening import open_data

    return open_data(what, batch_size=batch_size)


def module_of(opened: Any) -> Any:
    """The torch.nn.Module of an opened model.

    Raises:
        ModelError: it has none: a file of weights, or a program.
    """
    if opened.module is None:
        raise ModelError(
            "This needs the model itself",
            received=f"{opened.name}, which is {_FORMATS.get(opened.format, opened.format)}",
            expected="code that makes the model",
            remedy="Name a function, package.module:function, and this file as --weights.",
        )
    return opened.module


_FORMATS = {
    "checkpoint": "a file of weights only",
    "program": "an exported program",
    "onnx": "an ONNX model",
}


def inputs(model: str, weights: Path | None) -> list[Path]:
    """The files that a command reads, which its result must not replace unasked."""
    return [path for path in (weights, Path(model)) if path is not None]
