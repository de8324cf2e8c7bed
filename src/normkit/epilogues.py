"""What follows the normalization in the same pass over memory: residual and activation.

An activation is written once, in terms of ``ops`` (``exp``, ``tanh``, ``erf``, ``where``,
``maximum``, ``minimum``), and serves the compiled kernels and every array library:

>>> import normkit as nk
>>> softsign = nk.Activation(
...     "softsign",
...     value=lambda z, ops: z / (1 + ops.maximum(z, -z)),
...     slope=lambda z, ops: 1 / (1 + ops.maximum(z, -z)) ** 2,
... )
>>> nk.register_activation(softsign)
>>> y, saved = nk.BatchNorm().forward([[1.0], [3.0]], activation="softsign")
>>> y.round(3)
array([[-0.5],
       [ 0.5]])
"""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from normkit.errors import DTypeError, OptionError

__all__ = ["Activation", "activation_names", "find_activation", "register_activation"]

Formula = Callable[[Any, Any], Any]


@dataclass(frozen=True)
class Activation:
    """A function applied element by element behind the norm.

    Args:
        name: how it is asked for.
        value: ``value(z, ops)``, the activation of ``z``.
        slope: ``slope(z, ops)``, its derivative at ``z``.

    Both are compiled by Numba as well as called on arrays: arithmetic, powers, comparisons inside
    ``ops.where`` and calls of ``ops`` only; constants from outside are frozen when compiled.
    """

    name: str
    value: Formula
    slope: Formula

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name.isidentifier():
            raise OptionError(
                "An activation's name cannot be used",
                received=repr(self.name),
                expected="a word of letters, digits and underscores",
                remedy="Give it a name such as 'softsign'.",
            )
        for field in ("value", "slope"):
            if not callable(getattr(self, field)):
                raise DTypeError(
                    f"Activation {self.name!r} has no function in {field!r}",
                    received=type(getattr(self, field)).__name__,
                    expected=f"a callable {field}(z, ops)",
                    remedy="See the example in normkit.epilogues.",
                )
            code = getattr(getattr(self, field), "__code__", None)
            if code is None or any(hasattr(constant, "co_code") for constant in code.co_consts):
                raise DTypeError(
                    f"The {field} of activation {self.name!r} cannot be compiled",
                    received=repr(getattr(self, field)),
                    expected="a plain function without functions inside",
                    remedy="Write it with def or lambda, in arithmetic and calls of ops.",
                )

    @property
    def digest(self) -> str:
        """Version of both formulas, for the cache of compiled kernels."""
        digest = hashlib.sha256()
        for formula in (self.value, self.slope):
            code = formula.__code__
            outside = {n: formula.__globals__[n] for n in code.co_names if n in formula.__globals__}
            cells = [cell.cell_contents for cell in formula.__closure__ or ()]
            digest.update(repr((code.co_code, code.co_consts, outside, cells)).encode())
        return digest.hexdigest()[:12]


_HALF_LOG_TWO_PI = 0.9189385332046727
_TWO_SQRT_2_OVER_PI = 1.5957691216057308  # 2 * sqrt(2 / pi)


def _gelu_slope(z: Any, ops: Any) -> Any:
    return ops.normal_cdf(z) + z * ops.exp(-0.5 * z * z - _HALF_LOG_TWO_PI)


def _gelu_tanh_slope(z: Any, ops: Any) -> Any:
    inner = _TWO_SQRT_2_OVER_PI * (z + 0.044715 * z * z * z)
    turn = _TWO_SQRT_2_OVER_PI * (1.0 + 0.134145 * z * z)
    return ops.sigmoid(inner) * (1.0 + z * ops.sigmoid(-inner) * turn)


def _hardswish_slope(z: Any, ops: Any) -> Any:
    return ops.where(z <= -3.0, 0.0, ops.where(z >= 3.0, 1.0, z / 3.0 + 0.5))


# Comparisons are written so that NaN takes the branch that hands it on.
_BUILT_IN = (
    Activation(
        "relu",
        value=lambda z, ops: ops.where(z <= 0.0, 0.0, z),
        slope=lambda z, ops: ops.where(z <= 0.0, 0.0, 1.0),
    ),
    Activation(
        "leaky_relu",
        value=lambda z, ops: ops.where(z <= 0.0, 0.01 * z, z),
        slope=lambda z, ops: ops.where(z <= 0.0, 0.01, 1.0),
    ),
    Activation(
        "silu",
        value=lambda z, ops: z * ops.sigmoid(z),
        slope=lambda z, ops: ops.sigmoid(z) * (1.0 + z * ops.sigmoid(-z)),
    ),
    Activation("gelu", value=lambda z, ops: z * ops.normal_cdf(z), slope=_gelu_slope),
    Activation(
        "gelu_tanh",
        value=lambda z, ops: z * ops.sigmoid(_TWO_SQRT_2_OVER_PI * (z + 0.044715 * z * z * z)),
        slope=_gelu_tanh_slope,
    ),
    Activation(
        "sigmoid",
        value=lambda z, ops: ops.sigmoid(z),
        slope=lambda z, ops: ops.sigmoid(z) * ops.sigmoid(-z),
    ),
    Activation(
        "tanh",
        value=lambda z, ops: ops.tanh(z),
        slope=lambda z, ops: 4.0 * ops.sigmoid(2.0 * z) * ops.sigmoid(-2.0 * z),
    ),
    Activation(
        "hardswish",
        value=lambda z, ops: z * ops.minimum(ops.maximum(z + 3.0, 0.0), 6.0) / 6.0,
        slope=_hardswish_slope,
    ),
)
_known: dict[str, Activation] = {activation.name: activation for activation in _BUILT_IN}


def register_activation(activation: Activation) -> None:
    """Make an activation available by its name, to every norm and backend.

    Raises:
        DTypeError: it is no :class:`Activation`.
        OptionError: the name is taken by a different one.
    """
    if not isinstance(activation, Activation):
        raise DTypeError(
            "No activation to register",
            received=type(activation).__name__,
            expected="a normkit.Activation",
            remedy="Wrap the two functions: Activation(name, value=..., slope=...).",
        )
    known = _known.get(activation.name)
    if known is not None and known.digest != activation.digest:
        raise OptionError(
            "The activation's name is taken",
            received=repr(activation.name),
            expected=f"a name other than {', '.join(sorted(_known))}",
            remedy="Register it under another name.",
        )
    _known[activation.name] = activation


def activation_names() -> tuple[str, ...]:
    """Every name that ``activation=`` takes."""
    return tuple(_known)


def find_activation(name: str | None) -> Activation | None:
    """The activation of that name; None for None.

    Raises:
        OptionError: no such name; the nearest ones are suggested.
    """
    if name is None:
        return None
    if not isinstance(name, str):
        raise DTypeError(
            "activation= is asked for by name",
            received=type(name).__name__,
            expected=f"None or one of {', '.join(_known)}",
            remedy="Register your own function with normkit.register_activation first.",
        )
    if name not in _known:
        near = difflib.get_close_matches(name, _known, 1)
        raise OptionError(
            "Unknown activation",
            received=repr(name),
            expected=f"None or one of {', '.join(_known)}",
            remedy=f"Did you mean {near[0]!r}?" if near else "See normkit.register_activation.",
        )
    return _known[name]
