"""How fast: of two ways to compute the same, side by side in one run."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

import normkit.torch as nt
from normkit.errors import ModelError
from normkit.models.progress import track
from normkit.models.racing import race
from normkit.torch.comparing import arguments

__all__ = ["CASES", "Timing", "race", "time_layers", "time_model"]

Tensor = torch.Tensor


@dataclass(frozen=True)
class Timing:
    """A row of a benchmark: milliseconds a call, by way; the first way is what the user had.

    Args:
        what: what was computed.
        milliseconds: medians by the name of the way.
    """

    what: str
    milliseconds: Mapping[str, float]

    def ratio(self, way: str) -> float:
        """The time of a way in that of the first."""
        first = next(iter(self.milliseconds.values()))
        return self.milliseconds[way] / first


#: A layer of torch.nn's, how it is made, and the shape it is given.
CASES: tuple[tuple[str, tuple[Any, ...], tuple[int, ...]], ...] = (
    ("BatchNorm2d", (64,), (32, 64, 56, 56)),
    ("BatchNorm2d", (512,), (32, 512, 7, 7)),
    ("BatchNorm1d", (256,), (256, 256)),
    ("InstanceNorm2d", (64,), (8, 64, 56, 56)),
    ("GroupNorm", (32, 256), (8, 256, 28, 28)),
    ("LayerNorm", (768,), (8, 197, 768)),
    ("RMSNorm", (768,), (8, 197, 768)),
)


def time_layers(seconds: float = 1.0, show: bool | None = None) -> Iterator[Timing]:
    """normkit's layers against torch.nn's on this machine, in one process.

    Args:
        seconds: for each row.
        show: see :func:`normkit.models.progress.track`.
    """
    steps = [(case, back) for case in CASES for back in (False, True)]
    for (name, args, shape), backward in track(steps, "timing layers", show=show):
        x = torch.randn(shape)
        dy = torch.randn(shape)
        layers = {"torch.nn": getattr(nn, name)(*args), "normkit": getattr(nt, name)(*args)}
        ways = {way: _step(layer, x, dy if backward else None) for way, layer in layers.items()}
        what = f"{name}{args if len(args) > 1 else f'({args[0]})'} on {'×'.join(map(str, shape))}"
        yield Timing(
            f"{what}, {'forward + backward' if backward else 'forward'}", race(ways, seconds)
        )


def time_model(
    model: nn.Module, example: Any, seconds: float = 5.0, show: bool | None = None
) -> Iterator[Timing]:
    """A model as it is, accelerated, and folded: inference, and a training step without optimizer.

    Args:
        model: is copied; stays as it is.
        example: a tensor, a tuple of arguments, or a dictionary of keyword arguments.
        seconds: for each of the two rows.
    """
    from normkit.models.folding import fold

    models = {"as it is": copy.deepcopy(model)}
    models["accelerated"] = nt.accelerate(copy.deepcopy(model), report=None)
    inference = {name: copy.deepcopy(m).eval() for name, m in models.items()}
    with contextlib.suppress(ModelError):  # nothing in it folds: then there is no such row
        inference["folded"] = fold(copy.deepcopy(model).eval(), example, report=None)
    for backward in track((False, True), "timing the model", show=show):
        if backward:
            ways = {name: _training_step(m.train(), example) for name, m in models.items()}
        else:
            ways = {name: _inference(m, example) for name, m in inference.items()}
        yield Timing(
            "forward + backward, training" if backward else "inference", race(ways, seconds)
        )


def _step(layer: nn.Module, x: Tensor, dy: Tensor | None) -> Callable[[], Any]:
    if dy is None:
        return _inference(layer.train(), x)
    x = x.clone().requires_grad_()

    def step() -> None:
        layer.zero_grad()
        x.grad = None
        layer(x).backward(dy)

    return step


def _inference(model: nn.Module, example: Any) -> Callable[[], Any]:
    args, kwargs = arguments(example)

    def step() -> None:
        with torch.no_grad():
            model(*args, **kwargs)

    return step


def _training_step(model: nn.Module, example: Any) -> Callable[[], Any]:
    args, kwargs = arguments(example)

    def step() -> None:
        model.zero_grad()
        leaves = torch.utils._pytree.tree_leaves(model(*args, **kwargs))
        losses = [t.square().mean() for t in leaves if isinstance(t, Tensor) and t.requires_grad]
        torch.stack(losses).sum().backward()

    return step
