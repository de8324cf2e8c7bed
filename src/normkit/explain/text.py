"""The graph's numbers in the terminal: forward from the first step to the last, and back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from normkit.explain.graph import NODES, Node
from normkit.explain.values import Values
from normkit.words import counted

__all__ = ["lines", "numbers"]

GAP = 3


def numbers(given: Values) -> dict[str, Any]:
    """Every value and gradient by name, as lists."""
    found: dict[str, Any] = {"eps": given.eps}
    for node in NODES:
        for name, value in zip((node.name, node.gradient), both(given, node), strict=True):
            found[name] = value.tolist()
    return found


def both(given: Values, node: Node) -> tuple[Any, Any]:
    """A node's value and its gradient."""
    trace = given.trace()
    value = getattr(given if node.name in ("x", "gamma", "beta") else trace, node.name)
    return np.asarray(value), np.asarray(getattr(trace, node.gradient))


def lines(given: Values) -> Iterator[str]:
    """What is printed: a row a sample, a column a channel."""
    samples, channels = given.x.shape
    formulas = {step.name: step.formula for step in given.trace()}
    yield (
        f"Batch norm in nine steps: {counted(samples, 'sample')} (rows), "
        f"{counted(channels, 'channel')} (columns), eps = {given.eps:g}, m = {samples}"
    )
    forward = [
        (node.step, node.name, formulas.get(node.name, ""), both(given, node)[0]) for node in NODES
    ]
    backward = [
        (node.step, node.gradient, node.plain, both(given, node)[1]) for node in reversed(NODES)
    ]
    yield from ("", "Forward", *_block(forward))
    yield from ("", "Backward: gradients of the loss", *_block(backward))
    total = np.atleast_2d(given.trace().dx.sum(axis=0))
    yield from ("", *_block([(0, "sum(dx)", "0 but for rounding", total)]))


def _block(steps: Sequence[tuple[int, str, str, Any]]) -> Iterator[str]:
    """Steps below each other, numbers in columns."""
    shown = [(f"{step or '':>3} {name}", formula, _cells(a)) for step, name, formula, a in steps]
    names = max(len(name) for name, _, _ in shown) + GAP
    formulas = max(len(formula) for _, formula, _ in shown) + GAP
    width = max(len(cell) for _, _, rows in shown for row in rows for cell in row)
    for name, formula, rows in shown:
        head = f"{name:<{names}}{formula:<{formulas}}"
        for number, row in enumerate(rows):
            start = head if number == 0 else " " * len(head)
            yield start + "  ".join(f"{cell:>{width}}" for cell in row)


def _cells(a: Any) -> list[list[str]]:
    return [[f"{value:.6g}" for value in row] for row in np.atleast_2d(a)]
