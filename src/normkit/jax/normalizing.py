"""Any norm under JAX's transformations, also with statistics over devices."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import lax
from jax import numpy as jnp

from normkit.engine import GradientSums, Saved
from normkit.moments import Moments
from normkit.norms import Norm

__all__ = ["AxisName", "normalize"]

Array = Any
#: Of a mapped axis (``vmap``, ``pmap``, ``shard_map``), or of several.
AxisName = Hashable | tuple[Hashable, ...]


# So that they pass in and out of jit, vmap and scan.
jax.tree_util.register_dataclass(Moments, ["count", "mean", "m2"], [])


@dataclass(frozen=True)
class _How:
    """What is not differentiated by, and decides what is traced."""

    norm: Norm
    axis: int
    axis_name: AxisName | None
    activation: str | None
    input_activation: str | None


class _Given(NamedTuple):
    """Arrays of a call; None for those that are not given."""

    x: Array
    gamma: Array
    beta: Array
    residual: Array
    mask: Array
    lengths: Array


def normalize(
    norm: Norm,
    x: Array,
    gamma: Array | None = None,
    beta: Array | None = None,
    *,
    axis: int = -1,
    axis_name: AxisName | None = None,
    mask: Array | None = None,
    lengths: Array | None = None,
    residual: Array | None = None,
    activation: str | None = None,
    input_activation: str | None = None,
) -> tuple[Array, Moments]:
    """Normalize, and say the statistics of every set; works under jit, grad, vmap and shard_map.

    Backward keeps x (which its maker keeps as well) and the statistics, no other array of x's size,
    and computes the gradient in closed form. Variances are taken from deviations, not from squares:
    they are right where the mean is 10,000 times the deviation.

    Differentiation is by ``grad`` and ``vjp``, any number of times; ``jvp`` and ``jacfwd`` do not
    go through it.

    Args:
        norm: which sets.
        x: the input; floating.
        gamma, beta: see :meth:`normkit.Norm.forward`; so are mask, lengths, residual, activation
            and input_activation.
        axis: of channels; the last, as is usual with JAX.
        axis_name: of a mapped axis over which sets reach: statistics are those of all its devices
            or entries together, exactly, also where they hold different numbers of elements.

    Returns:
        y, and the statistics: count, mean and M2 of each set. No gradient flows through these.
    """
    how = _How(norm, axis, axis_name, activation, input_activation)
    given = (x, gamma, beta, residual, mask, lengths)
    y, found = _compiled(how, _Given(*(a if a is None else jnp.asarray(a) for a in given)))
    return y, lax.stop_gradient(found)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _normalize(how: _How, given: _Given) -> tuple[Array, Moments]:
    return _forward(how, given)[0]


def _forward(how: _How, given: _Given) -> tuple[tuple[Array, Moments], Any]:
    moments = how.norm.moments(
        given.x, how.axis, given.mask, given.lengths, input_activation=how.input_activation
    )
    # Of the mean's shape: it can be added up over devices, and stacked beside the mean.
    count = jnp.broadcast_to(jnp.asarray(moments.count, moments.mean.dtype), moments.mean.shape)
    found = _over_all(how, Moments(count, moments.mean, moments.m2))
    y, _ = _applied(how, given, found)
    return (y, found), (given, found)


def _backward(how: _How, kept: Any, gradients: Any) -> tuple[_Given]:
    given, statistics = kept
    dy, _ = gradients
    _, saved = _applied(how, given, statistics)  # y is not used again, and so not computed again
    sums = how.norm.gradient_sums(dy, saved)
    whole = sums
    if how.axis_name is not None:
        dz, dzx = lax.psum((sums.dz, sums.dzx), how.axis_name)
        whole = GradientSums(sums.gamma, sums.beta, dz, dzx)
    found = how.norm.gradient_apply(dy, saved, whole)
    gradients = _Given(
        found.x, found.gamma, found.beta, found.residual, _zero(given.mask), _zero(given.lengths)
    )
    return (_Given(*map(_shared, gradients, given)),)


_normalize.defvjp(_forward, _backward)
_compiled = jax.jit(_normalize, static_argnums=0)  # outside of a jit, one program and not twenty


def _applied(how: _How, given: _Given, found: Moments) -> tuple[Array, Saved]:
    return how.norm.apply(
        given.x, found, given.gamma, given.beta, axis=how.axis, mask=given.mask,
        lengths=given.lengths, residual=given.residual, activation=how.activation,
        input_activation=how.input_activation,
    )  # fmt: skip


def _over_all(how: _How, part: Moments) -> Moments:
    """The statistics of all devices' parts together (Chan, Golub & LeVeque 1979)."""
    if how.axis_name is None:
        return part
    count, total = lax.psum((part.count, part.count * part.mean), how.axis_name)
    mean = total / jnp.maximum(count, 1)
    spread = part.mean - mean
    return Moments(count, mean, lax.psum(part.m2 + part.count * spread**2, how.axis_name))


def _shared(gradient: Array | None, given: Array | None) -> Array | None:
    """The gradient of what all devices of a ``shard_map`` share is the sum of theirs.

    Where JAX keeps no account of that (``vmap``, ``pmap``, ``check_vma=False``), each has its own,
    and whoever shares gamma and beta adds them up.
    """
    if given is None or gradient is None:
        return gradient
    over = tuple(_varying(gradient) - _varying(given))
    return lax.psum(gradient, over) if over else gradient


def _varying(values: Array) -> frozenset[Hashable]:
    """Mapped axes along which values differ, as far as JAX knows."""
    if not hasattr(jax, "typeof"):  # before JAX 0.6 it knew nothing
        return frozenset()
    kind = jax.typeof(values)
    manual = getattr(kind, "manual_axis_type", None)  # its name in later versions
    return frozenset(getattr(kind, "vma", ()) if manual is None else manual.varying)


def _zero(values: Array | None) -> Array | None:
    """The gradient by whole numbers and truth values, as JAX wants it."""
    if values is None or jnp.issubdtype(values.dtype, jnp.floating):
        return None if values is None else jnp.zeros_like(values)
    return np.zeros(values.shape, jax.dtypes.float0)
