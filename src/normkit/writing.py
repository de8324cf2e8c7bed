"""Files written whole or not at all, and never over an input by accident."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from normkit.errors import FileError

__all__ = ["check_output", "replacing", "write_whole"]


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file beside ``path``, which takes its place if the block ends without an error.

    Whatever interrupts the block, ``path`` is as it was and the temporary file is gone.

    >>> import pathlib, tempfile
    >>> folder = pathlib.Path(tempfile.mkdtemp())
    >>> with replacing(folder / "a.txt") as temporary:
    ...     _ = temporary.write_text("whole")
    >>> [p.name for p in folder.iterdir()]
    ['a.txt']
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # mkstemp's files are for their owner alone
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
        raise


def write_whole(path: Path, content: str | bytes) -> None:
    """Write ``content`` to ``path`` whole or not at all, also when interrupted."""
    with replacing(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def check_output(
    path: Path, inputs: Iterable[Path] = (), *, overwrite: bool = False, example: str = "result"
) -> None:
    """Whether a result may be written to ``path``; asked before the work rather than after it.

    Args:
        path: where the result is to go.
        inputs: files that are read; writing over one needs ``overwrite`` too.
        overwrite: the user said so.
        example: a name for such a file.

    Raises:
        FileError: it is a folder, it exists, or its folder is missing or cannot be written to.
    """
    if path.is_dir():
        raise FileError(
            "The result needs a file to go to",
            received=f"the folder {path}",
            expected="a file name",
            remedy=f"For instance {path / example}.",
        )
    if path.exists() and not overwrite:
        same = any(path.samefile(other) for other in inputs if other.exists())
        raise FileError(
            "The result would replace " + ("its own input" if same else "a file"),
            received=str(path),
            expected="a name that is free",
            remedy="Choose another name, or say overwrite=True (--overwrite).",
        )
    folder = path.parent
    if not folder.exists():
        raise FileError(
            "There is no such folder",
            received=str(path),
            expected="a folder that exists",
            remedy=f"Make it first: mkdir -p {folder}.",
        )
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise FileError(
            "The result cannot be written there",
            received=str(path),
            expected="a folder that can be written to",
            remedy=f"{folder} is not one.",
        )
