"""A model's norms while it trains, recorded every few steps at no cost in between."""

from normkit.models.watching.callbacks import KerasCallback, LightningCallback
from normkit.models.watching.records import LayerState, Notice, Record, read_records
from normkit.models.watching.sinks import JsonLines, Sink, TensorBoard, Terminal
from normkit.models.watching.watcher import Watch, watch

__all__ = [
    "JsonLines", "KerasCallback", "LayerState", "LightningCallback", "Notice", "Record", "Sink",
    "TensorBoard", "Terminal", "Watch", "read_records", "watch",
]  # fmt: skip
