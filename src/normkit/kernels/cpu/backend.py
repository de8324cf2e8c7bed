"""The compiled kernels as a backend: NumPy arrays, and through a host adapter whatever else lies
in this machine's memory."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Protocol

import numpy as np

from normkit.coefficients import set_slope
from normkit.kernels.call import Array, Call, backpropagate_in_halves
from normkit.kernels.cpu.access import Refusal, Request
from normkit.kernels.cpu.launch import Launcher, launcher
from normkit.kernels.memory import dense_strides

_ITEMSIZE = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}


class Host(Protocol):
    """What the kernels need to know of the arrays that they are given."""

    def address(self, array: Array) -> int:
        """Where the first element lies."""

    def strides(self, array: Array) -> tuple[int, ...]:
        """In elements."""

    def dtype(self, array: Array) -> str:
        """``float16``, ``bfloat16``, ``float32`` or ``float64``."""

    def empty(self, like: Array, strides: tuple[int, ...]) -> Array:
        """Uninitialized, with the shape and dtype of another and these strides in elements."""

    def copy(self, array: Array, strides: tuple[int, ...]) -> Array:
        """A copy with these strides."""

    def overlaps(self, a: Array, b: Array) -> bool:
        """Whether the two may share memory."""

    def assign(self, target: Array, values: Array) -> None:
        """Copy the elements."""

    def parameter(self, values: Array) -> Array:
        """gamma or beta as a NumPy array."""

    def parameter_gradient(self, gradient: Array, parameter: Array) -> Array:
        """A NumPy array in a parameter's library and dtype."""


class CpuBackend:
    """:class:`normkit.kernels.call.Backend` on the compiled kernels."""

    name = "compiled"

    def __init__(self, host: Host) -> None:
        self.host = host

    def namespace(self) -> Any:
        return np

    def statistics_dtype(self, call: Call) -> Any:  # noqa: ARG002 - the protocol's signature
        return np.float64

    def constant(self, values: Array) -> Array:
        return values

    # --- choosing the way -----------------------------------------------------------------------

    def refusal(self, call: Call) -> str | None:
        """Why the compiled kernels do not take the call, its mask aside; None if they do."""
        if 0 in call.layout.shape:
            return "x is empty"
        found = self._way(call)
        return found.reason if isinstance(found, Refusal) else None

    def _launcher(
        self, call: Call, dy: Array, out: Array, strides: tuple[int, ...] | None = None
    ) -> Launcher | Refusal:
        """The launcher of a call, if need be as it would be with all arrays in these strides."""
        host = self.host
        inputs = [array for array in (call.x, call.residual) if array is not None]
        x, *added = [strides or host.strides(array) for array in inputs]
        fresh = out is None or strides is not None
        dtype = host.dtype(call.x)
        request = Request(
            call.layout,
            _ITEMSIZE[dtype],
            call.affine,
            x,
            dense_strides(call.layout.shape, x) if fresh else host.strides(out),
            None if dy is None else strides or host.strides(dy),
            added[0] if added else None,
            not fresh and host.address(out) in [host.address(array) for array in inputs],
        )
        names = (
            None if one is None else one.name for one in (call.activation, call.input_activation)
        )
        return launcher(request, dtype, *names)

    def _way(
        self, call: Call, dy: Array = None, out: Array = None
    ) -> tuple[Launcher, tuple[int, ...] | None] | Refusal:
        """A launcher, and the strides into which arrays must be copied for it, if they must."""
        alone = dy is None and out is None
        if alone and call.prepared is not None:
            return call.prepared
        found = self._launcher(call, dy, out)
        way: tuple[Launcher, tuple[int, ...] | None] | Refusal
        way = found if isinstance(found, Refusal) else (found, None)
        if isinstance(found, Refusal) and found.copy_helps:
            for strides in self._orders(call):
                found = self._launcher(call, dy, None, strides)
                if isinstance(found, Launcher):
                    way = found, strides
                    break
        if alone:
            call.prepared = way
        return way

    def _orders(self, call: Call) -> list[tuple[int, ...]]:
        """Dense memory orders worth a copy: x's own, that of its axes, that of the cube."""
        layout, rank = call.layout, len(call.layout.shape)
        cube = tuple(rank - layout.cube_axes.index(axis) for axis in range(rank))
        likes = (self.host.strides(call.x), tuple(range(rank, 0, -1)), cube)
        return [dense_strides(layout.shape, like) for like in likes]

    def _ready(
        self, call: Call, dy: Array = None, out: Array = None
    ) -> tuple[Call, Array, Launcher]:
        """A call that the kernels take, with copies where arrays lie badly in memory."""
        way = self._way(call, dy, out)
        if isinstance(way, Refusal):  # the engine asks refusal() first
            raise RuntimeError(
                f"normkit chose compiled kernels for a call they refuse: {way.reason}"
            )
        launch, strides = way
        if strides is None:
            return call, dy, launch

        def copied(array: Array) -> Array:
            if array is None or self.host.strides(array) == strides:
                return array
            return self.host.copy(array, strides)

        ready = replace(call, x=copied(call.x), residual=copied(call.residual), prepared=None)
        return ready, copied(dy), launch

    # --- forward --------------------------------------------------------------------------------

    def counts(self, call: Call) -> Any:
        layout = call.layout
        if layout.even:
            return float(layout.set_size)
        return np.array(layout.set_counts(), dtype=np.float64)[:, None, None]

    def moments(self, call: Call) -> tuple[Array, Array]:
        call, _, launch = self._ready(replace(call, residual=None, activation=None, prepared=None))
        return launch.moments(self.host.address(call.x), call.center, call.x)

    def _target(self, call: Call, launch: Launcher, out: Array) -> Array:
        """Where results go: ``out`` if the kernels can write it, else a fresh array."""
        y = launch.output_strides
        if out is not None and self.host.strides(out) == y:
            return out
        return self.host.empty(call.x, y)

    def _writable(self, call: Call, out: Array) -> Array:
        """``out``, unless it shares memory with an input otherwise than element by element."""
        host = self.host
        tangled = out is not None and any(
            host.overlaps(out, array)
            and (host.address(out), host.strides(out)) != (host.address(array), host.strides(array))
            for array in (call.x, call.residual)
            if array is not None
        )
        return None if tangled else out

    def _finish(self, y: Array, out: Array) -> Array:
        if out is None or y is out:
            return y
        self.host.assign(out, y)
        return out

    def _parameters(self, call: Call) -> tuple[Array, Array]:
        parameter = self.host.parameter
        return (
            None if call.gamma is None else parameter(call.gamma),
            None if call.beta is None else parameter(call.beta),
        )

    def _residual(self, call: Call) -> int:
        return 0 if call.residual is None else self.host.address(call.residual)

    def normalize(self, call: Call, out: Array) -> tuple[Array, Array, Array]:
        into = self._writable(call, out)
        ready, _, launch = self._ready(call, out=into)
        if not launch.access.fused:
            mean, m2 = self.moments(call)
            slope = set_slope(
                np, self._count_array(call, m2), m2, call.eps, call.center, call.scale
            )
            return self.apply(call, mean, slope, np.zeros_like(slope), out), mean, m2
        host = self.host
        y = self._target(ready, launch, into)
        mean, m2 = launch.normalize(
            host.address(ready.x), self._residual(ready), host.address(y),
            *self._parameters(call), call.eps, call.center, call.scale, (ready, y),
        )  # fmt: skip
        return self._finish(y, out), mean, m2

    def _count_array(self, call: Call, like: Array) -> Array:
        return np.broadcast_to(np.asarray(self.counts(call)), like.shape)

    def apply(self, call: Call, mean: Array, slope: Array, offset: Array, out: Array) -> Array:
        into = self._writable(call, out)
        call, _, launch = self._ready(call, out=into)
        y = self._target(call, launch, into)
        launch.apply(
            self.host.address(call.x), self._residual(call), self.host.address(y),
            *self._parameters(call), mean, slope, offset, (call, y),
        )  # fmt: skip
        return self._finish(y, out)

    # --- backward -------------------------------------------------------------------------------

    def _gradient_targets(self, call: Call, launch: Launcher) -> tuple[Array, Array, int]:
        """Fresh arrays for dx and, behind an activation, the residual's gradient."""
        strides = launch.output_strides
        dx = self.host.empty(call.x, strides)
        if call.residual is None or call.activation is None:
            return dx, None, 0
        dz = self.host.empty(call.x, strides)
        return dx, dz, self.host.address(dz)

    def backpropagate(
        self, call: Call, dy: Array, mean: Array, m2: Array
    ) -> tuple[Array, Array, Array, Array]:
        ready, ready_dy, launch = self._ready(call, dy)
        if not launch.access.fused:
            return backpropagate_in_halves(self, call, dy, mean, m2)
        dx, dz, dz_address = self._gradient_targets(ready, launch)
        host = self.host
        dgamma, dbeta = launch.backpropagate(
            host.address(ready.x), host.address(ready_dy), self._residual(ready), host.address(dx),
            dz_address, *self._parameters(call), np.ascontiguousarray(mean),
            np.ascontiguousarray(m2), call.eps, call.center, call.scale,
            (ready, ready_dy, dx, dz),
        )  # fmt: skip
        return dx, *self._narrowed(call, dgamma, dbeta), self._residual_gradient(call, dy, dz)

    def _narrowed(self, call: Call, dgamma: Array, dbeta: Array) -> tuple[Array, Array]:
        """Gradients in the shapes and dtypes of gamma and beta; None for what is absent."""

        def narrowed(values: Array, gradient: Array) -> Array:
            if values is None:
                return None
            gradient = call.layout.narrow_affine(np, gradient, tuple(values.shape))
            return self.host.parameter_gradient(gradient, values)

        return narrowed(call.gamma, dgamma), narrowed(call.beta, dbeta)

    def _residual_gradient(self, call: Call, dy: Array, dz: Array) -> Array:
        if call.residual is None:
            return None
        return dy if call.activation is None else dz

    def gradient_sums(
        self, call: Call, dy: Array, mean: Array, slope: Array, offset: Array
    ) -> tuple[Array, Array, Array, Array]:
        call, dy, launch = self._ready(call, dy)
        *sums, dgamma, dbeta = launch.gradient_sums(
            self.host.address(call.x), self.host.address(dy), self._residual(call),
            *self._parameters(call), mean, slope, offset, (call, dy),
        )  # fmt: skip
        return sums[0], sums[1], *self._narrowed(call, dgamma, dbeta)

    def gradient_apply(
        self, call: Call, dy: Array, coefficients: tuple[Array, Array, Array, Array, Array]
    ) -> tuple[Array, Array]:
        ready, ready_dy, launch = self._ready(call, dy)
        dx, dz, dz_address = self._gradient_targets(ready, launch)
        host = self.host
        launch.gradient_apply(
            host.address(ready.x), host.address(ready_dy), self._residual(ready), host.address(dx),
            dz_address, *self._parameters(call), coefficients, (ready, ready_dy, dx, dz),
        )  # fmt: skip
        return dx, self._residual_gradient(call, dy, dz)
