"""Shapes, axes, strides, dtypes and norms drawn at random, against the oracle."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

import bounds
import cases
import normkit as nk
import oracle

PIECES = st.sampled_from(["all", 1, 2, 3])


@st.composite
def norms(draw, channels):
    samples = draw(PIECES)
    divisors = [d for d in range(1, channels + 1) if channels % d == 0]
    parts = draw(st.sampled_from(["all", 1, *(("split", d) for d in divisors)]))
    positions = draw(st.sampled_from(["all", 1]))
    center, eps = draw(st.booleans()), draw(st.sampled_from([1e-5, 1e-3, 0.1]))
    sets = oracle.Sets(samples, parts, positions, center=center, eps=eps)
    norm = nk.Norm(
        samples=nk.ALL if samples == "all" else samples,
        channels=nk.Split(parts[1])
        if isinstance(parts, tuple)
        else (nk.ALL if parts == "all" else parts),
        positions=nk.ALL if positions == "all" else 1,
        center=center,
        eps=eps,
    )
    return norm, sets


@st.composite
def problems(draw):
    ndim = draw(st.integers(2, 5))
    shape = tuple(draw(st.lists(st.integers(1, 7), min_size=ndim, max_size=ndim)))
    axis = draw(st.integers(-ndim, ndim - 1))
    norm, sets = draw(norms(shape[axis]))
    dtype = cases.dtype_of(draw(st.sampled_from(cases.DTYPES)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    kind = draw(st.sampled_from(cases.VALUES))
    memory = draw(st.sampled_from(cases.MEMORY))
    order = draw(st.permutations(range(ndim)))
    x, dy, residual = (cases.values(k, shape, dtype, rng) for k in (kind, "normal", "normal"))
    x = np.ascontiguousarray(x.transpose(order)).transpose(np.argsort(order))  # any stride order
    x, dy = cases.arrange(x, memory), cases.arrange(dy, draw(st.sampled_from(cases.MEMORY)))
    kinds = ["none", "channel", "sample", "element"]
    if cases.affine_shape("sample", shape, axis) == cases.affine_shape("element", shape, axis):
        kinds = kinds[:2]  # such a parameter could be either
    gamma, beta = (
        cases.affine(draw(st.sampled_from(kinds)), shape, axis, dtype, rng) for _ in range(2)
    )
    options = {"axis": axis, "residual": residual if draw(st.booleans()) else None}
    if draw(st.booleans()):
        without = shape[: axis % ndim] + shape[axis % ndim + 1 :]
        options["mask"] = rng.random(without) < 0.8
    return Drawn(norm=norm, sets=sets, x=x, gamma=gamma, beta=beta, dy=dy, options=options)


class Drawn(SimpleNamespace):
    """One problem, shown by shapes and strides when it fails."""

    def __repr__(self):
        arrays = {"x": self.x, "gamma": self.gamma, "beta": self.beta, "dy": self.dy}
        arrays |= {k: v for k, v in self.options.items() if k != "axis"}
        shown = [f"axis={self.options['axis']}"]
        for name, a in arrays.items():
            if a is not None:
                shown.append(f"{name}: {a.shape} {a.dtype} strides {a.strides}")
        return f"{self.norm}, {', '.join(shown)}"


@settings(max_examples=250)
@given(problems())
def test_any_norm_on_any_array(drawn):
    norm, x, gamma, beta, options = drawn.norm, drawn.x, drawn.gamma, drawn.beta, drawn.options
    truth = oracle.Oracle(drawn.sets, x, gamma, beta, **options)
    y, saved = norm.forward(x, gamma, beta, **options)
    bounds.check_forward(truth, y, saved.statistics, x.dtype)
    like = {k: v for k, v in (("x", x), ("gamma", gamma), ("beta", beta)) if v is not None}
    bounds.check_backward(truth, drawn.dy, norm.backward(drawn.dy, saved), like)
