"""Docstrings as they are written here, made ready for the site: an extension of Griffe.

They are read in a terminal first, so they have doctests without a fence and, here and there, a
role of Sphinx' around a name. Griffe reads source code; what classes get when they are made, such
as the arguments that a layer takes over from torch.nn, is asked of the classes themselves.
"""

from __future__ import annotations

import importlib
import inspect
import os
import re
from typing import Any

import griffe

__all__ = ["Docstrings"]

_ROLE = re.compile(r":(?:class|meth|func|attr|data|mod):`~?\.?(?P<name>[\w.]+)`")
_DOCTEST = re.compile(r"^(?P<indent> *)>>> .*(?:\n(?P=indent)\S.*)*", re.MULTILINE)
_RETURNS = re.compile(r"^Returns:\n(?:\n| +.*\n?)+", re.MULTILINE)
_ARGUMENTS = re.compile(r"^Args:\n(?:\n| +.*\n?)+", re.MULTILINE)
_LONG_NAME = re.compile(r"^(?P<start> +\w+, [^:\n]*)\n +(?=[^\n]*: )", re.MULTILINE)
_RAISES = re.compile(r"^ +\w+Error(?:, \w+Error)+:", re.MULTILINE)
#: Packages whose classes take arguments over from another library's.
_LAYERS = ("normkit.torch.", "normkit.jax.", "normkit.keras.")


class Docstrings(griffe.Extension):
    """Roles become links, doctests become code, and signatures are complete."""

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        """When everything is loaded, so that names can be found."""
        _prepare(pkg)


def _prepare(one: griffe.Object) -> None:
    if one.is_class and one.path.startswith(_LAYERS) and not one.name.startswith("_"):
        _complete(one)
    if one.docstring is not None:
        one.docstring.value = _readable(one.docstring.value, one)
    for member in list(one.members.values()):
        if not member.is_alias:
            _prepare(member)


def _readable(text: str, owner: griffe.Object) -> str:
    """Markdown in which Griffe finds what is meant."""
    text = _ROLE.sub(lambda found: _link(found["name"], owner), text)
    # In front of a colon Griffe expects one name or type; here there may be several, or a sentence.
    text = _ARGUMENTS.sub(lambda found: _LONG_NAME.sub(r"\g<start> ", found.group()), text)
    text = _RETURNS.sub(lambda found: _after_heading(found.group()), text)
    text = _RAISES.sub(lambda found: found.group().replace(",", " |"), text)
    return _DOCTEST.sub(_fenced, text)


def _after_heading(section: str) -> str:
    heading, body = section.split("\n", 1)
    return f"{heading}\n{body.replace(': ', '&#58; ')}"


def _link(name: str, owner: griffe.Object) -> str:
    """To the page that has it; where none has, the name alone."""
    try:
        path = owner.resolve(name)
    except griffe.NameResolutionError:
        path = name
    return f'<autoref identifier="{path}" optional><code>{name}</code></autoref>'


def _fenced(found: re.Match[str]) -> str:
    indent = found["indent"]
    return f"{indent}```pycon\n{found.group()}\n{indent}```"


# --- what only the class itself knows -------------------------------------------------------------


def _complete(one: griffe.Class) -> None:
    """Give a class the docstring and the arguments that it has at run time."""
    os.environ.setdefault(
        "KERAS_BACKEND", "torch"
    )  # any will do, but Keras' own choice is not here
    made = getattr(importlib.import_module(one.module.path), one.name)
    if "__doc__" in one.members:  # it was assigned
        one.docstring = griffe.Docstring(inspect.cleandoc(made.__doc__), parent=one)
    if "dataclass" in one.labels or "__init__" not in dir(made):
        return
    signature = inspect.signature(made)
    parameters = (_parameter(value) for value in signature.parameters.values())
    own = one.members.get("__init__")
    init = griffe.Function("__init__", parameters=griffe.Parameters(*parameters), parent=one)
    init.docstring = None if own is None else own.docstring
    one.members["__init__"] = init


def _parameter(value: inspect.Parameter) -> griffe.Parameter:
    default = None if value.default is value.empty else repr(value.default)
    kind = griffe.ParameterKind[value.kind.name.lower()]
    return griffe.Parameter(value.name, kind=kind, default=default)
