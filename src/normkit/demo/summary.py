"""Results to words: the table, what it shows, and the check of single images."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import mean, median
from typing import Any

from normkit.demo.networks import Network
from normkit.demo.training import EVERY, ROUNDINGS, Agreement, Result

COLUMNS = (
    "network",
    "norm",
    "learning rate",
    "steps to 95%",
    "train accuracy",
    "test accuracy",
    "seconds",
)
NUMERIC = frozenset(COLUMNS[2:])


@dataclass(frozen=True)
class Group:
    """The runs that differ in their seed alone."""

    results: tuple[Result, ...]

    @property
    def network(self) -> Network:
        return self.results[0].run.network

    @property
    def batch_norm(self) -> bool:
        return self.results[0].run.batch_norm

    @property
    def rate(self) -> float:
        return self.results[0].run.rate

    @property
    def steps_to_goal(self) -> float:
        """The median; infinite where most runs did not get there."""
        steps = [result.steps_to_goal for result in self.results]
        return median(math.inf if step is None else step for step in steps)

    def to_dict(self) -> dict[str, Any]:
        """What the row says, as values."""
        last = [result.points[-1] for result in self.results]
        return {
            "network": self.network,
            "norm": self.results[0].run.norm,
            "rate": self.rate,
            "seeds": [result.run.seed for result in self.results],
            "steps_to_goal": [result.steps_to_goal for result in self.results],
            "train_accuracy": [point.train_accuracy for point in last],
            "test_accuracy": [point.test_accuracy for point in last],
            "seconds": [result.seconds for result in self.results],
        }

    @property
    def row(self) -> tuple[str, ...]:
        last = [result.points[-1] for result in self.results]
        steps = [result.steps_to_goal for result in self.results]
        if all(step is None for step in steps):
            reached = "never"
        else:
            reached = ", ".join("never" if step is None else str(step) for step in steps)
        return (
            self.network,
            self.results[0].run.norm,
            f"{self.rate:g}",
            reached,
            f"{mean(point.train_accuracy for point in last):.1%}",
            f"{mean(point.test_accuracy for point in last):.1%}",
            f"{sum(result.seconds for result in self.results):.2f}",
        )


def grouped(results: Iterable[Result]) -> list[Group]:
    groups: dict[tuple[Network, float, bool], list[Result]] = {}
    for result in results:
        run = result.run
        groups.setdefault((run.network, run.rate, run.batch_norm), []).append(result)
    return [Group(tuple(members)) for members in groups.values()]


def table(groups: Sequence[Group]) -> str:
    """The table as lines of text, figures to the right."""
    rows = [COLUMNS, *(group.row for group in groups)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(COLUMNS))]

    def line(row: Sequence[str]) -> str:
        cells = (
            cell.rjust(width) if name in NUMERIC else cell.ljust(width)
            for cell, width, name in zip(row, widths, COLUMNS, strict=True)
        )
        return "  ".join(cells).rstrip()

    return "\n".join([line(COLUMNS), line(["-" * width for width in widths]), *map(line, rows[1:])])


def findings(groups: Sequence[Group]) -> list[str]:
    """One sentence for each network and learning rate: what batch norm changed, if anything."""
    plain = {(g.network, g.rate): g.steps_to_goal for g in groups if not g.batch_norm}
    normed = {(g.network, g.rate): g.steps_to_goal for g in groups if g.batch_norm}
    limit = {group.network: group.results[0].run.steps for group in groups}
    return [
        f"{network.capitalize()} network at rate {rate:g}: "
        f"{_comparison(plain[network, rate], normed[network, rate], limit[network])}"
        for network, rate in plain
    ]


def _comparison(plain: float, normed: float, limit: int) -> str:
    if math.isinf(plain) and math.isinf(normed):
        return f"95% not reached in {limit} steps, with batch norm or without."
    if math.isinf(plain):
        return f"95% after {normed:g} steps with batch norm, not in {limit} without."
    if math.isinf(normed):
        return f"95% after {plain:g} steps without batch norm, not in {limit} with it."
    counts = f"95% after {normed:g} steps with batch norm, {plain:g} without"
    if abs(plain - normed) <= EVERY or max(plain, normed) < 1.2 * min(plain, normed):
        return f"{counts}: no difference worth the name."
    if normed < plain:
        return f"{counts}: {plain / normed:.1f} times fewer."
    return f"{counts}: batch norm was slower here."


def agreement(results: Iterable[Result]) -> tuple[bool, str]:
    """Whether networks with batch norm treat an image alike alone and in a batch, and the words."""
    kept = list(results)
    normed = [r.agreement for r in kept if r.run.batch_norm]
    plain = [r.agreement for r in kept if not r.run.batch_norm and math.isfinite(r.agreement.scale)]
    holds = all(one.holds for one in normed)
    verdict = "equal within float32 rounding" if holds else "NOT equal within float32 rounding"
    words = (
        f"Eval on one image at a time against one batch, with batch norm: {verdict}. "
        f"The largest difference of a logit is {_largest(normed)} ({ROUNDINGS} are allowed)."
    )
    if plain:
        words += f" Without batch norm it is {_largest(plain)}."
    return holds, words


def _largest(agreements: Sequence[Agreement]) -> str:
    worst = max(agreements, key=lambda one: one.roundings)
    difference = max(one.difference for one in agreements)
    return f"{difference:.1e}, at most {worst.roundings:.1f} roundings of the largest logit"
