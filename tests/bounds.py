"""The one bound on a kernel's error, and the checks that hold results against it.

u is the unit roundoff of the dtype of the result (2^-24 for float32), w = min(u, 2^-24) that of
the arithmetic a kernel may use for one element, and e = 64 * 2^-53 what a float64 sum of well
conditioned terms may lose (2^-53 becomes the unit of the statistics where a namespace has no
float64). A result may be wrong by at most twice its own rounding, 2 u |result|, and by what no
evaluation in those precisions can avoid:

statistics    mean: e (|mean| + std).  var: e std (std + |mean|), and the square of the mean's
              error. (Looked at by themselves, those of narrower inputs may be wrong by w / 2^14
              in place of e: no rounding of y shows it.) Relative to s = sqrt(var + eps) both
              move x_hat by at most k (1 + |x_hat|), where k = e (|mean| + std) / s.
forward       z is a sum of |gamma x_hat|, |beta|, |residual|, |gamma d|: 2 w for each of them,
              once for rounding its coefficient and once for its place in the sum; and
              |gamma r| k (1 + |x_hat|) from the statistics. y = act(z) multiplies that by the
              activation's slope next to z and adds 4 w times the size of the definition's terms.
dz            dy times the activation's slope. The slope is wrong by curvature * (error of z) and
              4 w times the size of its definition's terms; one product rounds: w |dz|.
              Without an activation dz is dy and exact.
sums          of gamma and beta: every term's own error, and e times the terms' absolute values.
              A sum of exact terms in float64 is right to its final rounding.
dx            = A dz + B (x - mean) + D is a sum of three: 2 w times their absolute values, as
              in z; the two sums in B and D as above, over |S|; and k (1 + |x_hat|) of every term
              that holds x_hat, k of every term over s.

Where results are subnormal, rounding is absolute: the smallest subnormal counts twice too (the
smallest normal number in namespaces that flush subnormals).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

import oracle

LONG = np.longdouble

ROUNDOFF = {"float16": 2.0**-11, "bfloat16": 2.0**-8, "float32": 2.0**-24, "float64": 2.0**-53}
TINY = {"float16": 2.0**-24, "bfloat16": 2.0**-133, "float32": 2.0**-149, "float64": 2.0**-1074}
NORMAL = {"float16": 2.0**-14, "bfloat16": 2.0**-126, "float32": 2.0**-126, "float64": 2.0**-1022}
OVERFLOW = {  # from here on a number rounds to infinity
    "float16": 65520.0,
    "bfloat16": (2 - 2.0**-8) * 2.0**127,
    "float32": (2 - 2.0**-24) * 2.0**127,
    "float64": np.inf,
}

SUM = 64.0


class Bounds:
    """The bound above, evaluated for one forward pass of the oracle and its gradients."""

    def __init__(self, truth, dtype, unit=2.0**-53, flush=False):
        self.t, self.name, self.flush = truth, str(np.dtype(dtype)), flush
        self.w = LONG(min(ROUNDOFF[self.name], 2.0**-24))
        self.e = LONG(0 if truth.given else SUM * unit)
        self.sum_e = LONG(SUM * unit)
        self.statistics_e = np.maximum(self.sum_e, self.w / 2**14 if self.w > 2.0**-53 else 0)
        with np.errstate(all="ignore"):
            self._forward(truth)

    def rounding(self, result, dtype):
        name = str(np.dtype(dtype))
        floor = (NORMAL if self.flush else TINY)[name]
        return 2 * np.maximum(LONG(ROUNDOFF[name]) * np.abs(result), LONG(floor))

    def _forward(self, t):
        self.k = self.e * (np.abs(t.mean) + t.std) / t.s
        if t.given:  # 1/sqrt(var + eps) is itself one float64 evaluation
            self.k = 4 * LONG(2.0**-53) * (1 + np.abs(t.mean) / t.s)
        terms = np.abs(t.gamma * t.r * t.x_hat) + np.abs(t.gamma * t.d)
        terms = terms + np.abs(t.beta) + np.abs(t.residual)
        spread = np.abs(t.gamma * t.r) * self.k * (1 + np.abs(t.x_hat)) + np.abs(t.gamma) * self.k
        subnormal = LONG(TINY[self.name]) + np.abs(t.gamma) * LONG(TINY["float64"]) / t.s
        self.z = 2 * self.w * terms + spread + subnormal
        if t.activation is oracle.ACTIVATIONS[None]:
            self.y_inner = self.z
        else:
            self.z = self.z + self.w * np.abs(t.z)
            a = t.activation
            slope = np.maximum(np.abs(a.slope(t.z - self.z)), np.abs(a.slope(t.z + self.z)))
            slope = np.maximum(slope, np.abs(a.slope(t.z)))
            self.y_inner = slope * self.z + 4 * self.w * a.value_size(t.z)

    def y(self, dtype):
        return self.y_inner_back() + self.rounding(self.t.view.back(self.t.y), dtype)

    def y_inner_back(self):
        return self.t.view.back(self.y_inner)

    def mean(self):
        s, e = self.t.stats, self.statistics_e
        return s.public(e * (np.abs(s.mean) + np.sqrt(s.var))) + LONG(TINY["float64"])

    def var(self):
        s, e = self.t.stats, self.statistics_e
        std, mean = np.sqrt(s.var), np.abs(s.mean)
        bound = e * std * (std + mean) + (e * (mean + std)) ** 2
        return s.public(bound) + LONG(TINY["float64"])

    def gradients(self, g, like):
        """Bounds of dx, residual, gamma and beta; `like` holds the arrays with their dtypes."""
        with np.errstate(all="ignore"):
            return self._gradients(g, like)

    def _gradients(self, g, like):
        t, view, a = self.t, self.t.view, self.t.activation
        dz = np.zeros_like(g.dz)
        if a is not oracle.ACTIVATIONS[None]:
            h = np.maximum(LONG(1e-6), self.z)
            curvature = np.abs(a.slope(t.z + h) - a.slope(t.z - h)) / (2 * h)
            curvature = np.where(g.dy == 0, 0, curvature)
            slope = curvature * self.z + 4 * self.w * a.slope_size(t.z)
            dz = np.abs(g.dy) * slope + self.w * np.abs(g.dz) + LONG(TINY[self.name])
        tiny = LONG(TINY["float64"])
        x_hat = self.k * (1 + np.abs(t.x_hat)) + 2 * tiny * (1 + 1 / t.s)
        out = {}
        if g.residual is not None:
            out["residual"] = view.back(dz) + self.rounding(g.residual, like["x"].dtype)
        if g.beta is not None:
            error = dz + self.sum_e * np.abs(g.dz) + tiny
            out["beta"] = view.gather(error, like["beta"])
            out["beta"] = out["beta"] + self.rounding(g.beta, like["beta"].dtype)
        if g.gamma is not None:
            size = np.abs(t.r * t.x_hat + t.d)
            error = dz * size + np.abs(g.dz) * (np.abs(t.r) * x_hat + self.k)
            error = error + self.sum_e * np.abs(g.dz) * size + tiny
            out["gamma"] = view.gather(error, like["gamma"])
            out["gamma"] = out["gamma"] + self.rounding(g.gamma, like["gamma"].dtype)
        out["x"] = view.back(self._dx(g, dz, x_hat)) + self.rounding(g.x, like["x"].dtype)
        return out

    def _dx(self, g, dz, x_hat):
        t = self.t
        g_error = dz * np.abs(t.gamma * t.r) + np.abs(g.g) * self.k
        mean, var = np.zeros_like(t.x), np.zeros_like(t.x)
        count = np.maximum(t.stats.count, 1)
        for at, box in t.stats.boxes():
            size = np.abs(t.x_hat[box])
            terms = g_error[box] + self.sum_e * np.abs(g.g[box])
            mean[box] = terms.sum() / count[at]
            terms = terms * size + np.abs(g.g[box]) * x_hat[box]
            var[box] = terms.sum() / count[at]
        through_mean = np.where(g.through_mean != 0, mean, 0)
        error, size = g_error + through_mean, np.abs(g.g) + np.abs(g.through_mean)
        if t.sets.scale and not t.given:
            error = error + np.abs(t.x_hat) * np.where(g.through_var != 0, var, 0)
            error = error + x_hat * np.abs(g.through_var)
            size = size + np.abs(t.x_hat * g.through_var)
        tiny = LONG(TINY["float64"]) * (1 + 1 / t.s)
        return (error + (2 * self.w + self.k) * size) / t.s + tiny


@dataclass
class Grads:
    """Gradients put together by a test."""

    x: object = None
    gamma: object = None
    beta: object = None
    residual: object = None


# Checks: every numerical test of the suite goes through these -----------------------------------


def check(name, got, want, bound, dtype=None):
    """got equals want within bound, with the same shape, dtype, NaNs and infinities."""
    got = np.asarray(got)
    assert got.shape == want.shape, f"{name}: shape {got.shape}, expected {want.shape}"
    if dtype is not None:
        assert got.dtype == dtype, f"{name}: dtype {got.dtype}, expected {dtype}"
        overflow = np.abs(want) >= OVERFLOW[str(np.dtype(dtype))]
        want = np.where(overflow, np.copysign(LONG(np.inf), want), want)
    got = got.astype(np.float64).astype(LONG) if got.dtype != LONG else got
    assert np.array_equal(np.isnan(got), np.isnan(want)), (
        f"{name}: NaN where none is, or the reverse"
    )
    finite = np.isfinite(want)
    assert np.array_equal(got[~finite], want[~finite], equal_nan=True), f"{name}: infinities differ"
    error = np.abs(got[finite] - want[finite])
    bound = np.broadcast_to(bound, want.shape)[finite]
    bad = ~(error <= bound)
    if bad.any():
        worst = np.argmax(np.where(bad, error / bound, 0))
        raise AssertionError(
            f"{name}: {bad.sum()} of {bad.size} wrong; worst got {got[finite][worst]!s}, "
            f"expected {want[finite][worst]!s}, error {float(error[worst]):.3g} "
            f"= {float(error[worst] / bound[worst]):.3g} times the bound"
        )


def check_forward(truth, y, statistics, dtype, unit=2.0**-53, flush=False):
    bounds = Bounds(truth, dtype, unit, flush)
    check("y", y, truth.view.back(truth.y), bounds.y(dtype), dtype)
    if statistics is not None:
        s = truth.stats
        check("count", np.broadcast_to(statistics.count, s.shape), s.public(s.count), 0)
        check("mean", statistics.mean, s.public(s.mean), bounds.mean())
        if truth.sets.scale:
            check("var", statistics.var, s.public(s.var), bounds.var())


def check_backward(truth, dy, grads, like, unit=2.0**-53, flush=False):
    """`like` maps x, gamma, beta to the arrays given; a missing gradient must be None."""
    want = truth.backward(dy)
    bounds = Bounds(truth, like["x"].dtype, unit, flush).gradients(want, like)
    for name in ("x", "gamma", "beta", "residual"):
        expected, got = getattr(want, name), getattr(grads, name)
        if expected is None:
            assert got is None, f"d{name} given where there is no {name}"
            continue
        dtype = like.get(name, like["x"]).dtype
        check(f"d{name}", got, expected, bounds[name], dtype)


def check_problem(problem, forward=None, backward=None):
    """Forward and backward of one row, by the given functions or the norm's own."""
    truth = problem.truth
    y, saved = (forward or problem.forward)()
    check_forward(truth, y, saved.statistics, problem.x.dtype)
    grads = (backward or problem.norm.backward)(problem.dy, saved)
    check_backward(truth, problem.dy, grads, likes(problem))
    return y, saved, grads


def likes(problem):
    given = {"x": problem.x, "gamma": problem.gamma, "beta": problem.beta}
    return {name: array for name, array in given.items() if array is not None}
