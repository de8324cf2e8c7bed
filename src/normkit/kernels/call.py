"""One call as every backend sees it, and what a backend must be able to do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any, Protocol, TypeVar

import numpy as np

from normkit.coefficients import gradient_line, set_slope
from normkit.epilogues import Activation
from normkit.layout import Layout

Array = Any
_F = TypeVar("_F", bound=Callable[..., Any])


def quiet(function: _F) -> _F:
    """Without NumPy's warnings: NaN and infinity in x spread as the definition says."""

    @wraps(function)
    def silent(*args: Any, **kwargs: Any) -> Any:
        with np.errstate(all="ignore"):
            return function(*args, **kwargs)

    return silent  # type: ignore[return-value]


def is_array(count: Any) -> bool:
    """Whether a count is an array, rather than one number for all sets.

    Asked of its class, because a compiler's symbolic number has no attributes to ask for.
    """
    return hasattr(type(count), "shape")


@dataclass(slots=True)
class Call:
    """Checked arguments of one forward, and of the backward that follows it."""

    layout: Layout
    eps: float
    center: bool
    scale: bool
    x: Array
    gamma: Array = None
    beta: Array = None
    affine: str | None = None  # "channel", "sample" or "element"
    mask: Array = None  # bool, cube-shaped or broadcastable to it
    residual: Array = None
    activation: Activation | None = None
    input_activation: Activation | None = None  # x goes through it before it is normalized
    prepared: Any = None  # what a backend has found out about the call


class Backend(Protocol):
    """Passes over x. Statistics are arrays on the layout's grid (sample, channel, position sets).

    ``slope`` and ``offset`` make x_hat = slope * (x - mean) + offset; see
    :mod:`normkit.coefficients` for these and for ``linear`` and ``constant``.
    """

    name: str

    def namespace(self) -> Any:
        """The array library of the statistics."""

    def statistics_dtype(self, call: Call) -> Any:
        """What statistics are held in."""

    def constant(self, values: Array) -> Array:
        """The values as a constant, where the library would differentiate through them."""

    def counts(self, call: Call) -> Any:
        """Elements in each set: a number, or an array that broadcasts to the grid."""

    def moments(self, call: Call) -> tuple[Array, Array]:
        """Mean and m2."""

    def normalize(self, call: Call, out: Array) -> tuple[Array, Array, Array]:
        """y, mean and m2, from x's own statistics."""

    def apply(self, call: Call, mean: Array, slope: Array, offset: Array, out: Array) -> Array:
        """y from given coefficients."""

    def backpropagate(
        self, call: Call, dy: Array, mean: Array, m2: Array
    ) -> tuple[Array, Array, Array, Array]:
        """Gradients of x, gamma, beta and residual, where the statistics are x's own.

        Each has the dtype of what it is the gradient of; None for what the call has not.
        """

    def gradient_sums(
        self, call: Call, dy: Array, mean: Array, slope: Array, offset: Array
    ) -> tuple[Array, Array, Array, Array]:
        """Sums of gamma*dz and gamma*dz*(x - mean) over each set; gradients of gamma and beta."""

    def gradient_apply(
        self, call: Call, dy: Array, coefficients: tuple[Array, Array, Array, Array, Array]
    ) -> tuple[Array, Array]:
        """Gradients of x and residual from mean, slope, offset, linear and constant.

        ``linear`` is None where there is no way through the variance; without activations x then
        does not matter.
        """


def backpropagate_in_halves(
    backend: Backend, call: Call, dy: Array, mean: Array, m2: Array
) -> tuple[Array, Array, Array, Array]:
    """:meth:`Backend.backpropagate` as the sums, then the rest."""
    xp, count = backend.namespace(), backend.counts(call)
    if not is_array(count):
        count = xp.full_like(m2, count)
    slope = set_slope(xp, count, m2, call.eps, call.center, call.scale)
    offset = xp.zeros_like(slope)
    dz, dzx, dgamma, dbeta = backend.gradient_sums(call, dy, mean, slope, offset)
    safe = count + (count < 1)
    linear, constant = gradient_line(
        slope, m2 / safe, call.eps, safe, dz, dzx, float(call.center), float(call.scale)
    )
    linear = linear if call.scale else None
    dx, dresidual = backend.gradient_apply(call, dy, (mean, slope, offset, linear, constant))
    return dx, dgamma, dbeta, dresidual
