"""`normkit port`: weights of norms from one framework to another."""

from __future__ import annotations

import enum
import json
from pathlib import Path
from typing import Annotated, Any

import typer

from normkit.cli import options
from normkit.cli.printing import note, print_json, print_line, print_table

NAME = "port"
NEEDS_ARGUMENTS = True
EPILOG = options.examples(
    ("normkit port model.keras norms.safetensors --to torch", "the norms of a Keras model"),
    ("normkit port model.onnx --to keras --dry-run", "what would differ; nothing is written"),
    (
        "normkit port model.keras weights.safetensors --to torch --into zoo:net --names names.json",
        "into a PyTorch model, all of whose weights are written",
    ),
)


class Target(enum.StrEnum):
    torch = "torch"
    keras = "keras"
    flax = "flax"
    linen = "linen"
    equinox = "equinox"
    onnx = "onnx"


class OnRefused(enum.StrEnum):
    stop = "raise"
    skip = "skip"


class Match(enum.StrEnum):
    names = "names"
    order = "order"


def command(
    source: Annotated[
        str,
        typer.Argument(
            help="A .keras, .onnx, .safetensors, .pt or .pt2 file, or code: "
            "package.module:function, which returns a model of any framework.",
            metavar="SOURCE",
        ),
    ],
    to: Annotated[Target, typer.Option(help="The framework that the weights are for.")],
    out: Annotated[
        Path | None,
        typer.Argument(help="Where they go: .safetensors, or .pt for PyTorch.", metavar="OUT"),
    ] = None,
    only: options.Only = None,
    eps: Annotated[
        float | None, typer.Option(min=0.0, help="Of a checkpoint, which does not say it.")
    ] = None,
    kind: Annotated[
        list[str] | None,
        typer.Option(
            help="Of a checkpoint's norm whose name does not say it, by name or pattern: "
            "'*.norm1=layer', 'stem.gn=group:32'. Several times.",
            metavar="NAME=KIND",
        ),
    ] = None,
    batch_elements: Annotated[
        int | None,
        typer.Option(
            min=2,
            help="Correct running variances that are biased here and unbiased there, for batches "
            "with so many elements a channel.",
        ),
    ] = None,
    into: Annotated[
        str | None,
        typer.Option(
            help="A PyTorch model as code: package.module:function. The norms are loaded into it, "
            "and all of its weights are written.",
            metavar="MODEL",
        ),
    ] = None,
    names: Annotated[
        Path | None,
        typer.Option(
            help="A JSON file: for names in the source those in the target.", metavar="FILE"
        ),
    ] = None,
    match: Annotated[
        Match, typer.Option(help="For --into: match layers by names, or by their order.")
    ] = Match.names,
    on_refused: Annotated[
        OnRefused, typer.Option(help="What becomes of norms without a counterpart.")
    ] = OnRefused.stop,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say it, write nothing.")] = False,
    as_json: options.Json = False,
    overwrite: options.Overwrite = False,
    debug: options.Debug = False,  # noqa: ARG001
) -> None:
    """Port the weights of norms to another framework; both sides are run and compared."""
    from normkit.models.porting.matching import renamed as check_names
    from normkit.models.porting.ported import check_ported_output
    from normkit.models.porting.porting import port_source
    from normkit.models.porting.sources import open_source

    if out is None and not dry_run:
        raise typer.BadParameter("say where the weights go: normkit port SOURCE OUT, or --dry-run")
    if into is not None and to is not Target.torch:
        raise typer.BadParameter("--into takes a PyTorch model, so it goes with --to torch")
    renamed = None if names is None else _names(names)
    if out is not None:
        check_ported_output(
            out, to.value, options.inputs(source, names), overwrite=overwrite or dry_run
        )
    ported = port_source(
        open_source(source, eps, _kinds(kind or [])), to.value, only=only or None,
        batch_elements=batch_elements, on_refused=on_refused.value,
    )  # fmt: skip
    if into is None:
        check_names(ported.layers, renamed)
    model = None if into is None else _model(ported, into, renamed, match.value)
    if as_json:
        written = None if dry_run or out is None else str(out)
        print_json({**ported.to_dict(), "out": written})
    else:
        print_table(*ported.table())
        for line in ported.lines():
            print_line(line)
    if dry_run or out is None:
        return
    if model is None:
        ported.save(out, names=renamed, overwrite=overwrite)
    else:
        from normkit.models.saving import save_weights

        save_weights(model, out, overwrite=overwrite)
    note(f"weights: {out}")
    if model is not None:
        note(f"only the norms came from {ported.source}; all other weights are those of {into}")
    if model is not None or out.suffix == ".pt":
        _say_unwritten(ported)


def _say_unwritten(ported: Any) -> None:
    """What a file of tensors cannot hold."""
    from normkit.models.porting.conventions import convention
    from normkit.words import listed

    names: dict[str, list[str]] = {}
    for name, weights in ported.layers.items():
        momentum = convention(ported.target).momentum_of(weights.keep)
        also = "" if momentum is None else f", momentum={momentum:g}"
        names.setdefault(f"eps={weights.eps:g}{also}", []).append(name)
    for values, layers in names.items():
        note(f"the file holds no eps and no momentum: set {values} in {listed(layers, 6)}")


def _kinds(pairs: list[str]) -> dict[str, str]:
    if not all("=" in pair for pair in pairs):
        raise typer.BadParameter(f"--kind wants NAME=KIND, such as '*.norm1=layer', not {pairs}")
    return dict(pair.split("=", 1) for pair in pairs)


def _model(ported: Any, into: str, names: dict[str, str] | None, match: str) -> Any:
    options.check_code(into)
    model = options.module_of(options.opened_model(into))
    return ported.into(model, names=names, match=match, report=note)


def _names(path: Path) -> dict[str, str]:
    """The pairs in a JSON file."""
    from normkit.errors import FileError
    from normkit.models.opening.detect import checked_file

    checked_file(path, (".json",))
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        found = f"no JSON: {error}"
    if isinstance(found, dict) and all(isinstance(v, str) for v in found.values()):
        return found
    raise FileError(
        "The file does not say which name is which",
        received=f"{path}: {str(found)[:80]}",
        expected='a JSON object such as {"conv1_bn": "bn1"}',
        remedy="normkit port SOURCE --dry-run lists the names in the source.",
    )
