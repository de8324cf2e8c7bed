"""What the tools say of Python's arguments, in the words of the shell."""

from __future__ import annotations

import re

__all__ = ["in_shell"]

#: Arguments of Python's that are options by another name than their own.
_RENAMED = {
    "batch_size": "--train-batch",
    "dataset_size": "--train-size",
    "example": "--data",
    "world_size": "--ranks",
}
_SAME = (
    "accumulate", "averaged", "batch_elements", "broadcast_buffers", "data", "drop_bias",
    "drop_last", "ghost", "groups", "match", "mean", "names", "on_refused", "only", "overwrite",
    "size", "std", "to", "tolerance", "verbose", "weights",
)  # fmt: skip
_OPTIONS = _RENAMED | {name: "--" + name.replace("_", "-") for name in _SAME}
_FROM_PYTHON = ("configuration", "dims", "forward", "optimizer", "renorm")

# name= and perhaps a value, but not within a path, nor in PyTorch's own words ("Given groups=1").
_ARGUMENT = re.compile(
    r"(?<![\w/.=-])(?<!Given )(?P<name>" + "|".join((*_OPTIONS, *_FROM_PYTHON)) + r")="
    r"""(?P<value>"[^"]*"|'[^']*'|\d+\.\d+|\w+)?(?![\w/=]|\.\w)"""
)


def in_shell(words: str) -> str:
    """The same words with the command's options for Python's arguments.

    >>> in_shell('Say size=224, or on_refused="skip"; forward= calls it in another way.')
    'Say --size 224, or --on-refused skip; forward= (from Python) calls it in another way.'
    >>> in_shell("Choose another name, or say overwrite=True (--overwrite).")
    'Choose another name, or say --overwrite.'
    """
    words = words.replace("data=, or example=,", "data=,")  # both are --data
    said = _ARGUMENT.sub(_option, words)
    return re.sub(r"(?P<option>--[\w-]+) \((?P=option)\)", r"\g<option>", said)


def _option(found: re.Match[str]) -> str:
    name, value = found["name"], found["value"]
    if name in _FROM_PYTHON:
        return f"{found[0]} (from Python)"
    if value == "None":
        return f"no {_OPTIONS[name]}"
    if value in (None, "True"):
        return _OPTIONS[name]
    return f"{_OPTIONS[name]} {value.strip(chr(34) + chr(39))}"
