"""Progress of work over batches and layers, on standard error, where a person watches."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

__all__ = ["track"]

T = TypeVar("T")
PATIENCE = 2.0  # seconds before anything is shown
_EVERY = 0.2


def track(
    steps: Iterable[T], what: str, total: int | None = None, show: bool | None = None
) -> Iterator[T]:
    """Hand on ``steps``, and say how far they are once they take longer than two seconds.

    Args:
        what: the work, for the reader.
        total: how many steps there will be; ``len(steps)`` where it has one.
        show: None asks whether standard error is a terminal.
    """
    show = sys.stderr.isatty() if show is None else show
    if not show:
        yield from steps
        return
    if total is None:
        total = _length(steps)
    began = shown = time.monotonic()
    wrote = False
    try:
        for number, step in enumerate(steps):
            now = time.monotonic()
            if now - began > PATIENCE and now - shown > _EVERY:
                shown, wrote = now, True
                sys.stderr.write(f"\r\x1b[K{_line(what, number, total, now - began)}")
                sys.stderr.flush()
            yield step
    finally:
        if wrote:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()


def _length(steps: Any) -> int | None:
    try:
        return len(steps)
    except TypeError:
        return None


def _line(what: str, number: int, total: int | None, seconds: float) -> str:
    if not total or not number:
        return f"{what}: {number} ({seconds:.0f} s)"
    left = seconds / number * max(total - number, 0)
    return f"{what}: {number} of {total} ({min(number / total, 1):.0%}, {left:.0f} s left)"
