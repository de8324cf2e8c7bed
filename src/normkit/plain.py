"""Results as what JSON can say."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

__all__ = ["plain"]


def _nothing(_: float) -> Any:
    return None


def plain(value: Any, number: Callable[[float], Any] = _nothing) -> Any:
    """Dictionaries, lists, and the values in them.

    Args:
        value: dataclasses and mappings become dictionaries, tuples lists; the rest stays.
        number: what becomes of NaN and infinity, which JSON has not: None by default.

    >>> plain({"worst": (1.0, float("nan"))})
    {'worst': [1.0, None]}
    """
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name), number) for f in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(inner, number) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(inner, number) for inner in value]
    return number(value) if isinstance(value, float) and not math.isfinite(value) else value
