"""The JSON of an exported program checked against PyTorch's own schema of it, value by value.

PyTorch checks few of the values' types, and none of what they hold. Here every value must have the
type that the schema gives it, and those that PyTorch evaluates, imports or writes into source code
must be harmless.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import types
import typing
from collections.abc import Callable, Iterator
from typing import Any

from normkit.models.opening import harmless

__all__ = ["Fault", "faults_of"]


@dataclasses.dataclass(frozen=True)
class Fault:
    """A value that a program has no need of.

    Args:
        place: its path in the JSON.
        value: as it stands there, shortened.
        why: what is wrong with it.
    """

    place: str
    value: str
    why: str


def faults_of(name: str, data: Any) -> Iterator[Fault]:
    """What is wrong with ``data`` as a class of PyTorch's schema, such as ``"ExportedProgram"``."""
    from torch._export.serde import schema

    yield from _faults(getattr(schema, name), data, name)


def _faults(kind: Any, data: Any, place: str) -> Iterator[Fault]:
    options = typing.get_args(kind)
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        if data is not None:
            yield from _faults(options[0], data, place)
    elif typing.get_origin(kind) is list:
        if isinstance(data, list):
            for i, value in enumerate(data):
                yield from _faults(options[0], value, f"{place}[{i}]")
        else:
            yield _wrong(place, data, "a list")
    elif typing.get_origin(kind) is dict:
        if isinstance(data, dict):
            for key, value in data.items():
                yield from _faults(options[1], value, f"{place}.{key:.60}")
        else:
            yield _wrong(place, data, "a dictionary")
    elif dataclasses.is_dataclass(kind):
        yield from _record(typing.cast("type", kind), data, place)
    elif not _is_value(kind, data):
        yield _wrong(place, data, kind.__name__)


def _record(kind: type, data: Any, place: str) -> Iterator[Fault]:
    """A dataclass, or one of a union's."""
    if kind.__name__ in _REFUSED:
        yield Fault(place, f"{data!r:.60}", _REFUSED[kind.__name__])
        return
    if not isinstance(data, dict):
        yield _wrong(place, data, kind.__name__)
        return
    fields = _fields(kind)
    if _is_union(kind) and (len(data) != 1 or not set(data) <= set(fields)):
        yield _wrong(place, data, f"one of {', '.join(list(fields)[:4])}, …")
        return
    for name, value in data.items():
        if name in fields:  # PyTorch ignores others
            here = f"{place}.{name}"
            yield from _faults(fields[name], value, here)
            check = _CHECKS.get((kind.__name__, name))
            if check is not None and value is not None:
                why = check(value)
                if why:
                    yield Fault(here, f"{value!r:.80}", why)


def _wrong(place: str, data: Any, expected: str) -> Fault:
    return Fault(place, f"{data!r:.60}", f"it should be {expected}")


@functools.cache
def _fields(kind: type) -> dict[str, Any]:
    from torch._export.serde import schema

    return typing.get_type_hints(kind, globalns=vars(schema))


def _is_union(kind: type) -> bool:
    return any(base.__name__ == "_Union" for base in kind.__mro__[1:])


def _is_value(kind: Any, data: Any) -> bool:
    if isinstance(kind, type) and issubclass(kind, enum.IntEnum):
        return type(data) is int
    if kind is float:
        return type(data) in (int, float) or data in ("Infinity", "-Infinity", "NaN")
    return type(data) is kind


def _each(check: Callable[[Any], str]) -> Callable[[Any], str]:
    """The first fault among several values, and which of them has it."""

    def check_all(values: Any) -> str:
        faults = ((value, check(value)) for value in values)
        return next((f"in {value!r:.60}, {why}" for value, why in faults if why), "")

    return check_all


def _optional_name(text: Any) -> str:
    return harmless.identifier(text) if text else ""


def _inputs(arguments: Any) -> str:
    """Text among the inputs is written into the source of guards between quotes."""
    texts = [a["as_string"] for a in arguments if isinstance(a, dict) and "as_string" in a]
    return next(filter(None, map(harmless.plain_text, texts)), "")


#: Parts of a program that are made by unpickling, or that hand over to other code.
_REFUSED = {
    "CustomObjArgument": "it is an object of a class of its own",
    "InputToCustomObjSpec": "it is an object of a class of its own",
    "ExternKernelNode": "it calls a kernel from elsewhere",
}

_NAMED = ("TensorArgument", "TokenArgument", "GraphArgument", "InputToConstantInputSpec")
_SYMBOLIC = ("SymIntArgument", "SymFloatArgument", "SymBoolArgument")

#: What becomes of a field's text beyond being kept, by the schema's class and field.
_CHECKS: dict[tuple[str, str], Callable[[Any], str]] = {
    ("SymExpr", "expr_str"): harmless.expression,
    ("ExportedProgram", "guards_code"): _each(harmless.guard),
    ("ExportedProgram", "range_constraints"): _each(harmless.expression),
    ("Node", "target"): harmless.operator,
    ("Argument", "as_operator"): harmless.operator,
    ("Node", "name"): _optional_name,
    ("NamedArgument", "name"): lambda text: (
        "" if str(text).isidentifier() or not text else "no name"
    ),
    **{(kind, "name"): harmless.identifier for kind in _NAMED},
    **{(kind, "as_name"): harmless.identifier for kind in _SYMBOLIC},
    ("Graph", "inputs"): _inputs,
    ("UserInputSpec", "arg"): lambda argument: _inputs([argument]),
    ("ConstantValue", "as_string"): harmless.plain_text,
    ("InputToParameterSpec", "parameter_name"): harmless.plain_text,
    ("InputToBufferSpec", "buffer_name"): harmless.plain_text,
    ("InputToTensorConstantSpec", "tensor_constant_name"): harmless.plain_text,
    ("BufferMutationSpec", "buffer_name"): harmless.plain_text,
    ("ParameterMutationSpec", "parameter_name"): harmless.plain_text,
    ("ModuleCallEntry", "fqn"): harmless.plain_text,
    ("ModuleCallSignature", "in_spec"): harmless.tree,
    ("ModuleCallSignature", "out_spec"): harmless.tree,
    ("ModuleCallSignature", "forward_arg_names"): _each(harmless.identifier),
    ("PayloadConfig", "config"): _each(harmless.plain_text),
}
