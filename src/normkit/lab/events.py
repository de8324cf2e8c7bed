"""The figures as TensorBoard's event files, a folder for each seed of each claim."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path

from normkit.extras import needed
from normkit.lab.data import NAMES
from normkit.lab.results import Record

__all__ = ["FOLDER", "has_events", "write_events"]

FOLDER = "events"


def has_events(folder: Path, record: Record) -> bool:
    """Whether a record's files are there: who was stopped between the two has a line only."""
    place = _place(folder, record)
    return place.is_dir() and any(place.iterdir())


def write_events(folder: Path, record: Record) -> None:
    """Numbers and series of a record; values that are not finite are left out."""
    needed("tensorboard")
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(_place(folder, record)))
    try:
        for name, value in record.numbers.items():
            if math.isfinite(value):
                writer.add_scalar(f"numbers/{name}", value, 0)
        for series in record.series:
            whole = all(float(x).is_integer() for x in series.x)
            for index, (x, y) in enumerate(zip(series.x, series.y, strict=True)):
                if math.isfinite(y):
                    step = int(x) if whole else index
                    writer.add_scalar(f"{series.chart}/{series.name}", y, step)
    finally:
        writer.close()


def _place(folder: Path, record: Record) -> Path:
    pace = "quick" if record.quick else "full"
    return folder / FOLDER / record.claim / f"{_data(record.data)}-{pace}-seed{record.seed}"


def _data(name: str) -> str:
    """Data as a part of a file's name: two folders may be called the same, or like known data."""
    if name in NAMES:
        return name
    return f"{Path(name).name}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
