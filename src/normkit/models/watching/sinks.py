"""Where records go: files of JSON lines, TensorBoard's event files, the terminal."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

from normkit.errors import FileError, OptionError
from normkit.extras import needed
from normkit.models.watching.records import FILE, LayerState, Record, to_line

__all__ = ["JsonLines", "Sink", "TensorBoard", "Terminal", "sinks_for"]


class Sink(Protocol):
    """Takes records; anything with these two methods serves."""

    def write(self, record: Record) -> None:
        """One more."""

    def close(self) -> None:
        """There will be no more."""


def sinks_for(to: Any, show: bool | None) -> list[Sink]:
    """The sinks that ``watch()``'s arguments mean.

    Raises:
        FileError: nothing can be written there.
        OptionError: that is no place to write to.
    """
    show = sys.stderr.isatty() if show is None else show
    last: list[Sink] = [Terminal()] if show else []
    if to is None:
        return last
    if isinstance(to, (str, os.PathLike)):
        path = Path(to)
        if path.suffix == ".jsonl":
            return [JsonLines(path), *last]
        needed("tensorboard")  # before a file is opened
        return [JsonLines(path / FILE), TensorBoard(path), *last]
    given = list(to) if isinstance(to, Iterable) else [to]
    for sink in given:
        if not (callable(getattr(sink, "write", None)) and callable(getattr(sink, "close", None))):
            raise OptionError(
                "to= is no place for records",
                received=repr(sink),
                expected="a path, or sinks: objects with write(record) and close()",
                remedy='For instance to="runs/first", or to=[JsonLines("records.jsonl")].',
            )
    return [*given, *last]


class JsonLines:
    """A file with one record a line, each on its way to the disk when ``write`` returns.

    A crash costs at most the line that is being written. A file that is there is gone on with.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("a+b", buffering=0)
            if self._is_cut_off():
                self._file.write(b"\n")
        except OSError as error:
            raise FileError(
                "Records cannot be written there",
                received=str(path),
                expected="a file in a folder that can be written to",
                remedy=f"The system says: {error.strerror}.",
            ) from error

    def _is_cut_off(self) -> bool:
        """Whether the last line has no end, as a crash may leave it."""
        if not self._file.seek(0, os.SEEK_END):
            return False
        self._file.seek(-1, os.SEEK_END)
        return self._file.read(1) != b"\n"

    def write(self, record: Record) -> None:
        """One line."""
        line = to_line(record).encode()
        while line:  # unbuffered files may take a part
            line = line[self._file.write(line) :]

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class TensorBoard:
    """TensorBoard's event files in a folder; needs ``pip install 'normkit[watch]'``."""

    def __init__(self, folder: str | Path) -> None:
        needed("tensorboard")
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(folder))

    def write(self, record: Record) -> None:
        """Each number under ``what/layer``."""
        values = dict(record.scalars)
        for name, layer in record.layers.items():
            for what in ("update", "drift", "dead", "zero_gain"):
                if (value := getattr(layer, what)) is not None:
                    values[f"{what}/{name or 'model'}"] = value
        values["findings"] = len(record.findings)
        for tag, value in values.items():
            self._writer.add_scalar(tag, value, record.step, record.time)
        if record.findings:
            lines = [f"- {n.site} **{n.rule}**: {n.measured}. {n.repair}" for n in record.findings]
            self._writer.add_text("findings", "\n".join(lines), record.step, record.time)
        self._writer.flush()

    def close(self) -> None:
        """Write what is left."""
        self._writer.close()


class Terminal:
    """The newest record on standard error: a live table where rich is at hand, else one line."""

    ROWS = 8

    def __init__(self) -> None:
        self._live: Any = None
        self._plain = not sys.stderr.isatty()

    def write(self, record: Record) -> None:
        """Show it in place of the last."""
        if not self._plain and self._live is None:
            self._plain = not self._start()
        if self._plain:
            sys.stderr.write(line_of(record) + "\n")
            sys.stderr.flush()
        else:
            self._live.update(self._table(record), refresh=True)

    def _start(self) -> bool:
        """Whether there is a live display; only one may be on a terminal."""
        try:
            from rich.console import Console
            from rich.errors import LiveError
            from rich.live import Live
        except ModuleNotFoundError:
            return False
        live = Live(console=Console(stderr=True), auto_refresh=False)
        try:
            live.start()
        except LiveError:
            return False
        self._live = live
        return True

    def _table(self, record: Record) -> Any:
        from rich.box import SIMPLE_HEAD
        from rich.table import Table
        from rich.text import Text

        table = Table(title=line_of(record), title_justify="left", box=SIMPLE_HEAD)
        for column in ("layer", "update", "drift", "by chance", "dead", "zero γ"):
            table.add_column(column, justify="left" if column == "layer" else "right")
        for name, layer in worst_layers(record)[: self.ROWS]:
            numbers = (layer.update, layer.drift, layer.chance)
            cells = ["" if v is None else f"{v:.2g}" for v in numbers]
            cells += ["" if v is None else str(v) for v in (layer.dead, layer.zero_gain)]
            table.add_row(Text(name), *cells)
        for notice in record.findings[: self.ROWS]:
            table.add_row(Text(f"{notice.site} {notice.rule}"), Text(notice.measured))
        return table

    def close(self) -> None:
        """Leave the last record standing."""
        if self._live is not None:
            self._live.stop()
            self._live = None


def worst_layers(record: Record) -> list[tuple[str, LayerState]]:
    """Layers, the one whose statistics drift most by far first; then by dead channels."""

    def badness(item: tuple[str, LayerState]) -> tuple[float, int]:
        layer = item[1]
        excess = (layer.drift or 0.0) - 3 * (layer.chance or 0.0)
        return max(excess, 0.0), layer.dead or 0

    return sorted(record.layers.items(), key=badness, reverse=True)


def line_of(record: Record) -> str:
    """A record in one line."""
    parts = [f"step {record.step}"]
    parts += [f"{name} {value:.4g}" for name, value in record.scalars.items()]
    updates = [layer.update for layer in record.layers.values() if layer.update is not None]
    if updates:
        parts.append(f"largest update {max(updates):.2g}")
    drifting = [(n, v) for n, v in worst_layers(record) if v.drift is not None]
    if drifting:
        name, layer = drifting[0]
        parts.append(f"drift {layer.drift:.2g} at {name or 'the model'}")
    dead = sum(layer.dead or 0 for layer in record.layers.values())
    parts += [f"{dead} dead channels"] if dead else []
    parts += [f"{len(record.findings)} findings"] if record.findings else []
    return ", ".join(parts)
