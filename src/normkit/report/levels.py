"""How good or bad something is: told by a word and a shape, and by a colour besides."""

from __future__ import annotations

__all__ = ["LEVELS", "check_level"]

#: From the best to the worst.
LEVELS = ("good", "info", "warning", "error")


def check_level(level: str, what: str) -> None:
    """ValueError unless ``level`` is one; ``what`` says whose."""
    if level not in LEVELS:
        raise ValueError(f"{what} has the level {level!r}; expected one of {', '.join(LEVELS)}")
