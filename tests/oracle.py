"""The truth that every kernel is measured against: plain loops over the sets, in long double.

Nothing here imports the package. A norm is described by its own small record (`Sets`), an input is
viewed as a cube of (samples, channels, positions), and statistics and gradient sums are taken box
by box exactly as the definition reads:

    x_hat = (x - mean) / sqrt(var + eps)             mean and var of the valid elements of the box
    z     = gamma * (r * x_hat + d) + beta + residual        (r = 1 and d = 0 without renorm)
    y     = activation(z)

Backward is the derivative of that, with r, d and given statistics held constant. An element that a
mask leaves out has no part in the statistics, but its output still depends on them. Where a centred
set has fewer than two valid elements there is no spread to divide by: x_hat and dx are 0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

LONG = np.longdouble


@dataclass(frozen=True)
class Sets:
    """A norm: how long each side of a set is ("all", a number, or ("split", parts))."""

    samples: object = "all"
    channels: object = 1
    positions: object = "all"
    center: bool = True
    scale: bool = True
    eps: float = 1e-5


def pieces(length, piece):
    if piece == "all":
        return [slice(0, length)]
    size = length // piece[1] if isinstance(piece, tuple) else piece
    return [slice(start, min(start + size, length)) for start in range(0, length, size)]


class View:
    """x as a cube of (samples, channels, positions), and the ways there and back."""

    def __init__(self, x, axis):
        self.shape, self.axis = x.shape, axis % x.ndim
        self.samples_axis = 1 if self.axis == 0 else 0
        rest = [size for i, size in enumerate(x.shape) if i != self.axis]
        self.n, self.c, self.positions = rest[0], x.shape[self.axis], tuple(rest[1:])
        self.cube_shape = (self.n, self.c, math.prod(self.positions))

    def cube(self, a):
        full = np.broadcast_to(a, self.shape)
        if full.dtype != bool:
            full = full.astype(np.float64).astype(LONG) if full.dtype != LONG else full
        return np.moveaxis(full, self.axis, 1).reshape(self.cube_shape)

    def back(self, cube, samples=None):
        n = self.n if samples is None else samples
        return np.moveaxis(cube.reshape(n, self.c, *self.positions), 1, self.axis)

    def affine_kind(self, p):
        element = self.shape[: self.samples_axis] + self.shape[self.samples_axis + 1 :]
        if p.shape == (self.c,):
            return "channel"
        if p.shape == (self.n, self.c):
            return "sample"
        if p.shape == element:
            return "element"
        raise ValueError(f"affine parameter of shape {p.shape} for x of shape {self.shape}")

    def affine(self, p, default):
        """gamma or beta, spread over the cube."""
        if p is None:
            return np.full(self.cube_shape, default, LONG)
        kind, p = self.affine_kind(p), p.astype(np.float64).astype(LONG)
        if kind == "element":
            return self.cube(np.expand_dims(p, self.samples_axis))
        p = p[None, :, None] if kind == "channel" else p[:, :, None]
        return np.broadcast_to(p, self.cube_shape)

    def gather(self, terms, p):
        """Sums terms over the elements that share one entry of the affine parameter p."""
        kind = self.affine_kind(p)
        if kind == "channel":
            return terms.sum(axis=(0, 2))
        if kind == "sample":
            return terms.sum(axis=2)
        total = self.back(terms.sum(axis=0)[None], samples=1)
        return total.squeeze(self.samples_axis)

    def mask(self, mask, lengths):
        valid = np.ones(self.cube_shape, bool)
        if mask is not None:
            mask = np.asarray(mask)
            if mask.ndim == len(self.shape) - 1:
                mask = np.expand_dims(mask, self.axis)
            valid &= self.cube(mask)
        if lengths is not None:
            inside = np.arange(self.positions[0])[None, :] < np.asarray(lengths)[:, None]
            inside = inside.reshape(self.n, self.positions[0], *(1,) * (len(self.positions) - 1))
            inside = np.broadcast_to(inside, (self.n, *self.positions))
            valid &= self.cube(np.expand_dims(inside, self.axis))
        return valid


class Statistics:
    """Count, mean and biased variance of every box, as arrays of (sets, sets, sets)."""

    def __init__(self, sets, view):
        self.cuts = [
            pieces(size, piece)
            for size, piece in zip(
                view.cube_shape, (sets.samples, sets.channels, sets.positions), strict=True
            )
        ]
        self.grid = tuple(len(cut) for cut in self.cuts)
        self.count, self.mean, self.var = (np.zeros(self.grid, LONG) for _ in range(3))
        keep = () if sets.samples == "all" else (self.grid[0],)
        keep += () if sets.channels == "all" else (self.grid[1],)
        keep += () if sets.positions == "all" else view.positions
        self.shape = keep

    def boxes(self):
        samples, channels, positions = self.cuts
        for i, ns in enumerate(samples):
            for j, cs in enumerate(channels):
                for k, ls in enumerate(positions):
                    yield (i, j, k), (ns, cs, ls)

    def take(self, sets, x, valid):
        for at, box in self.boxes():
            values = x[box][valid[box]]
            if values.size == 0:
                continue
            self.count[at] = values.size
            self.mean[at] = values.sum() / values.size if sets.center else 0
            self.var[at] = ((values - self.mean[at]) ** 2).sum() / values.size

    def give(self, mean, var):
        self.mean = np.asarray(mean, np.float64).astype(LONG).reshape(self.grid)
        self.var = np.asarray(var, np.float64).astype(LONG).reshape(self.grid)
        self.count[...] = 1

    def spread(self, per_set, cube_shape):
        out = np.zeros(cube_shape, LONG)
        for at, box in self.boxes():
            out[box] = per_set[at]
        return out

    def public(self, per_set):
        return per_set.reshape(self.shape)


class Oracle:
    """One forward pass; `backward(dy)` gives the gradients. Cubes are kept for error bounds."""

    def __init__(
        self,
        sets,
        x,
        gamma=None,
        beta=None,
        axis=1,
        mask=None,
        lengths=None,
        residual=None,
        activation=None,
        statistics=None,
        renorm=None,
    ):
        with np.errstate(all="ignore"):
            self._forward(
                sets, x, gamma, beta, axis, mask, lengths, residual, activation, statistics, renorm
            )

    def _forward(
        self, sets, x, gamma, beta, axis, mask, lengths, residual, activation, statistics, renorm
    ):
        self.sets, self.given = sets, statistics is not None
        self.gamma_like, self.beta_like, self.has_residual = gamma, beta, residual is not None
        view = self.view = View(x, axis)
        self.x = view.cube(x)
        self.valid = view.mask(mask, lengths)
        self.stats = Statistics(sets, view)
        if self.given:
            self.stats.give(*statistics)
        else:
            self.stats.take(sets, self.x, self.valid)
        self.deviation = np.sqrt(self.stats.var + LONG(sets.eps))
        if not sets.scale:
            self.deviation = np.ones_like(self.deviation)

        self.mean = self.spread(self.stats.mean)
        self.std = self.spread(np.sqrt(self.stats.var))
        self.s = self.spread(self.deviation)
        least = 0 if self.given else (2 if sets.center else 1)
        self.too_few = self.spread(self.stats.count) < least
        self.x_hat = np.where(self.too_few, 0, (self.x - self.mean) / self.s)
        self.r, self.d = np.ones_like(self.x), np.zeros_like(self.x)
        if renorm is not None:
            self.renorm(**renorm)
        self.gamma = view.affine(gamma, 1)
        self.beta = view.affine(beta, 0)
        self.residual = np.zeros_like(self.x) if residual is None else view.cube(residual)
        self.z = self.gamma * (self.r * self.x_hat + self.d) + self.beta + self.residual
        self.activation = ACTIVATIONS[activation]
        self.y = self.activation.value(self.z)

    def spread(self, per_set):
        return self.stats.spread(per_set, self.view.cube_shape)

    def renorm(self, mean, var, r_max=1.0, d_max=0.0):
        running = np.sqrt(np.asarray(var, LONG).reshape(self.stats.grid) + LONG(self.sets.eps))
        shift = self.stats.mean - np.asarray(mean, LONG).reshape(self.stats.grid)
        r = np.clip(self.deviation / running, LONG(1) / LONG(r_max), LONG(r_max))
        self.r, self.d = self.spread(r), self.spread(np.clip(shift / running, -d_max, d_max))

    def backward(self, dy):
        with np.errstate(all="ignore"):
            return self._backward(dy)

    def _backward(self, dy):
        view, sets = self.view, self.sets
        out = Gradients()
        out.dy = view.cube(dy)
        out.dz = out.dy * self.activation.slope(self.z)
        out.g = out.dz * self.gamma * self.r  # the gradient of x_hat
        out.sum_g, out.sum_gx = np.zeros(self.stats.grid, LONG), np.zeros(self.stats.grid, LONG)
        for at, box in self.stats.boxes():
            out.sum_g[at] = out.g[box].sum()
            out.sum_gx[at] = (out.g[box] * self.x_hat[box]).sum()
        count = np.maximum(self.stats.count, 1)
        out.through_mean = np.where(self.valid, self.spread(out.sum_g / count), 0)
        out.through_var = np.where(self.valid, self.spread(out.sum_gx / count), 0)
        dx = out.g
        if self.given or not sets.center:
            out.through_mean = np.zeros_like(self.x)
        else:
            dx = dx - out.through_mean
        if self.given or not sets.scale:
            out.through_var = np.zeros_like(self.x)
        else:
            dx = dx - self.x_hat * out.through_var
        dx = dx / self.s
        dx = np.where(self.too_few, 0, dx)
        out.x = view.back(dx)
        out.residual = view.back(out.dz) if self.has_residual else None
        affine = self.r * self.x_hat + self.d
        out.gamma = out.beta = None
        if self.gamma_like is not None:
            out.gamma = view.gather(out.dz * affine, self.gamma_like)
        if self.beta_like is not None:
            out.beta = view.gather(out.dz, self.beta_like)
        return out


class Gradients:
    """x, gamma, beta, residual as the caller sees them; the cubes dz and g; the sums by set."""


# Activations ------------------------------------------------------------------------------------


def erf(z):
    """erf by the series 2/sqrt(pi) exp(-z^2) sum 2^n z^(2n+1) / (2n+1)!!, all terms of one sign."""
    z = np.asarray(z, LONG)
    far = np.abs(z) > 7
    near = np.where(far, 0, z)
    term = total = near
    for n in range(1, 240):
        term = term * (2 * near * near) / (2 * n + 1)
        total = total + term
        if not np.any(np.abs(term) > 1e-22 * np.abs(total)):
            break
    return np.where(far, np.sign(z), 2 / np.sqrt(PI) * np.exp(-near * near) * total)


PI = LONG("3.14159265358979323846264338327950288")
ROOT_2 = np.sqrt(LONG(2))


def sigmoid(z):
    e = np.exp(-np.abs(z))
    return np.where(z >= 0, 1 / (1 + e), e / (1 + e))


def normal_cdf(z):
    return (1 + erf(z / ROOT_2)) / 2


def normal_pdf(z):
    return np.exp(-z * z / 2) / np.sqrt(2 * PI)


def inner(z):
    return np.sqrt(2 / PI) * (z + LONG("0.044715") * z**3)


def inner_slope(z):
    return np.sqrt(2 / PI) * (1 + 3 * LONG("0.044715") * z * z)


def gelu_tanh_slope(z):
    t = np.tanh(inner(z))
    tail = np.where(np.abs(t) == 1, 0, (1 - t * t) * inner_slope(z) * z)
    return (1 + t + tail) / 2


def hardswish_slope(z):
    return np.where(z <= -3, 0, np.where(z >= 3, 1, (2 * z + 3) / 6))


@dataclass(frozen=True)
class Activation:
    """value, slope, and the sizes of what is added up in their definitions.

    `value_size` and `slope_size` are the definitions with every subtraction made an addition of
    absolute values: what an evaluation of the definition in floating point may be wrong by, in
    units of its rounding. `kinks` are where the slope jumps.
    """

    value: object
    slope: object
    value_size: object
    slope_size: object
    kinks: tuple = ()


def _relu(z):
    return np.where(z > 0, z, np.where(np.isnan(z), z, 0))


def _leaky(z):
    return np.where(z > 0, z, LEAK * z)


def _step(low):
    return lambda z: np.where(z > 0, 1, np.where(np.isnan(z), z, low)).astype(LONG)


def _hardswish(z):
    return z * np.clip(z + 3, 0, 6) / 6


def _zero(z):
    return np.zeros_like(z)


LEAK = LONG("0.01")

ACTIVATIONS = {
    None: Activation(lambda z: z, np.ones_like, _zero, _zero),
    "relu": Activation(_relu, _step(0), _zero, _zero, (0,)),
    "leaky_relu": Activation(
        _leaky, _step(LEAK), lambda z: np.abs(_leaky(z)), lambda z: _step(LEAK)(z), (0,)
    ),
    "silu": Activation(
        lambda z: z * sigmoid(z),
        lambda z: sigmoid(z) * (1 + z * sigmoid(-z)),
        lambda z: np.abs(z) * sigmoid(z),
        lambda z: sigmoid(z) * (1 + np.abs(z)),
    ),
    "gelu": Activation(
        lambda z: z * normal_cdf(z),
        lambda z: normal_cdf(z) + z * normal_pdf(z),
        lambda z: np.abs(z) * (1 + np.abs(erf(z / ROOT_2))) / 2,
        lambda z: (1 + np.abs(erf(z / ROOT_2))) / 2 + np.abs(z) * normal_pdf(z),
    ),
    "gelu_tanh": Activation(
        lambda z: z * (1 + np.tanh(inner(z))) / 2,
        gelu_tanh_slope,
        lambda z: np.abs(z) * (1 + np.abs(np.tanh(inner(z)))) / 2,
        lambda z: (
            (1 + np.abs(np.tanh(inner(z)))) / 2
            + np.abs(z) * inner_slope(z) * (1 + np.tanh(inner(z)) ** 2) / 2
        ),
    ),
    "sigmoid": Activation(
        sigmoid, lambda z: sigmoid(z) * sigmoid(-z), sigmoid, lambda z: sigmoid(z)
    ),
    "tanh": Activation(
        np.tanh,
        lambda z: 1 - np.tanh(z) ** 2,
        lambda z: np.abs(np.tanh(z)),
        lambda z: 1 + np.tanh(z) ** 2,
    ),
    "hardswish": Activation(
        _hardswish,
        hardswish_slope,
        lambda z: np.abs(z) * np.clip(np.abs(z) + 3, 0, 6) / 6,
        lambda z: np.where(np.abs(z) < 3, (2 * np.abs(z) + 3) / 6, hardswish_slope(z)),
        (-3, 3),
    ),
}
