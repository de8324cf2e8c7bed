"""What a pickle asks for, read without doing any of it."""

from __future__ import annotations

import itertools
import pickletools
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

__all__ = ["asked_for", "is_saved_by_torch"]

_MAGIC_NUMBER = 0x1950A86A20F9469CFC6C  # the first of the pickles in torch.save's old format


def is_saved_by_torch(path: Path) -> bool:
    """Whether a file of pickles is a checkpoint in PyTorch's old format."""
    with path.open("rb") as file:
        try:
            first = list(itertools.islice(pickletools.genops(file), 5))
        except (ValueError, UnicodeDecodeError):
            return False
    numbers = [argument for code, argument, _ in first if code.name.startswith("LONG")]
    return numbers == [_MAGIC_NUMBER] and first[-1][0].name == "STOP"


def asked_for(path: Path) -> list[str]:
    """The classes and functions that a file's pickle names: of its first, or of a checkpoint's.

    >>> import pickle, tempfile
    >>> path = Path(tempfile.mkdtemp()) / "a.pkl"
    >>> _ = path.write_bytes(pickle.dumps(Path.cwd))
    >>> asked_for(path)
    ['builtins.getattr', 'pathlib.Path']
    """
    if not zipfile.is_zipfile(path):
        with path.open("rb") as file:
            return _names(file)
    with zipfile.ZipFile(path) as archive:
        inner = [name for name in archive.namelist() if name.endswith("data.pkl")]
        with archive.open(inner[0]) as member:
            return _names(member)  # type: ignore[arg-type]


def _names(file: BinaryIO) -> list[str]:
    """Protocol 4 takes a name's two halves from the stack, onto which they were put just before."""
    found: set[str] = set()
    memo: dict[int, Any] = {}
    pushed: list[Any] = []
    try:
        for code, given, _ in pickletools.genops(file):
            argument: Any = given
            if code.name == "GLOBAL":
                found.add(str(argument).replace(" ", "."))
            elif code.name == "STACK_GLOBAL":
                found.add(".".join(str(half) for half in pushed[-2:]))
            elif code.name == "MEMOIZE":
                memo[len(memo)] = pushed[-1] if pushed else None
            elif code.name in ("PUT", "BINPUT", "LONG_BINPUT"):
                memo[int(argument)] = pushed[-1] if pushed else None
            elif code.name in ("GET", "BINGET", "LONG_BINGET"):
                pushed.append(memo.get(int(argument)))
            elif code.stack_after:
                pushed.append(argument)
    except (ValueError, UnicodeDecodeError, EOFError):  # cut short: what was named so far
        pass
    return sorted(found)
