"""From the shell to a command and back: one line for an error, a number for the shell."""

from __future__ import annotations

import os
import sys
import traceback

from normkit.cli.shell import in_shell
from normkit.errors import is_explained
from normkit.extras import EXTRAS

#: What a program returns that could not do what it was asked.
FAILED = 2
INTERRUPTED = 130


def run(words: list[str]) -> int:
    """Run one command; its exit status.

    Raises:
        KeyboardInterrupt: Ctrl-C.
    """
    try:
        return _run(words)
    except BrokenPipeError:  # the reader of a pipe has gone: `normkit audit … | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except Exception as error:
        if "--debug" in words:
            traceback.print_exc()
        else:
            _say(_line(error))
        return FAILED


def _run(words: list[str]) -> int:
    # Late, so that a missing extra is one line too.
    import typer

    from normkit.cli.app import app

    command = typer.main.get_command(app)
    try:
        status = command.main(words, prog_name="normkit", standalone_mode=False)
    except Exception as error:
        return _usage(error)
    if status == INTERRUPTED:  # typer's answer to Ctrl-C
        raise KeyboardInterrupt
    return status if isinstance(status, int) else 0


def _usage(error: Exception) -> int:
    """What typer says about words that it does not understand; anything else goes on."""
    if type(error).__name__ == "Abort":
        raise KeyboardInterrupt from error
    status, message = getattr(error, "exit_code", None), getattr(error, "format_message", None)
    if status is None or message is None:
        raise error
    context = getattr(error, "ctx", None)
    path = "normkit" if context is None else context.command_path
    words = " ".join(message().split())
    if words:  # else the help was asked for, and has been shown
        _say(f"{words} ({path} --help shows what it takes)")
    return int(status)


def _line(error: Exception) -> str:
    """An error in one line."""
    if isinstance(error, ModuleNotFoundError):
        name = (error.name or "").split(".")[0]
        if name in EXTRAS:
            return f"{name} is not installed; pip install 'normkit[{EXTRAS[name]}]'"
    words = " ".join(str(error).split())
    if is_explained(error):
        return in_shell(words)
    kind = type(error).__name__
    return f"{kind}: {words or 'without a word'} (--debug shows where)"


def _say(words: str) -> None:
    sys.stderr.write(f"normkit: {words}\n")
