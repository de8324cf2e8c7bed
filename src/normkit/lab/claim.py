"""What a claim is: a sentence that was published, an experiment, and what has to come out of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from normkit.lab.setup import Setup

__all__ = ["Axes", "Claim", "Field", "Measured", "Number", "Series"]


@dataclass(frozen=True)
class Number:
    """A number that an experiment measures, once a seed.

    Args:
        name: its key in :attr:`Measured.numbers`.
        words: what it is, for the reader.
        unit: behind the number; ``"%"`` shows a share as percent.
        paper: what the source reports in its place, with its unit; "" where it reports nothing.
        at_least, at_most: what it has to be for the claim to be reproduced; without both it is
            reported only.
    """

    name: str
    words: str
    unit: str = ""
    paper: str = ""
    at_least: float | None = None
    at_most: float | None = None

    @property
    def is_criterion(self) -> bool:
        """Whether the verdict rests on it."""
        return self.at_least is not None or self.at_most is not None

    def holds(self, value: float) -> bool:
        """Whether a value is within the bounds; NaN is not."""
        low = -math.inf if self.at_least is None else self.at_least
        high = math.inf if self.at_most is None else self.at_most
        return low <= value <= high

    def shown(self, value: float) -> str:
        """A value with its unit.

        >>> share = Number("share", "steps of batch norm", unit="%", at_most=1 / 3)
        >>> share.shown(0.125), share.shown(0.3334), share.shown(float("inf")), share.bound
        ('12.5 %', '33.34 %', '∞', 'at most 33.3 %')
        """
        if math.isinf(value):
            return "never" if self.unit == "steps" else "∞" if value > 0 else "−∞"
        if math.isnan(value):
            return "not a number"
        number = 100 * value if self.unit == "%" else value
        if number == round(number) and abs(number) < 1e6:
            return _with_unit(f"{number:.0f}", self.unit)
        for digits in (3, 4, 6, 9):  # as many as it takes to be on its side of a bound
            text = f"{number:.{digits}g}"
            if self.holds(float(text) / (100 if self.unit == "%" else 1)) == self.holds(value):
                break
        return _with_unit(text, self.unit)

    @property
    def bound(self) -> str:
        """The criterion in words; "" without one."""
        low = "" if self.at_least is None else f"at least {self.shown(self.at_least)}"
        high = "" if self.at_most is None else f"at most {self.shown(self.at_most)}"
        return " and ".join(filter(None, (low, high)))


def _with_unit(number: str, unit: str) -> str:
    return f"{number.replace('-', '−')} {unit}".rstrip()  # lines break at a hyphen, not at a minus


@dataclass(frozen=True)
class Axes:
    """One chart of a claim; series and fields name it by its heading.

    Args:
        x_label, y_label: with their units.
        points: single measurements, with no line between them.
        y_range: of the axis, where all of the data would be too much.
        note: below the chart.
    """

    heading: str
    x_label: str
    y_label: str
    log_x: bool = False
    log_y: bool = False
    points: bool = False
    y_range: tuple[float, float] | None = None
    note: str = ""


@dataclass(frozen=True)
class Series:
    """Values over x, for one line of the chart with this heading. Lists, as JSON has them."""

    chart: str
    name: str
    x: Sequence[float]
    y: Sequence[float]

    def __post_init__(self) -> None:
        if len(self.x) != len(self.y):
            raise ValueError(
                f"the series {self.name!r} has {len(self.x)} values of x and {len(self.y)} of y"
            )


@dataclass(frozen=True)
class Field:
    """Values over a grid, drawn as a map: ``z[row][column]`` at ``y[row]`` and ``x[column]``."""

    chart: str
    name: str
    x: Sequence[float]
    y: Sequence[float]
    z: Sequence[Sequence[float]]

    def __post_init__(self) -> None:
        if [len(row) for row in self.z] != [len(self.x)] * len(self.y):
            raise ValueError(
                f"the field {self.name!r} has rows of {sorted({len(row) for row in self.z})} for "
                f"{len(self.y)} values of y and {len(self.x)} of x"
            )


@dataclass(frozen=True)
class Measured:
    """What one seed of an experiment gave."""

    numbers: Mapping[str, float]
    series: Sequence[Series] = ()
    fields: Sequence[Field] = ()


@dataclass(frozen=True)
class Claim:
    """One published claim and the experiment that tries it.

    Args:
        name: what the command line calls it.
        title: a few words.
        sentence: the claim, as one sentence of ours.
        source: authors, year and section.
        paper: what the source found, in figures; how sure they are is said where they were not read
            in the paper itself.
        experiment: what is done here.
        numbers: what is measured. A claim without a criterion among them is reported only.
        measure: the experiment, for one seed.
        charts: what the series are drawn in.
        caveat: what the reader should know before believing the result.
        seconds: that a seed takes on one core, roughly; for the time left.
    """

    name: str
    title: str
    sentence: str
    source: str
    experiment: str
    numbers: tuple[Number, ...]
    measure: Callable[[Setup], Measured]
    paper: str = ""
    charts: tuple[Axes, ...] = ()
    caveat: str = ""
    seconds: float = 5.0

    def __post_init__(self) -> None:
        names = [number.name for number in self.numbers]
        if len(set(names)) != len(names) or not names:
            raise ValueError(f"the claim {self.name!r} measures {names}; expected distinct names")

    @property
    def criteria(self) -> tuple[Number, ...]:
        """The numbers that the verdict rests on."""
        return tuple(number for number in self.numbers if number.is_criterion)

    def check(self, measured: Measured) -> None:
        """Complain where an experiment does not give what the claim says it measures.

        Raises:
            ValueError: numbers or charts are missing, or were not announced.
        """
        expected, found = {n.name for n in self.numbers}, set(measured.numbers)
        if expected != found:
            raise ValueError(
                f"the experiment {self.name!r} gave the numbers {sorted(found)}; expected "
                f"{sorted(expected)}"
            )
        drawn = {one.chart for one in measured.series} | {one.chart for one in measured.fields}
        announced = {axes.heading for axes in self.charts}
        if drawn != announced:
            raise ValueError(
                f"the experiment {self.name!r} drew {sorted(drawn)}; expected {sorted(announced)}"
            )
