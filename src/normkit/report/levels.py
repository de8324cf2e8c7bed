"""How good or bad something is, or what came of it: a word and a shape, and a colour besides."""

from __future__ import annotations

__all__ = ["LEVELS", "MARKS", "check_level", "check_mark"]

#: From the best to the worst.
LEVELS = ("good", "info", "warning", "error")
#: What came of a question: yes and no weigh the same; then a plain fact, a first look, nothing yet.
MARKS = ("yes", "no", "fact", "glance", "absent", *LEVELS)


def check_level(level: str, what: str) -> None:
    """ValueError unless ``level`` is one; ``what`` says whose."""
    if level not in LEVELS:
        raise ValueError(f"{what} has the level {level!r}; expected one of {', '.join(LEVELS)}")


def check_mark(mark: str, what: str) -> None:
    """ValueError unless ``mark`` is one; ``what`` says whose."""
    if mark not in MARKS:
        raise ValueError(f"{what} has the mark {mark!r}; expected one of {', '.join(MARKS)}")
