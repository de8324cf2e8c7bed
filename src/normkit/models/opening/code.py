"""``package.module:function``: code that the user names, which is therefore run."""

from __future__ import annotations

import difflib
import importlib
import inspect
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from normkit.errors import ModelError
from normkit.words import first_line

__all__ = ["called", "is_reference", "resolve"]

_REFERENCE = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")


def is_reference(text: str) -> bool:
    """Whether text names something in a module.

    >>> is_reference("package.module:function"), is_reference("model.onnx"), is_reference("C:/m.pt")
    (True, False, False)
    """
    return _REFERENCE.fullmatch(text) is not None


def resolve(reference: str) -> Any:
    """Import the module and get what is named in it.

    The current directory comes first on ``sys.path``, as it does for ``python -m``, and stays: what
    is imported may import its neighbours later.

    Raises:
        ModelError: there is no such module or no such name in it, or importing it fails.

    >>> resolve("math:pi")
    3.14159...
    """
    where, _, what = reference.partition(":")
    here = str(Path.cwd())
    if here not in sys.path and "" not in sys.path:
        sys.path.insert(0, here)
    importlib.invalidate_caches()  # the module may have been written a moment ago
    try:
        found: Any = importlib.import_module(where)
    except ModuleNotFoundError as error:
        if error.name and (where == error.name or where.startswith(error.name + ".")):
            raise ModelError(
                "There is no such module",
                received=reference,
                expected="package.module:function, importable from here",
                remedy=f"Python looked in {here} and where packages are installed.",
            ) from error
        raise _failed(reference, "importing it", error) from error
    except Exception as error:
        raise _failed(reference, "importing it", error) from error
    for name in what.split("."):
        if not hasattr(found, name):
            near = difflib.get_close_matches(name, dir(found), n=3, cutoff=0.5)
            have = near or [n for n in dir(found) if not n.startswith("_")][:5]
            raise ModelError(
                "There is no such name in the module",
                received=reference,
                expected=f"a name that {where} has",
                remedy=f"Did you mean {', '.join(have)}?" if have else f"{where} has no names.",
            )
        found = getattr(found, name)
    return found


def called(function: Callable[..., Any], reference: str) -> Any:
    """The function's result, without arguments.

    Raises:
        ModelError: it needs arguments, or fails.
    """
    needed_names = _needed(function)
    if needed_names:
        raise ModelError(
            "The function needs arguments",
            received=f"{reference}, which asks for {', '.join(needed_names)}",
            expected="a function that can be called without any",
            remedy="Write one that calls it with the arguments that you want.",
        )
    try:
        return function()
    except Exception as error:
        raise _failed(reference, "calling it", error) from error


def _needed(function: Callable[..., Any]) -> list[str]:
    """Parameters without a default."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # something built in that does not say
        return []
    optional = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [p.name for p in parameters if p.default is p.empty and p.kind not in optional]


def _failed(reference: str, doing: str, error: Exception) -> ModelError:
    said = first_line(error)
    return ModelError(
        f"The code fails when {doing}",
        received=reference,
        expected="code that runs",
        remedy=f"It raised {type(error).__name__}{': ' + said if said else ''}.",
    )
