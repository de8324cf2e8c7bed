"""Numbers and names in sentences."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["counted", "duration", "first_line", "listed"]


def counted(number: int, what: str) -> str:
    """A number and its noun.

    >>> counted(1, "layer"), counted(1200, "layer"), counted(2, "batch"), counted(0, "pass")
    ('1 layer', '1,200 layers', '2 batches', '0 passes')
    """
    plural = what + ("es" if what.endswith(("ch", "sh", "s", "x")) else "s")
    return f"{number:,} {what if number == 1 else plural}"


def duration(seconds: float) -> str:
    """A time, roughly.

    >>> duration(7.4), duration(80), duration(4000), duration(7190)
    ('7 s', '1 min 20 s', '1 h 7 min', '2 h 0 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    minutes = round(whole / 60)
    return f"{minutes // 60} h {minutes % 60} min"


def listed(names: Sequence[object], most: int = 6) -> str:
    """The first few names; "" is the name of a model itself.

    >>> listed(["a", ""]), listed(range(9), most=3)
    ('a, the model itself', '0, 1, 2 and 6 more')
    """
    more = f" and {len(names) - most} more" if len(names) > most else ""
    shown = (str(name) or "the model itself" for name in names[:most])
    return ", ".join(shown) + more


def first_line(error: BaseException) -> str:
    """What an error says, in a line; its kind where it says nothing.

    >>> first_line(ValueError("no such thing\\nand more")), first_line(KeyError())
    ('no such thing', 'KeyError')
    """
    return (str(error).splitlines() or [""])[0] or type(error).__name__
