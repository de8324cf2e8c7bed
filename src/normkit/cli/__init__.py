"""The command `normkit`: parses, calls :mod:`normkit.models`, prints."""

from __future__ import annotations

import sys
from collections.abc import Sequence

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        The exit status: 0, or 1 for findings of an audit, 2 for an error, 130 for Ctrl-C.
    """
    try:  # Ctrl-C may come while modules are imported, so none is before
        from normkit.cli.entry import run

        return run(list(sys.argv[1:] if arguments is None else arguments))
    except KeyboardInterrupt as interrupt:
        what = interrupt.args[0] if interrupt.args else "nothing was written"
        sys.stderr.write(f"normkit: interrupted; {what}\n")
        return 130
