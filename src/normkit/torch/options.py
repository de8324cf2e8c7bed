"""What batch norm layers can do beyond torch.nn's, as values that are checked when made."""

from __future__ import annotations

import difflib
import math
from dataclasses import dataclass, fields
from numbers import Real
from typing import Any

import torch

from normkit.errors import DTypeError, OptionError
from normkit.torch.statistics import NONFINITE, RULES

__all__ = ["BatchOptions", "RenormSchedule"]

SMALL_BATCH = ("error", "running")


@dataclass(frozen=True)
class RenormSchedule:
    """Limits of batch renormalization by the number of batches seen (Ioffe 2017, section 4.1).

    Both limits stay at plain batch norm (r_max=1, d_max=0) until ``start`` and then rise linearly.

    Args:
        r_max, d_max: where they end.
        start: batches of plain batch norm.
        r_end, d_end: batches after which they have arrived.

    >>> RenormSchedule().at(5000), RenormSchedule().at(15000), RenormSchedule().at(10**6)
    ((1.0, 0.0), (1.5714285714285714, 2.5), (3.0, 5.0))
    """

    r_max: float = 3.0
    d_max: float = 5.0
    start: int = 5000
    r_end: int = 40000
    d_end: int = 25000

    def __post_init__(self) -> None:
        for name, least in (("r_max", 1.0), ("d_max", 0.0)):
            _check_number(f"RenormSchedule {name}", getattr(self, name), least)
        for name, least in (("start", 0), ("r_end", self.start), ("d_end", self.start)):
            _check_whole(f"RenormSchedule {name}", getattr(self, name), least)

    def at(self, batches: Any) -> tuple[Any, Any]:
        """r_max and d_max after so many batches: numbers for a number, tensors for a tensor."""
        r = 1.0 + (self.r_max - 1.0) * _progress(batches, self.start, self.r_end)
        return r, self.d_max * _progress(batches, self.start, self.d_end)


def _progress(batches: Any, start: int, end: int) -> Any:
    steps = (batches - start) / max(end - start, 1)
    if isinstance(steps, torch.Tensor):
        return torch.clamp(steps, 0.0, 1.0)
    return min(max(steps, 0.0), 1.0)


@dataclass(frozen=True)
class BatchOptions:
    """Options of a batch norm layer; the defaults are torch.nn's behaviour.

    Args:
        ghost: samples in a ghost batch (Hoffer et al. 2017); the last one may have fewer.
        renorm: batch renormalization (Ioffe 2017): True for the paper's schedule, or a
            :class:`RenormSchedule`.
        mean_only: subtract the mean, divide by nothing (Salimans & Kingma 2016, section 4).
        running: ``"ema"``, ``"cumulative"`` or ``"population"``: see
            :func:`normkit.torch.statistics.advance`.
        on_nonfinite: ``"propagate"``, ``"skip"`` or ``"raise"`` for a batch with NaN or infinity.
        on_small_batch: ``"error"`` as in torch.nn where a set has a single element, or
            ``"running"``: such sets are normalized with the running statistics.
        domains: keep running statistics for so many domains; the layer is then called with
            ``domain=``, a number or one for each sample.
    """

    ghost: int | None = None
    renorm: Any = None
    mean_only: bool = False
    running: str = "ema"
    on_nonfinite: str = "propagate"
    on_small_batch: str = "error"
    domains: int | None = None

    def __post_init__(self) -> None:
        for name in ("ghost", "domains"):
            if getattr(self, name) is not None:
                _check_whole(name, getattr(self, name), 1)
        if isinstance(self.renorm, bool):
            object.__setattr__(self, "renorm", RenormSchedule() if self.renorm else None)
        if self.renorm is not None and not isinstance(self.renorm, RenormSchedule):
            raise DTypeError(
                "renorm= is no schedule",
                received=repr(self.renorm),
                expected="True, False or a normkit.torch.RenormSchedule",
                remedy="RenormSchedule(r_max=3, d_max=5, start=5000) is the paper's.",
            )
        if self.mean_only not in (True, False):
            raise DTypeError(
                "mean_only= is a switch",
                received=repr(self.mean_only),
                expected="True or False",
                remedy="It subtracts the mean and divides by nothing.",
            )
        for name, known in (
            ("running", RULES), ("on_nonfinite", NONFINITE), ("on_small_batch", SMALL_BATCH),
        ):  # fmt: skip
            check_choice(name, getattr(self, name), known)
        if self.mean_only and self.renorm is not None:
            raise OptionError(
                "Two options contradict each other",
                received="mean_only=True and renorm=",
                expected="one of them",
                remedy="Renormalization corrects a standard deviation; mean_only has none.",
            )

    def check_tracking(self, tracks: bool) -> None:
        """Options that need running statistics have them.

        Raises:
            OptionError: track_running_stats=False with one of them.
        """
        needing = {
            "renorm": self.renorm is not None,
            "running": self.running != "ema",
            "on_small_batch": self.on_small_batch == "running",
            "domains": self.domains is not None,
        }
        asked = [name for name, needs in needing.items() if needs]
        if asked and not tracks:
            raise OptionError(
                "An option needs running statistics",
                received=f"{', '.join(asked)} with track_running_stats=False",
                expected="track_running_stats=True",
                remedy="Leave one of them away.",
            )

    def __str__(self) -> str:
        """What differs from the defaults, as a layer's repr shows it."""
        shown = ""
        for field in fields(self):
            value = getattr(self, field.name)
            if value != field.default:
                shown += f", {field.name}={value!r}"
        return shown


def check_choice(name: str, value: object, known: tuple[str, ...]) -> None:
    """One of a few words.

    Raises:
        OptionError: none of them; the nearest is suggested.
    """
    if value in known:
        return
    near = difflib.get_close_matches(str(value), known, 1)
    raise OptionError(
        f"{name}= has no such way",
        received=repr(value),
        expected=", ".join(repr(word) for word in known),
        remedy=f"Did you mean {near[0]!r}?" if near else f"The default is {known[0]!r}.",
    )


def _check_whole(name: str, value: object, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise OptionError(
            f"{name} cannot be this number",
            received=repr(value),
            expected=f"a whole number of at least {least}",
            remedy="Leave it away for torch.nn's behaviour.",
        )


def _check_number(name: str, value: Any, least: float) -> None:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or value < least:
        raise OptionError(
            f"{name} cannot be this number",
            received=repr(value),
            expected=f"a finite number of at least {least:g}",
            remedy="The paper ends at r_max=3, d_max=5.",
        )


def check_eps(eps: Any, kind: str) -> None:
    """torch.nn accepts any eps; NaN would poison every output silently.

    Raises:
        OptionError: not finite or negative.
    """
    if eps is None and kind == "RMSNorm":
        return
    if not isinstance(eps, Real) or not math.isfinite(eps) or eps < 0:
        raise OptionError(
            f"A {kind} layer cannot have this eps",
            received=repr(eps),
            expected="a finite number, at least 0",
            remedy="torch.nn's default is 1e-5.",
        )


def check_momentum(momentum: Any) -> None:
    """torch.nn accepts any momentum; NaN would poison the running statistics silently.

    Raises:
        OptionError: not finite.
    """
    if momentum is None or (isinstance(momentum, Real) and math.isfinite(momentum)):
        return
    raise OptionError(
        "A layer cannot have this momentum",
        received=repr(momentum),
        expected="a finite number or None",
        remedy="torch.nn's default is 0.1; None averages all batches alike.",
    )
