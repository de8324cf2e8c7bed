"""Layers named by a user: paths, patterns, or a function that decides."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any, TypeVar

from normkit.errors import DTypeError, ModelError

__all__ = ["chosen"]

T = TypeVar("T")


def chosen(
    candidates: Mapping[str, T],
    wanted: str | Iterable[str] | Callable[[T], Any] | None,
    what: str,
) -> list[str]:
    """Names of the candidates that a user wants, in their order.

    Args:
        candidates: by name, with what a function is asked about.
        wanted: a path (which takes what is inside it too), a pattern such as ``"layer1.*"``,
            several of these, a function, or None for all.
        what: the argument's name.

    Raises:
        ModelError: a path or pattern that fits nothing.
        DTypeError: none of these.

    >>> chosen({"stem.bn": 1, "head.0": 2, "head.1": 3}, ["head", "*.bn"], "only")
    ['stem.bn', 'head.0', 'head.1']
    """
    if wanted is None:
        return list(candidates)
    if callable(wanted):
        return [name for name, value in candidates.items() if wanted(value)]
    patterns = [wanted] if isinstance(wanted, str) else wanted
    if not isinstance(patterns, Iterable):
        raise DTypeError(
            f"{what}= names no layers",
            received=type(wanted).__name__,
            expected="a name, a pattern, several of them, or a function",
            remedy=f'For instance {what}="layer1.*".',
        )
    found: set[str] = set()
    for pattern in patterns:
        hits = {name for name in candidates if _fits(name, str(pattern))}
        if not hits:
            raise _nothing(str(pattern), list(candidates), what)
        found |= hits
    return [name for name in candidates if name in found]


def _fits(name: str, pattern: str) -> bool:
    return name == pattern or fnmatchcase(name, pattern) or name.startswith(f"{pattern}.")


def _nothing(pattern: str, names: list[str], what: str) -> ModelError:
    near = difflib.get_close_matches(pattern, names, 3, 0.4) or names[:3]
    listed = ", ".join(map(repr, near))
    return ModelError(
        f"{what}= fits no layer that this can be done to",
        received=repr(pattern),
        expected="the path of one, or a pattern that some fit",
        remedy=f"There are {len(names)}, for instance {listed}." if names else "There are none.",
    )
