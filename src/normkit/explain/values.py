"""What the graph is fed with: x, the gradient that comes in, gamma, beta and epsilon."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from normkit.errors import OptionError
from normkit.norms import BatchNorm
from normkit.words import counted

if TYPE_CHECKING:
    from normkit.trace import Trace

__all__ = ["EXAMPLE", "LARGEST", "Values", "values"]

LARGEST = 1e100  # its square is a number too
USUAL_EPS = 1e-5
_DOUT = np.array([[1.0, 0.0], [0.0, 2.0], [2.0, -1.0], [-1.0, 1.0]])


@dataclass(frozen=True, eq=False)
class Values:
    """Inputs of batch norm's graph, all float64.

    Args:
        x, dout: (samples, channels).
        gamma, beta: (channels,).
        eps: added to the variance.
    """

    x: Any
    dout: Any
    gamma: Any
    beta: Any
    eps: float

    def trace(self) -> Trace:
        """Every step, forward and backward."""
        return BatchNorm(eps=self.eps).trace(self.x, self.gamma, self.beta, self.dout)


#: Two channels whose roots come out even, so that everything can be followed by hand.
EXAMPLE = Values(
    x=np.array([[1.0, 12.0], [2.0, 7.0], [3.0, 11.0], [6.0, 10.0]]),
    dout=_DOUT,
    gamma=np.array([2.0, 1.0]),
    beta=np.array([1.0, 0.0]),
    eps=0.5,
)


def values(
    x: str | None = None,
    dout: str | None = None,
    gamma: str | None = None,
    beta: str | None = None,
    eps: float | None = None,
) -> Values:
    """The example, or what the user wrote in place of its parts.

    Args:
        x, dout: rows of numbers, a row a sample: ``"1,2;3,4"``.
        gamma, beta: a number, or one a channel.
        eps: 1e-5 where x is given and this is not.

    Raises:
        OptionError: something is no number, not finite, or does not fit the rest.

    >>> values("1;2;3;6").x.shape, values(gamma="3").gamma
    ((4, 1), array([3., 3.]))
    """
    given = EXAMPLE.x if x is None else _rows("x", x)
    samples, channels = given.shape
    if samples < 2:
        raise OptionError(
            "One sample has no variance",
            received=f"--x with {counted(samples, 'row')}",
            expected="at least 2 rows, one a sample, with ; between them",
            remedy='For instance --x "1,2;3,4": two samples of two channels.',
        )
    epsilon = _epsilon(eps, USUAL_EPS if x is not None else EXAMPLE.eps)
    for channel, column in enumerate(given.T, start=1):
        if epsilon == 0 and np.all(column == column[0]):
            raise OptionError(
                "There is no spread to divide by",
                received=f"--eps 0, and channel {channel} of --x is {column[0]:g} in every sample",
                expected="a channel that varies, or an epsilon above 0",
                remedy="Say --eps 1e-5.",
            )
    return Values(
        x=given,
        dout=_like(given, dout),
        gamma=_channels("gamma", gamma, EXAMPLE.gamma if x is None else np.ones(channels)),
        beta=_channels("beta", beta, EXAMPLE.beta if x is None else np.zeros(channels)),
        eps=epsilon,
    )


def _rows(name: str, text: str) -> Any:
    rows = [_numbers(name, row) for row in text.strip().rstrip(";").split(";")]
    if len({len(row) for row in rows}) > 1:
        raise OptionError(
            f"The rows of --{name} differ in length",
            received=f"rows of {', '.join(str(len(row)) for row in rows)} numbers",
            expected="as many in each: one a channel",
            remedy='For instance "1,2;3,4": two samples of two channels.',
        )
    return np.array(rows)


def _numbers(name: str, text: str) -> list[float]:
    return [_number(name, part) for part in text.split(",")]


def _number(name: str, text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if abs(number) <= LARGEST:  # false for NaN
        return number
    raise OptionError(
        f"--{name} holds something that cannot be computed with",
        received=repr(text.strip()),
        expected=f"finite numbers of at most {LARGEST:g}, with , between channels and ; between "
        "samples",
        remedy='For instance "1,2;3,4".',
    )


def _like(x: Any, text: str | None) -> Any:
    """The incoming gradient; by default the example's rows, over and over."""
    if text is None:
        return np.resize(_DOUT, (len(x), 2))[:, np.arange(x.shape[1]) % 2]
    dout = _rows("dout", text)
    if dout.shape != x.shape:
        raise OptionError(
            "--dout does not fit x",
            received=f"{_shape(dout)}, where x has {_shape(x)}",
            expected="a number for each of x",
            remedy="Leave --dout away to take the example's.",
        )
    return dout


def _shape(a: Any) -> str:
    return f"{counted(len(a), 'row')} of {counted(a.shape[1], 'number')}"


def _channels(name: str, text: str | None, usual: Any) -> Any:
    if text is None:
        return usual
    found = np.array(_numbers(name, text))
    if len(found) not in (1, len(usual)):
        raise OptionError(
            f"--{name} does not fit the channels of x",
            received=counted(len(found), "number"),
            expected=f"1, or {len(usual)}: one a channel",
            remedy=f"For instance --{name} {','.join(['1'] * len(usual))}.",
        )
    return np.resize(found, len(usual))


def _epsilon(eps: float | None, usual: float) -> float:
    if eps is None:
        return usual
    if 0 <= eps <= LARGEST:
        return eps
    raise OptionError(
        "Epsilon is added to a variance",
        received=f"--eps {eps:g}",
        expected=f"a number from 0 to {LARGEST:g}",
        remedy="1e-5 is usual.",
    )
