"""What watching costs a training step: ResNet-18 with and without, in turns.

    python -m benchmarks.watching [--every 50]

Two copies of the network train by turns, one step each, so that both meet the same moments of the
machine. Steps that are recorded cost more, the others should cost nothing. Both are timed, and
weighed as they come in a period of k steps: one recorded, k - 1 not.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import statistics
import tempfile
import time
from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 - its usual name

from benchmarks.networks import network
from normkit.models.watching import watch

SHAPES = {"32 x 3 x 32 x 32": (32, 3, 32, 32), "8 x 3 x 224 x 224": (8, 3, 224, 224)}


def step_of(model: torch.nn.Module, shape: tuple[int, ...]) -> Callable[[], torch.Tensor]:
    """One step of training, on the same numbers for everyone."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator)
    labels = torch.randint(10, shape[:1], generator=generator)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), labels)
        loss.backward()
        optimizer.step()
        return loss

    return step


def measure(
    stack: contextlib.ExitStack, shape: tuple[int, ...], every: int, recorded: int, plain: int
) -> tuple[list[float], list[float], list[float]]:
    """Seconds: of steps nobody watches, and what plain and recorded ones cost beyond these.

    Args:
        recorded, plain: steps of each kind that are timed. A period has ``every`` steps; most of
            the plain ones are not run, for they are all alike.
    """
    alone = network("ResNet18", 0).train()
    if shape[-1] > 64:  # the stem for large images
        alone.stem = nn.Sequential(
            nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(inplace=True),
            nn.MaxPool2d(3, 2, 1),
        )  # fmt: skip
    watched = copy.deepcopy(alone)
    steps = {"alone": step_of(alone, shape), "watched": step_of(watched, shape)}
    for step in steps.values():
        step()  # the first one allocates
    folder = stack.enter_context(tempfile.TemporaryDirectory())
    w = stack.enter_context(watch(watched, every=every, to=folder, show=False))

    def watch_step(due: bool) -> None:
        # The step before the recorded one, in which the ears are opened; or one far from it.
        w.steps = every - 2 if due else 0
        w.step()
        assert (w.step(loss=steps["watched"]()) is not None) is due

    base: list[float] = []
    over: dict[bool, list[float]] = {True: [], False: []}
    watch_step(True)
    for turn in range(recorded + plain):
        due = turn < recorded
        calls = {"alone": steps["alone"], "watched": lambda due=due: watch_step(due)}
        seconds = {name: _seconds(calls[name]) for name in sorted(calls, reverse=turn % 2 == 1)}
        base.append(seconds["alone"])
        over[due].append(seconds["watched"] - seconds["alone"])
    return base, over[False], over[True]


def _seconds(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def main() -> None:
    """Print the price for each shape."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--every", type=int, default=50)
    parser.add_argument("--recorded", type=int, default=7, help="steps of this kind to time")
    parser.add_argument("--plain", type=int, default=15)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for name, shape in SHAPES.items():
        with contextlib.ExitStack() as stack:
            found = measure(stack, shape, options.every, options.recorded, options.plain)
        alone, plain, recorded = map(statistics.median, found)
        extra = (plain * (options.every - 1) + recorded) / options.every
        print(
            f"{name}: a step {alone * 1e3:.0f} ms; of those watched, most {plain * 1e3:+.1f} ms "
            f"(quartiles {_quartiles(found[1])}), recorded ones {recorded * 1e3:+.1f} ms "
            f"({_quartiles(found[2])}). At k = {options.every}: {extra / alone:+.2%}; by the "
            f"recorded ones alone: {recorded / options.every / alone:+.2%}"
        )


def _quartiles(seconds: list[float]) -> str:
    first, _, last = statistics.quantiles(seconds, n=4)
    return f"{first * 1e3:+.1f} to {last * 1e3:+.1f}"


if __name__ == "__main__":
    main()
