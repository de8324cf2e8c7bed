"""What has been measured, as lines of JSON in a folder: each is whole, or named and left out."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from normkit.errors import FileError
from normkit.lab.claim import Field, Measured, Series
from normkit.plain import plain

__all__ = ["FILE", "Record", "Results", "unusable"]

FILE = "results.jsonl"
UNREADABLE = (ValueError, TypeError, KeyError, AttributeError, ArithmeticError, RecursionError)


@dataclass(frozen=True)
class Record:
    """One seed of one claim.

    Args:
        claim, seed, data, quick: the task.
        numbers, series, fields: what was measured.
        seconds: that it took.
        machine: processor, cores, system.
        versions: of Python and the libraries.
        commit: of the source, where it is known.
        time: when it was done: ISO 8601, UTC.
    """

    claim: str
    seed: int
    data: str
    quick: bool
    numbers: Mapping[str, float]
    series: tuple[Series, ...] = ()
    fields: tuple[Field, ...] = ()
    seconds: float = 0.0
    machine: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    commit: str | None = None
    time: str = ""

    @property
    def key(self) -> tuple[str, int, str, bool]:
        """The task: a folder holds each once."""
        return self.claim, self.seed, self.data, self.quick

    @property
    def measured(self) -> Measured:
        """As the experiment gave it."""
        return Measured(self.numbers, self.series, self.fields)


class Results:
    """The folder of a run.

    Args:
        folder: is made where it is missing.

    Attributes:
        records: of all whole lines; of two for one task the last.
        damaged: lines that are no record, as ``file:line: why``; they stay in the file.

    Raises:
        FileError: the folder cannot be made or read.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / FILE
        self._by_task: dict[tuple[str, int, str, bool], Record] = {}
        self.damaged: list[str] = []
        try:
            folder.mkdir(parents=True, exist_ok=True)
            content = self.path.read_bytes() if self.path.exists() else b""
        except OSError as error:
            raise unusable(folder, error) from error
        self._is_cut_off = bool(content) and not content.endswith(b"\n")
        self._read(content)

    def _read(self, content: bytes) -> None:
        for number, line in enumerate(content.split(b"\n"), start=1):
            if not line.strip():
                continue
            try:
                record = _record(json.loads(line))
            except UNREADABLE as error:
                self.damaged.append(f"{self.path}:{number}: {type(error).__name__}: {error}")
                continue
            self._by_task[record.key] = record

    @property
    def records(self) -> list[Record]:
        """One for each task that is done."""
        return list(self._by_task.values())

    def leave_out(self, record: Record) -> None:
        """Let its task count as not done; its line stays in the file."""
        del self._by_task[record.key]

    @property
    def keys(self) -> set[tuple[str, int, str, bool]]:
        """The tasks that are done."""
        return set(self._by_task)

    def add(self, record: Record) -> bool:
        """Append a record, on the disk when this returns; False where its task was done already.

        Raises:
            FileError: it cannot be written.
        """
        if record.key in self._by_task:
            return False
        line = json.dumps(plain(record, str), ensure_ascii=False, allow_nan=False) + "\n"
        start = "\n" if self._is_cut_off else ""  # a line that a crash cut off stays damaged alone
        try:
            with self.path.open("ab") as file:
                file.write((start + line).encode())
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise unusable(self.path, error) from error
        self._is_cut_off = False
        self._by_task[record.key] = record
        return True


def unusable(path: Path, error: OSError) -> FileError:
    """The error to raise where results cannot be written."""
    return FileError(
        "Results cannot be kept there",
        received=str(path),
        expected="a folder that can be written to",
        remedy=f"The system says: {error.strerror}. --out names another folder.",
    )


def _record(values: Mapping[str, Any]) -> Record:
    return Record(
        claim=_is(str, values["claim"]),
        seed=_is(int, values["seed"]),
        data=_is(str, values["data"]),
        quick=_is(bool, values["quick"]),
        numbers={str(name): float(value) for name, value in values["numbers"].items()},
        series=tuple(
            Series(
                _is(str, one["chart"]), _is(str, one["name"]), _floats(one["x"]), _floats(one["y"])
            )
            for one in values["series"]
        ),
        fields=tuple(
            Field(
                _is(str, one["chart"]), _is(str, one["name"]), _floats(one["x"]), _floats(one["y"]),
                [_floats(row) for row in one["z"]],
            )
            for one in values["fields"]
        ),
        seconds=float(values["seconds"]),
        machine=_facts(values["machine"]),
        versions={_is(str, name): _is(str, one) for name, one in values["versions"].items()},
        commit=None if values["commit"] is None else _is(str, values["commit"]),
        time=_is(str, values["time"]),
    )  # fmt: skip


def _facts(values: Mapping[str, Any]) -> dict[str, Any]:
    """Of a machine; see :func:`normkit.machine.facts`."""
    facts = dict(values)
    if facts.get("cores") is not None:
        _is(int, facts["cores"])
    if facts.get("memory_gib") is not None:
        facts["memory_gib"] = float(facts["memory_gib"])
    return facts


def _is(kind: type, value: Any) -> Any:
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise TypeError(f"{value!r} is no {kind.__name__}")
    return value


def _floats(values: Any) -> list[float]:
    return [float(value) for value in values]
