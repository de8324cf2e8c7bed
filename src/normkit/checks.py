"""Arguments checked, before anything is computed or written."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np

from normkit.epilogues import find_activation
from normkit.errors import DTypeError, OptionError, ShapeError
from normkit.kernels.call import Array, Call
from normkit.kernels.numpy_host import dtype_label, well_formed
from normkit.kernels.registry import namespace_of
from normkit.layout import Layout, layout_of

FLOATS = ("float16", "bfloat16", "float32", "float64")


def dtype_name(array: Array) -> str:
    """``float32`` for a NumPy, PyTorch or JAX array of it."""
    return dtype_label(array.dtype)


def as_array(values: Any) -> Array:
    """Arrays as they are, nested sequences of numbers as NumPy arrays."""
    return np.asarray(values) if isinstance(values, (list, tuple, float, int)) else values


def _float_array(values: Any, name: str) -> Array:
    values = as_array(values)
    namespace_of(values, name)
    if isinstance(values, np.ma.MaskedArray):
        raise DTypeError(
            f"{name} is a masked array, whose mask would be ignored",
            received="numpy.ma.MaskedArray",
            expected="a plain array",
            remedy="Pass x.filled(0) with mask=~numpy.ma.getmaskarray(x).",
        )
    if isinstance(values, np.ndarray):
        values = well_formed(values)
    if dtype_name(values) not in FLOATS:
        raise DTypeError(
            f"{name} has a dtype that cannot be normalized",
            received=dtype_name(values),
            expected=", ".join(FLOATS),
            remedy=f"Convert it first, for instance {name}.astype('float32').",
        )
    return values


def make_call(
    norm: Any,
    x: Any,
    gamma: Any = None,
    beta: Any = None,
    axis: int = 1,
    mask: Any = None,
    lengths: Any = None,
    residual: Any = None,
    activation: str | None = None,
    input_activation: str | None = None,
    find_layout: Callable[..., Layout] = layout_of,
) -> Call:
    """The checked arguments of a forward."""
    x = _float_array(x, "x")
    layout = find_layout(norm, tuple(x.shape), _axis_number(axis))
    found, found_first = find_activation(activation), find_activation(input_activation)
    gamma, gamma_kind = _affine(layout, x, gamma, "gamma")
    beta, beta_kind = _affine(layout, x, beta, "beta")
    if residual is not None:
        residual = like(x, residual, "residual")
    if mask is not None or lengths is not None:
        mask = _mask(layout, x, mask, lengths)
    return Call(
        layout, float(norm.eps), norm.center, norm.scale, x, gamma, beta,
        _wider(gamma_kind, beta_kind), mask, residual, found,
        found_first,
    )  # fmt: skip


def _axis_number(axis: Any) -> int:
    """A whole number of any kind as an int; in front of the cache, where 1 and True are one."""
    if isinstance(axis, bool) or not hasattr(axis, "__index__"):
        raise DTypeError(
            "axis= is no axis",
            received=repr(axis),
            expected="a whole number",
            remedy="Pass the channel axis: 1 for channels first, -1 for channels last.",
        )
    return operator.index(axis)


def _wider(gamma: str | None, beta: str | None) -> str | None:
    """The kind that holds both; "mixed" if none does."""
    kinds = {kind for kind in (gamma, beta) if kind}
    if len(kinds) > 1:
        kinds.discard("channel")
    return "mixed" if len(kinds) > 1 else next(iter(kinds), None)


def _same_library(x: Array, values: Array, name: str) -> None:
    if isinstance(x, np.ndarray) != isinstance(values, np.ndarray):
        raise DTypeError(
            f"{name} belongs to another library than x",
            received=f"{name} of {type(values).__module__} with x of {type(x).__module__}",
            expected="arrays of one library",
            remedy=f"Convert {name} first.",
        )


def like(x: Array, values: Any, name: str) -> Array:
    """``values`` if it has x's shape, dtype and library."""
    values = as_array(values)
    namespace_of(values, name)
    _same_library(x, values, name)
    if tuple(values.shape) != tuple(x.shape):
        raise ShapeError(
            f"{name} does not fit x",
            received=f"{name} of shape {tuple(values.shape)} with x of shape {tuple(x.shape)}",
            expected=f"{tuple(x.shape)}",
            remedy=f"{name} corresponds to x element by element and is not broadcast.",
        )
    if dtype_name(values) != dtype_name(x):
        raise DTypeError(
            f"{name} has another dtype than x",
            received=f"{dtype_name(values)} with x of {dtype_name(x)}",
            expected=dtype_name(x),
            remedy=f"Convert {name}, or x, first.",
        )
    return well_formed(values) if isinstance(values, np.ndarray) else values


def _affine(layout: Layout, x: Array, values: Any, name: str) -> tuple[Array, str | None]:
    if values is None:
        return None, None
    values = _float_array(values, name)
    _same_library(x, values, name)
    return values, layout.affine_kind(tuple(values.shape), name)


def check_out(x: Array, out: Any) -> None:
    """``out`` can take y."""
    if out is None:
        return
    if not isinstance(out, type(x)):
        raise DTypeError(
            "out= is of another type than x",
            received=type(out).__name__,
            expected=type(x).__name__,
            remedy="Allocate it with empty_like(x).",
        )
    like(x, out, "out")
    read_only = isinstance(out, np.ndarray) and not out.flags.writeable
    immutable = "jax" in type(out).__module__
    if read_only or immutable:
        raise OptionError(
            "out= cannot be written",
            received="a read-only array" if read_only else "an immutable JAX array",
            expected="a writeable array",
            remedy="Leave out= away, or pass a copy.",
        )


def may_overlap(a: Array, b: Array) -> bool:
    """Whether two arrays of one library may share memory."""
    if isinstance(a, np.ndarray):
        return np.may_share_memory(a, b)
    if hasattr(a, "untyped_storage"):
        return bool(a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr())
    return a is b


# --- masks --------------------------------------------------------------------------------------


def _mask(layout: Layout, x: Array, mask: Any, lengths: Any) -> Array:
    """A cube-shaped mask (one channel if it does not depend on the channel)."""
    if mask is not None and lengths is not None:
        raise OptionError(
            "Both mask= and lengths= say what counts",
            received="both",
            expected="one of them",
            remedy="Fold the lengths into the mask.",
        )
    xp = namespace_of(x)
    mask = _from_lengths(xp, layout, x, lengths) if mask is None else as_array(mask)
    namespace_of(mask, "mask")
    _same_library(x, mask, "mask")
    if dtype_name(mask) != "bool":
        raise DTypeError(
            "mask= is not boolean",
            received=dtype_name(mask),
            expected="bool, True where an element counts",
            remedy="Compare first, for instance mask != 0.",
        )
    shape, axis = tuple(mask.shape), layout.axis
    if shape == layout.shape[:axis] + layout.shape[axis + 1 :]:
        mask = xp.expand_dims(mask, axis=axis)
    elif len(shape) != len(layout.shape) or not _broadcasts(shape, layout.shape):
        without = layout.shape[:axis] + layout.shape[axis + 1 :]
        raise ShapeError(
            "mask= does not fit x",
            received=f"mask of shape {shape} with x of shape {layout.shape}",
            expected=f"{without}, x without its channels, or {len(layout.shape)} dimensions that "
            f"broadcast to {layout.shape}",
            remedy="Check axis=, the channel axis, first.",
        )
    channels = mask.shape[axis]
    full = tuple(channels if a == axis else size for a, size in enumerate(layout.shape))
    mask = xp.permute_dims(xp.broadcast_to(mask, full), layout.cube_axes)
    return xp.reshape(mask, (layout.n, channels, layout.l))


def _broadcasts(shape: tuple[int, ...], target: tuple[int, ...]) -> bool:
    return all(a in (1, b) for a, b in zip(shape, target, strict=True))


def _from_lengths(xp: Any, layout: Layout, x: Array, lengths: Any) -> Array:
    lengths = as_array(lengths)
    namespace_of(lengths, "lengths")
    _same_library(x, lengths, "lengths")
    if not dtype_name(lengths).startswith(("int", "uint")):
        raise DTypeError(
            "lengths= are no whole numbers",
            received=dtype_name(lengths),
            expected="integers",
            remedy="Use mask= for anything else than a number of positions.",
        )
    if tuple(lengths.shape) != (layout.n,):
        raise ShapeError(
            "lengths= does not fit x",
            received=f"shape {tuple(lengths.shape)} with x of shape {layout.shape}",
            expected=f"({layout.n},), one a sample",
            remedy="Use mask= for anything else.",
        )
    if not layout.positions:
        raise OptionError(
            "lengths= needs positions",
            received=f"x of shape {layout.shape}, samples and channels only",
            expected="at least three dimensions",
            remedy="Use mask= of shape (N,) to leave samples out.",
        )
    most = layout.positions[0]
    if isinstance(lengths, np.ndarray) and lengths.size:
        low, high = int(lengths.min()), int(lengths.max())
        if low < 0 or high > most:
            raise OptionError(
                "lengths= lie outside x",
                received=f"lengths from {low} to {high}",
                expected=f"0 to {most}, the size of the first position axis",
                remedy="Check that lengths belong to this batch.",
            )
    steps = xp.arange(most, dtype=lengths.dtype, device=getattr(x, "device", None))
    inside = steps[None, :] < lengths[:, None]
    inside = xp.reshape(inside, (layout.n, most) + (1,) * (len(layout.positions) - 1))
    return xp.broadcast_to(inside, (layout.n, *layout.positions))
