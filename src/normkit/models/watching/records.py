"""What is recorded of a training step, as values, and as lines of JSON."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from normkit.errors import FileError
from normkit.plain import plain

__all__ = ["FILE", "LayerState", "Notice", "Record", "read_records", "to_line"]

FILE = "records.jsonl"  # in a run's folder


@dataclass(frozen=True)
class LayerState:
    """One layer at one step; None for what it has not, or could not be heard.

    Args:
        update: norm of the change of its own parameters since the last record, as a share of their
            norm.
        drift: KL of the batch's input from the running statistics, mean over the channels.
        drift_worst: of the channel where it is largest.
        chance: the drift to be expected of a batch of this size where nothing drifts.
        dead: channels whose output was not positive anywhere in the batch: behind them a ReLU is
            silent.
        zero_gain: channels whose gamma is zero, or below a thousandth of the layer's median.
        channels: of the norm.
    """

    update: float | None = None
    drift: float | None = None
    drift_worst: float | None = None
    chance: float | None = None
    dead: int | None = None
    zero_gain: int | None = None
    channels: int | None = None


@dataclass(frozen=True)
class Notice:
    """A finding of the auditor's; see :class:`normkit.models.auditing.findings.Finding`."""

    rule: str
    severity: str
    site: str
    measured: str
    repair: str


@dataclass(frozen=True)
class Record:
    """One recorded step.

    Args:
        step: counted from 1.
        time: seconds since 1970.
        scalars: what ``step()`` was told, the loss for one.
        layers: by path, all layers with parameters or statistics of their own.
        findings: of the auditor's rules that look at weights and configuration alone.
        unheard: norms that were not called where they could be heard: inside compiled parts, or not
            at all.
    """

    step: int
    time: float
    scalars: Mapping[str, float] = field(default_factory=dict)
    layers: Mapping[str, LayerState] = field(default_factory=dict)
    findings: tuple[Notice, ...] = ()
    unheard: tuple[str, ...] = ()

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Record:
        """From what :func:`to_line` made plain."""
        layers = {name: LayerState(**state) for name, state in values["layers"].items()}
        findings = tuple(Notice(**notice) for notice in values["findings"])
        scalars = {name: float(value) for name, value in values["scalars"].items()}
        step, time = int(values["step"]), float(values["time"])
        return cls(step, time, scalars, layers, findings, tuple(values["unheard"]))


def to_line(record: Record) -> str:
    """One line of JSON, with its end; NaN and infinity as words, which JSON has not."""
    return json.dumps(plain(record, str), ensure_ascii=False, allow_nan=False) + "\n"


def _number(value: Any) -> Any:
    return float(value) if value in ("nan", "inf", "-inf") else value


def read_records(path: str | Path) -> list[Record]:
    """The records in a file of JSON lines, or in a run's folder.

    A line that is no record, as the last one after a crash may be, is left out with a warning that
    names it.

    Raises:
        FileError: there is no such file, or it holds no records.

    >>> import tempfile, torch
    >>> from normkit.models.watching import watch
    >>> net, folder = torch.nn.BatchNorm1d(3), Path(tempfile.mkdtemp())
    >>> with watch(net, every=2, to=folder / "run.jsonl") as w:
    ...     for loss in (3.0, 2.0, 1.0, 0.5):
    ...         y = net(torch.randn(8, 3))
    ...         _ = w.step(loss=loss)
    >>> [(r.step, r.scalars["loss"]) for r in read_records(folder / "run.jsonl")]
    [(2, 2.0), (4, 0.5)]
    """
    path = Path(path)
    path = path / FILE if path.is_dir() else path
    if not path.is_file():
        raise FileError(
            "There are no records",
            received=str(path),
            expected=f"a file of JSON lines, or a folder with {FILE}",
            remedy="watch(model, to=...) writes them.",
        )
    records, broken = [], []
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            try:
                values = json.loads(line, object_hook=_numbers)
                records.append(Record.of(values))
            except (ValueError, TypeError, KeyError, AttributeError):
                if line.strip():
                    broken.append(number)
    if broken and not records:
        raise FileError(
            "This file holds no records",
            received=f"{path}, whose line {broken[0]} is none",
            expected="JSON lines that watch() wrote",
            remedy="Pass the file, or the run's folder.",
        )
    for number in broken:
        warnings.warn(f"{path}, line {number} is damaged and was left out", stacklevel=2)
    return records


def _numbers(values: dict[str, Any]) -> dict[str, Any]:
    return {k: _number(v) if isinstance(v, str) else v for k, v in values.items()}
