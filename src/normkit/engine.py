"""The way of every norm, forward and backward, whatever the backend.

    x -> layout -> moments -> (merge with other ranks' | replace | renormalize) -> coefficients
      -> apply(+ residual, activation) -> y

The passes over x are a backend's; what lies between is here and in :mod:`normkit.coefficients`.
Where the statistics come from is part of what is saved: gradients flow through statistics that were
taken from x and not through given ones.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from normkit import checks
from normkit.coefficients import Renorm, gradient_line, inverse_std, set_slope
from normkit.errors import DTypeError, OptionError, SavedError, ShapeError
from normkit.kernels import registry
from normkit.kernels.call import Array, Backend, Call, is_array, quiet
from normkit.moments import Moments
from normkit.trace import Trace, trace_call

__all__ = [
    "GradientSums",
    "Gradients",
    "Saved",
    "apply",
    "backward",
    "explain_backend",
    "forward",
    "gradient_apply",
    "gradient_sums",
    "moments",
    "trace",
]


@dataclass(frozen=True, slots=True, eq=False)
class Gradients:
    """Gradients of a loss; None for what forward was not given."""

    x: Array
    gamma: Array
    beta: Array
    residual: Array


@dataclass(frozen=True, slots=True, eq=False)
class GradientSums:
    """Half of a backward pass: gradients of gamma and beta, and what dx needs of every set.

    Args:
        gamma, beta: their gradients, None where forward had none.
        dz, dzx: sums of gamma*dz and gamma*dz*(x - mean), shaped as the statistics.

    Those of several parts of a batch add up.
    """

    gamma: Array
    beta: Array
    dz: Array
    dzx: Array

    def __add__(self, other: GradientSums) -> GradientSums:
        if not isinstance(other, GradientSums):
            return NotImplemented
        gamma = None if self.gamma is None else self.gamma + other.gamma
        beta = None if self.beta is None else self.beta + other.beta
        return GradientSums(gamma, beta, self.dz + other.dz, self.dzx + other.dzx)

    def __radd__(self, other: Any) -> GradientSums:
        """So that ``sum(parts)``, which starts from 0, works."""
        return self if isinstance(other, int) and other == 0 else NotImplemented


@dataclass(slots=True, eq=False)
class Saved:
    """What backward needs: references to the inputs, and numbers a set.

    ``slope`` and ``offset`` are None where they follow from the statistics; ``taken`` says whether
    these were taken from x (or from x and its like on other ranks).
    """

    norm: Any
    call: Call
    backend: Backend
    count: Any
    mean: Array
    m2: Array
    taken: bool = True
    slope: Array = None
    offset: Array = None
    overwritten: bool = False

    def __repr__(self) -> str:
        source = "taken from x" if self.taken else "given"
        shape = self.call.layout.shape
        return f"<Saved by {self.norm} for x of shape {shape}, statistics {source}>"

    @property
    def statistics(self) -> Moments:
        """Count, mean and M2 of every set; see :class:`normkit.Norm` for the shape."""
        return _public(self.backend, self.call, self.count, self.mean, self.m2)


# --- statistics between grid and public shape -----------------------------------------------------


def _public(backend: Backend, call: Call, count: Any, mean: Array, m2: Array) -> Moments:
    xp, shape = backend.namespace(), call.layout.statistics_shape
    if is_array(count):
        count = xp.reshape(xp.broadcast_to(count, mean.shape), shape)
    return Moments(count, xp.reshape(mean, shape), xp.reshape(m2, shape))


def _grid(backend: Backend, call: Call, values: Any, name: str) -> Array:
    """A statistic given in its public shape, on the grid."""
    xp, expected = backend.namespace(), call.layout.statistics_shape
    values = checks.as_array(values)
    shape = tuple(getattr(values, "shape", ()))
    if shape != expected:
        raise ShapeError(
            f"The {name} of the given statistics does not fit the norm's sets",
            received=f"shape {shape}",
            expected=f"{expected} for x of shape {call.layout.shape}, axis={call.layout.axis}",
            remedy="Give one value a set, as saved.statistics has them.",
        )
    return xp.reshape(_work(backend, call, values), call.layout.grid)


def _work(backend: Backend, call: Call, values: Any) -> Array:
    xp, dtype = backend.namespace(), backend.statistics_dtype(call)
    if xp is np:
        return np.array(values, dtype=dtype)  # a copy: the caller may change his
    if isinstance(values, np.ndarray) or not hasattr(values, "dtype"):
        return xp.asarray(values, dtype=dtype, copy=True)
    return xp.astype(values, dtype)


def _counts(backend: Backend, call: Call, count: Any) -> Any:
    if not is_array(count) or not count.shape:
        return count
    return _grid(backend, call, count, "count")


def _given(backend: Backend, call: Call, statistics: Any) -> tuple[Any, Array, Array]:
    """Count, mean and M2 on the grid from what the user gave."""
    if isinstance(statistics, Moments):
        count, mean, m2 = statistics.count, statistics.mean, statistics.m2
    elif isinstance(statistics, (tuple, list)) and len(statistics) == 2:
        count, (mean, m2) = 1.0, statistics
    else:
        raise DTypeError(
            "No statistics to normalize with",
            received=type(statistics).__name__,
            expected="normkit.Moments or a pair (mean, var)",
            remedy="Running averages go in as statistics=(running.mean, running.var).",
        )
    return (
        _counts(backend, call, count),
        _grid(backend, call, mean, "mean"),
        _grid(backend, call, m2, "variance"),
    )


def _array(xp: Any, count: Any, like: Array) -> Array:
    """A count as an array, also where it is one number for all sets."""
    return count if is_array(count) else xp.full_like(like, count)


def _slope(backend: Backend, call: Call, count: Any, m2: Array) -> Array:
    xp = backend.namespace()
    return set_slope(xp, _array(xp, count, m2), m2, call.eps, call.center, call.scale)


# --- forward --------------------------------------------------------------------------------------


@quiet
def forward(
    norm: Any, x: Any, gamma: Any, beta: Any, axis: int, mask: Any, lengths: Any, residual: Any,
    activation: str | None, statistics: Any, renorm: Any, out: Any, input_activation: str | None,
) -> tuple[Array, Saved]:  # fmt: skip
    """See :meth:`normkit.Norm.forward`."""
    call = checks.make_call(
        norm, x, gamma, beta, axis, mask, lengths, residual, activation, input_activation
    )
    checks.check_out(call.x, out)
    return run_forward(norm, call, registry.backend_for(call), statistics, renorm, out)


def run_forward(
    norm: Any, call: Call, backend: Backend, statistics: Any, renorm: Any, out: Any = None,
    reduce: Callable[[Moments], Moments] | None = None,
) -> tuple[Array, Saved]:  # fmt: skip
    """Forward of a checked call on a chosen backend.

    ``reduce`` makes of this part's moments those of the whole, for instance of all ranks.
    """
    if statistics is not None:
        if renorm is not None:
            raise OptionError(
                "Both statistics= and renorm= replace the batch's",
                received="both",
                expected="one of them",
                remedy="Use renorm= in training, statistics= for inference.",
            )
        count, mean, m2 = _given(backend, call, statistics)
        var = m2 / (count + (count < 1))
        slope = inverse_std(var, call.eps) if call.scale else backend.namespace().ones_like(var)
        return _apply(norm, call, backend, count, mean, m2, slope, None, False, out)
    if renorm is not None or reduce is not None:
        count, mean, m2 = backend.counts(call), *backend.moments(call)
        if reduce is not None:
            whole = reduce(_public(backend, call, count, mean, m2))
            count, mean, m2 = _given(backend, call, whole)
        return _apply_taken(norm, call, backend, count, mean, m2, renorm, out)
    y, mean, m2 = backend.normalize(call, out)
    saved = Saved(norm, call, backend, backend.counts(call), mean, m2)
    saved.overwritten = _overwritten(call, out)
    return y, saved


def _apply_taken(
    norm: Any, call: Call, backend: Backend, count: Any, mean: Array, m2: Array, renorm: Any,
    out: Any,
) -> tuple[Array, Saved]:  # fmt: skip
    """The second half of forward with statistics that were taken from x and its like."""
    slope = _slope(backend, call, count, m2)
    if renorm is None:
        return _apply(norm, call, backend, count, mean, m2, slope, None, True, out)
    r, d = _renorm_factors(norm, call, backend, count, mean, m2, renorm)
    return _apply(norm, call, backend, count, mean, m2, slope * r, d, True, out)


def _renorm_factors(
    norm: Any, call: Call, backend: Backend, count: Any, mean: Array, m2: Array, renorm: Any
) -> tuple[Array, Array]:
    if not isinstance(renorm, Renorm) or not (call.center and call.scale):
        raise DTypeError(
            "Cannot renormalize",
            received=f"{type(renorm).__name__} with {norm}",
            expected="normkit.Renorm with a norm that centres and scales",
            remedy="Batch renormalization corrects a mean and a standard deviation.",
        )
    xp = backend.namespace()
    reference = Renorm(
        _grid(backend, call, renorm.mean, "renorm mean"),
        _grid(backend, call, renorm.var, "renorm variance"),
        renorm.r_max,
        renorm.d_max,
    )
    safe = count + (count < 1)
    mean, var = backend.constant(mean), backend.constant(m2 / safe)
    r, d = reference.factors(xp, mean, var, call.eps)
    return r, xp.where(_array(xp, count, d) < 1, xp.zeros_like(d), d)  # an empty set's x_hat is 0


def _apply(
    norm: Any, call: Call, backend: Backend, count: Any, mean: Array, m2: Array, slope: Array,
    offset: Array, taken: bool, out: Any,
) -> tuple[Array, Saved]:  # fmt: skip
    offset = backend.namespace().zeros_like(slope) if offset is None else offset
    y = backend.apply(call, mean, slope, offset, out)
    saved = Saved(norm, call, backend, count, mean, m2, taken, slope, offset)
    saved.overwritten = _overwritten(call, out)
    return y, saved


def _overwritten(call: Call, out: Any) -> bool:
    inputs = [array for array in (call.x, call.residual) if array is not None]
    return out is not None and any(checks.may_overlap(out, array) for array in inputs)


@quiet
def moments(
    norm: Any, x: Any, axis: int, mask: Any, lengths: Any, input_activation: str | None
) -> Moments:
    """See :meth:`normkit.Norm.moments`."""
    call = checks.make_call(
        norm, x, axis=axis, mask=mask, lengths=lengths, input_activation=input_activation
    )
    backend = registry.backend_for(call)
    return _public(backend, call, backend.counts(call), *backend.moments(call))


@quiet
def apply(
    norm: Any, x: Any, statistics: Any, gamma: Any, beta: Any, axis: int, mask: Any, lengths: Any,
    residual: Any, activation: str | None, renorm: Any, out: Any, input_activation: str | None,
) -> tuple[Array, Saved]:  # fmt: skip
    """See :meth:`normkit.Norm.apply`."""
    call = checks.make_call(
        norm, x, gamma, beta, axis, mask, lengths, residual, activation, input_activation
    )
    checks.check_out(call.x, out)
    backend = registry.backend_for(call)
    if not isinstance(statistics, Moments):
        raise DTypeError(
            "apply() needs the moments",
            received=type(statistics).__name__,
            expected="normkit.Moments",
            remedy="Take them with norm.moments(x), or pass statistics= to forward().",
        )
    count, mean, m2 = _given(backend, call, statistics)
    return _apply_taken(norm, call, backend, count, mean, m2, renorm, out)


@quiet
def output_again(saved: Saved) -> Array:
    """y once more, from what was saved for backward."""
    return saved.backend.apply(saved.call, saved.mean, *_line(saved), None)


# --- backward -------------------------------------------------------------------------------------


def _check_backward(norm: Any, dy: Any, saved: Any) -> Array:
    if not isinstance(saved, Saved):
        raise SavedError(
            "backward() needs what forward() saved",
            received=type(saved).__name__,
            expected="the second value that forward() returned",
            remedy="y, saved = norm.forward(x, ...); grads = norm.backward(dy, saved)",
        )
    if saved.norm != norm:
        raise SavedError(
            "saved belongs to another norm",
            received=f"what {saved.norm} saved",
            expected=f"what {norm} saved",
            remedy="Call backward on the norm whose forward made it.",
        )
    if saved.overwritten:
        raise SavedError(
            "backward() needs x and the residual, which out= has overwritten",
            received="what a forward with out=x or out=residual saved",
            expected="untouched inputs",
            remedy="Leave out= away, or pass another array, when gradients are wanted.",
        )
    return checks.like(saved.call.x, dy, "dy")


@quiet
def backward(norm: Any, dy: Any, saved: Any) -> Gradients:
    """See :meth:`normkit.Norm.backward`."""
    dy = _check_backward(norm, dy, saved)
    call = saved.call
    if saved.slope is None:
        dx, dgamma, dbeta, dresidual = saved.backend.backpropagate(call, dy, saved.mean, saved.m2)
        return Gradients(dx, dgamma, dbeta, dresidual)
    return _gradient_apply(saved, dy, _gradient_sums(saved, dy))


@quiet
def gradient_sums(norm: Any, dy: Any, saved: Any) -> GradientSums:
    """See :meth:`normkit.Norm.gradient_sums`."""
    dy = _check_backward(norm, dy, saved)
    return _gradient_sums(saved, dy)


def _line(saved: Saved) -> tuple[Array, Array]:
    """slope and offset of x_hat."""
    if saved.slope is not None:
        return saved.slope, saved.offset
    slope = _slope(saved.backend, saved.call, saved.count, saved.m2)
    return slope, saved.backend.namespace().zeros_like(slope)


def _gradient_sums(saved: Saved, dy: Array) -> GradientSums:
    call, backend = saved.call, saved.backend
    dz, dzx, dgamma, dbeta = backend.gradient_sums(call, dy, saved.mean, *_line(saved))
    xp, shape = backend.namespace(), call.layout.statistics_shape
    return GradientSums(
        dgamma,
        dbeta,
        xp.reshape(dz, shape),
        xp.reshape(dzx, shape),
    )


@quiet
def gradient_apply(norm: Any, dy: Any, saved: Any, sums: Any) -> Gradients:
    """See :meth:`normkit.Norm.gradient_apply`."""
    dy = _check_backward(norm, dy, saved)
    if not isinstance(sums, GradientSums):
        raise DTypeError(
            "gradient_apply() needs the sums",
            received=type(sums).__name__,
            expected="normkit.GradientSums",
            remedy="sums = norm.gradient_sums(dy, saved)",
        )
    return _gradient_apply(saved, dy, sums)


def _gradient_apply(saved: Saved, dy: Array, sums: GradientSums) -> Gradients:
    call, backend = saved.call, saved.backend
    slope, offset = _line(saved)
    count = saved.count + (saved.count < 1)
    linear, constant = gradient_line(
        slope,
        saved.m2 / count,
        call.eps,
        count,
        _grid(backend, call, sums.dz, "dz"),
        _grid(backend, call, sums.dzx, "dzx"),
        float(saved.taken and call.center),
        float(saved.taken and call.scale),
    )
    linear = linear if saved.taken and call.scale else None
    dx, dresidual = backend.gradient_apply(call, dy, (saved.mean, slope, offset, linear, constant))
    return Gradients(dx, sums.gamma, sums.beta, dresidual)


# --- looking inside -------------------------------------------------------------------------------


def trace(norm: Any, x: Any, gamma: Any, beta: Any, dy: Any, axis: int) -> Trace:
    """See :meth:`normkit.Norm.trace`."""
    call = checks.make_call(norm, x, gamma, beta, axis)
    return trace_call(call, checks.like(call.x, dy, "dy"))


def explain_backend(
    x: Any, norm: Any, gamma: Any = None, beta: Any = None, axis: int = 1, mask: Any = None
) -> str:
    """Which kernels a forward with these arguments would run on, and why not the faster ones.

    >>> import normkit as nk, numpy as np
    >>> print(nk.explain_backend(np.zeros((8, 3, 5), "float32"), nk.BatchNorm()))
    compiled (Numba, CPU): x is a NumPy array whose sets can be read in place;
    portable (array API): not needed
    """
    return registry.explain(checks.make_call(norm, x, gamma, beta, axis, mask))
