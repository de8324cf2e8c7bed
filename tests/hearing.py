"""Processes that hear Ctrl-C, wherever the tests run."""

from __future__ import annotations

import sys

_HEAR = (
    "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL);"
    "os.execv(sys.argv[1], sys.argv[1:])"
)


def hearing(*arguments: object) -> list[str]:
    """The command that runs Python with these arguments.

    A shell's background makes children deaf to Ctrl-C, and they pass that on. (Popen's preexec_fn
    would do, but it forks, of which libraries with threads complain.)
    """
    return [sys.executable, "-c", _HEAR, sys.executable, *map(str, arguments)]
