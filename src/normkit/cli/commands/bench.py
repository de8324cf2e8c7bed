"""`normkit bench`: what normkit gains on this machine, or on this model."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from normkit.cli import options
from normkit.cli.printing import note, print_json, print_table

if TYPE_CHECKING:
    from normkit.models.timing import Timing

NAME = "bench"
NEEDS_ARGUMENTS = False
EPILOG = options.examples(
    ("normkit bench", "layers of torch.nn and normkit.torch side by side"),
    ("normkit bench zoo:resnet18 --shape 8,3,224,224", "a model as it is, accelerated, folded"),
)


def command(
    model: Annotated[
        str | None,
        typer.Argument(help="Code: package.module:function. Without it: layers.", metavar="MODEL"),
    ] = None,
    shape: Annotated[
        str | None, typer.Option(help="The model's input, such as 8,3,224,224.")
    ] = None,
    weights: options.Weights = None,
    data: options.Data = None,
    batch_size: options.BatchSize = 8,
    size: options.Size = None,
    mean: options.Mean = None,
    std: options.Std = None,
    seconds: Annotated[float, typer.Option(min=0.0, help="For each row.")] = 1.0,
    as_json: options.Json = False,
    debug: options.Debug = False,  # noqa: ARG001
) -> None:
    """Time ways to compute the same, in turns, in one process; medians."""
    from normkit.models.timing import time_layers, time_model

    if model is None:
        timings: Iterable[Timing] = time_layers(seconds)
    else:
        options.check_code(model)
        example = _example(shape, options.opened_data(data, batch_size, size, mean, std))
        module = options.module_of(options.opened_model(model, weights))
        timings = time_model(module, example, seconds)
    found = list(timings)
    if as_json:
        print_json([{"what": t.what, "milliseconds": dict(t.milliseconds)} for t in found])
        return
    for group in _by_ways(found):
        ways = list(group[0].milliseconds)
        rows = [
            (t.what, *(_cell(t, way) for way in ways)) for t in group
        ]  # fmt: skip
        print_table(("ms a call", *ways), rows)
    note("medians of calls in turns, in one process; in brackets: the time in that of the first")


def _by_ways(timings: list[Any]) -> list[list[Any]]:
    """Rows with the same columns together."""
    groups: dict[tuple[str, ...], list[Any]] = {}
    for timing in timings:
        groups.setdefault(tuple(timing.milliseconds), []).append(timing)
    return list(groups.values())


def _cell(timing: Any, way: str) -> str:
    shown = f"{timing.milliseconds[way]:.3g}"
    first = next(iter(timing.milliseconds))
    return shown if way == first else f"{shown} ({timing.ratio(way):.2f})"


def _example(shape: str | None, data: Any) -> Any:
    if data is not None:
        return options.first_batch(data)
    if shape is None:
        raise typer.BadParameter("a model needs --shape or --data")
    import torch

    try:
        sizes = [int(part) for part in shape.split(",")]
        return torch.randn(sizes)
    except (ValueError, RuntimeError):
        raise typer.BadParameter(
            f"--shape takes numbers such as 8,3,32,32, not {shape!r}"
        ) from None
