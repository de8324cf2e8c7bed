"""Arguments and options that several commands share, each said once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from normkit.cli.printing import note
from normkit.errors import ModelError
from normkit.words import listed

Model = Annotated[
    str,
    typer.Argument(
        help="A .safetensors, .pt/.pth, .pt2 or .onnx file, or code: package.module:function, "
        "which returns a torch.nn.Module.",
        metavar="MODEL",
    ),
]
Code = Annotated[
    str,
    typer.Argument(
        help="Code: package.module:function, which returns a torch.nn.Module.", metavar="MODEL"
    ),
]
Graph = Annotated[
    str,
    typer.Argument(
        help="A .pt2 or .onnx file, or code: package.module:function, which returns a "
        "torch.nn.Module.",
        metavar="MODEL",
    ),
]
Weights = Annotated[
    Path | None,
    typer.Option(
        help="A checkpoint to load into the model that code gave; best.pt:ema takes the weights "
        "under that name.",
        metavar="FILE",
    ),
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
Size = Annotated[
    int | None,
    typer.Option(min=1, help="Images are scaled and cropped to this many pixels a side."),
]
Mean = Annotated[
    str | None,
    typer.Option(
        help="Taken from the inputs of files and folders, after bytes are scaled to [0, 1]: a "
        "number, or one a channel: 0.485,0.456,0.406.",
        metavar="NUMBERS",
    ),
]
Std = Annotated[
    str | None,
    typer.Option(help="The inputs are divided by it: the same.", metavar="NUMBERS"),
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


def opened_data(
    what: str | None,
    batch_size: int,
    size: int | None = None,
    mean: str | None = None,
    std: str | None = None,
) -> Any:
    """The data that the user named; None without. How bytes were scaled is said once."""
    standard = {"mean": _numbers("--mean", mean), "std": _numbers("--std", std)}
    if what is None:
        return None
    from normkit.models.opening import open_data

    data = open_data(what, batch_size=batch_size, size=size, **standard)
    words = getattr(data, "words", "")
    if words:
        given = mean is not None or std is not None
        rest = ", then standardized" if given else (
            "; give --mean and --std if the model was trained with them"
        )  # fmt: skip
        note(f"{what}: {words}{rest}")
    return data


def first_batch(data: Any) -> Any:
    """The first batch's arguments, as an example; None without data."""
    if data is None:
        return None
    from normkit.models.batches import batches_of

    batch = next(iter(batches_of(data)))
    return batch.kwargs or batch.args


def _numbers(option: str, text: str | None) -> list[float] | None:
    if text is None:
        return None
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise typer.BadParameter(
            f"{option} takes a number, or one a channel such as 0.5,0.4,0.4, not {text!r}"
        ) from None


def opened_model(model: str, weights: Path | None = None) -> Any:
    """What the user named; which of several weights were taken is said."""
    from normkit.models.opening import open_model

    opened = open_model(model, weights=weights)
    if opened.note:
        note(opened.note)
    return opened


def check_code(model: str) -> None:
    """Complain of a file where code is needed, before anything else is looked at.

    Raises:
        ModelError: the file is weights, or a program.
        FileError: it is no model, or missing.
    """
    from normkit.models.opening.code import is_reference

    if Path(model).exists() or not is_reference(model):
        module_of(opened_model(model))


def module_of(opened: Any) -> Any:
    """The torch.nn.Module of an opened model.

    Raises:
        ModelError: it has none: a file of weights, or a program.
    """
    if opened.module is None:
        what, remedy = _FORMATS[opened.format]
        raise ModelError(
            "This needs the model itself",
            received=f"{opened.name}, which is {what}",
            expected="code that makes the model: package.module:function",
            remedy=remedy,
        )
    return opened.module


_AS_IT_IS = "Name the code that it was exported from; audit and fold take it as it is."
_FORMATS = {
    "checkpoint": ("a file of weights only", "Name the code, and this file as --weights."),
    "program": ("an exported program", _AS_IT_IS),
    "onnx": ("an ONNX model", _AS_IT_IS),
}


def inputs(model: str, weights: Path | None) -> list[Path]:
    """The files that a command reads, which its result must not replace unasked."""
    from normkit.models.opening.checkpoints import split_part

    return [split_part(path)[0] for path in (weights, Path(model)) if path is not None]


def note_weights(out: Path, opened: Any) -> None:
    """Say where the weights went, and what of the checkpoint did not."""
    left = f"; of {opened.path.name} not taken over: {listed(opened.left)}" if opened.left else ""
    note(f"weights: {out}{left}")


def note_loading(out: Path, change: str, model: str, weights: Path | None = None) -> None:
    """Say how weights are loaded that only the changed model takes.

    Args:
        change: the call that changes the model, with {model} for it.
    """
    source = repr(model) if weights is None else f"{model!r}, weights={str(weights)!r}"
    safe = out.suffix == ".safetensors"
    library, load = ("safetensors.torch", "load_file") if safe else ("torch", "load")
    changed = change.format(model=f"models.open_model({source}).module")
    note(
        f"load: import {library}; from normkit import models; model = {changed}; "
        f"model.load_state_dict({library}.{load}({str(out)!r}))"
    )
