"""Examples on pages, carried out as a reader would: README's and those of docs/.

On a page, one after the other and in one program, run

- ```` ```python ````: a block prints what the ```` ``` ```` block behind it shows, or nothing;

and then, each line a command of its own, in the same folder,

- ```` ```console ````: behind ``$`` a command, below it what it prints.

A block with a ``title="name.py"`` is a file of that name, which is there beforehand. In what is
shown, ``...`` stands for anything. ``sh`` blocks, such as installations, are not run.
"""

from __future__ import annotations

import doctest
import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

_BLOCK = re.compile(
    r"^(?P<indent> *)```(?P<kind>python|console)(?: title=\"(?P<title>[^\"]+)\")?\n"
    r"(?P<code>.*?)^(?P=indent)```\n"
    r"(?:\n(?P=indent)```\n(?P<printed>.*?)^(?P=indent)```\n)?",
    re.DOTALL | re.MULTILINE,
)
_COMMAND = re.compile(
    r"^\$ (?P<command>.*(?:\\\n.*)*)\n(?P<printed>(?:(?!\$ ).*\n)*)", re.MULTILINE
)
_SPACES = re.compile(r" +$", re.MULTILINE)  # nobody sees them
_MARK, _PROGRAM = "-- next --", "page.py"
#: Frameworks that a page may use, and without which it is not tried.
_OPTIONAL = ("torch", "jax", "flax", "equinox", "keras", "sklearn", "dask", "onnx", "onnxruntime")


@dataclass(frozen=True)
class Example:
    """A block on a page."""

    kind: str
    code: str
    printed: str
    title: str | None = None


def examples(text: str) -> list[Example]:
    """The blocks of a page that are run, or written to a file."""
    return [_example(found) for found in _BLOCK.finditer(text)]


def _example(found: re.Match[str]) -> Example:
    indent = re.compile(f"^{found['indent']}", re.MULTILINE)
    code, printed = (indent.sub("", found[name] or "") for name in ("code", "printed"))
    return Example(found["kind"], code, printed, found["title"])


def carry_out(text: str, folder: Path) -> int:
    """Run a page's examples in a folder; say how many, or fail with what was shown and printed."""
    found = examples(text)
    _skip_without(found)
    for one in found:
        if one.title:
            (folder / one.title).write_text(one.code)
    programs = [one for one in found if one.kind == "python" and not one.title]
    commands = [one for block in found if block.kind == "console" for one in _commands(block)]
    if programs:
        _run_python(programs, folder)
    for one in commands:
        done = _run(["bash", "-c", one.code], folder)
        _compare(one, done.stdout or done.stderr)  # errors have nothing on standard output
    return len(programs) + len(commands)


def require(library: str, why: str) -> None:
    """Skip where a library is missing; it is not imported, as Keras would choose its backend."""
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"{library}, {why}, is not installed")


def _skip_without(found: list[Example]) -> None:
    code = "\n".join(one.code for one in found)
    for name in _OPTIONAL:
        if re.search(rf"^\s*(?:import|from) {name}\b", code, re.MULTILINE):
            require(name, "which the page uses")


def _commands(block: Example) -> Iterator[Example]:
    for found in _COMMAND.finditer(block.code):
        yield Example("console", found["command"], found["printed"])


def _run_python(programs: list[Example], folder: Path) -> None:
    program = f"\nprint({_MARK!r})\n".join(one.code for one in programs)
    (folder / _PROGRAM).write_text(program)  # some tools look at the source
    done = _run([sys.executable, _PROGRAM], folder)
    assert done.returncode == 0, done.stderr
    printed = done.stdout.split(f"{_MARK}\n")
    for one, got in zip(programs, printed, strict=True):
        _compare(one, got)


def _run(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(folder),
        "COLUMNS": "88",
        "NO_COLOR": "1",
    }
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600,
        check=False,
    )  # fmt: skip


def _compare(one: Example, got: str) -> None:
    expected, got = (_SPACES.sub("", text).strip("\n") + "\n" for text in (one.printed, got))
    same = doctest.OutputChecker().check_output(expected, got, doctest.ELLIPSIS)
    assert same, f"{one.code}\nprints, as the page says,\n{expected}\nbut it printed\n{got}"
