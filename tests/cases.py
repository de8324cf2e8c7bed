"""The table of cases: norms, inputs, rows that cover every pair of options, and their arrays."""

from __future__ import annotations

import itertools
import zlib
from dataclasses import dataclass, replace

import numpy as np

import bounds
import normkit as nk
import oracle

try:
    import ml_dtypes

    BF16 = np.dtype(ml_dtypes.bfloat16)
    DTYPES = ("float16", "bfloat16", "float32", "float64")
except ImportError:  # bfloat16 rows need its NumPy type
    DTYPES = ("float16", "float32", "float64")


def dtype_of(name):
    return BF16 if str(name) == "bfloat16" else np.dtype(name)


# Norms ------------------------------------------------------------------------------------------


def groups(c):
    return 2 if c % 2 == 0 else 1


# name: the package's value for c channels, the oracle's record for c channels
NORMS = {
    "batch": (lambda _: nk.BatchNorm(), lambda _: oracle.Sets()),
    "ghost": (lambda _: nk.GhostBatchNorm(2), lambda _: oracle.Sets(samples=2)),
    "layer": (lambda _: nk.LayerNorm(), lambda _: oracle.Sets(1, "all", "all")),
    "tokens": (lambda _: nk.TokenLayerNorm(), lambda _: oracle.Sets(1, "all", 1)),
    "rms": (lambda _: nk.RMSNorm(), lambda _: oracle.Sets(1, "all", 1, center=False, eps=1e-6)),
    "instance": (lambda _: nk.InstanceNorm(), lambda _: oracle.Sets(1, 1, "all")),
    "group": (
        lambda c: nk.GroupNorm(groups(c)),
        lambda c: oracle.Sets(1, ("split", groups(c)), "all"),
    ),
    "batch-group": (
        lambda c: nk.BatchGroupNorm(2, groups(c)),
        lambda c: oracle.Sets(2, ("split", groups(c)), "all"),
    ),
    "mean-only": (lambda _: nk.MeanOnlyBatchNorm(), lambda _: oracle.Sets(scale=False)),
    "batch-1e-3": (lambda _: nk.BatchNorm(eps=1e-3), lambda _: oracle.Sets(eps=1e-3)),
    "general": (  # a set none of the names has: every sample, every channel, one position
        lambda _: nk.Norm(samples=nk.ALL, channels=nk.ALL, positions=1, eps=1e-4),
        lambda _: oracle.Sets("all", "all", 1, eps=1e-4),
    ),
    "general-rms": (
        lambda _: nk.Norm(samples=3, channels=1, positions=nk.ALL, center=False),
        lambda _: oracle.Sets(3, 1, "all", center=False),
    ),
}

# Inputs -----------------------------------------------------------------------------------------

# (shape, axis): channels first and last, 2 to 5 dimensions, odd axes, long rows, short planes
SHAPES = (
    ((5, 6), 1),
    ((64, 130), 1),
    ((33, 768), -1),
    ((4, 6, 7), 1),
    ((4, 7, 6), -1),
    ((6, 5, 4), 0),
    ((3, 4, 5, 7), 1),
    ((3, 5, 7, 4), -1),
    ((3, 5, 4, 7), 2),
    ((5, 8, 33, 35), 1),
    ((4, 19, 23, 16), 3),
    ((2, 3, 40, 41, 2), 1),
    ((2, 3, 4, 5, 6), -1),
    ((5, 1, 9), 1),
    ((1, 6, 4, 4), 1),
    ((3, 4, 1, 1), 1),
    ((1, 6), 1),
    ((2, 4, 2500), 1),
    ((300, 4, 7, 7), 1),
)

VALUES = (
    "normal",
    "offset",
    "outlier",
    "outlier-first",
    "constant",
    "constant-but-one",
    "denormal",
    "zeros",
    "wide",
)

MEMORY = ("plain", "strided", "reversed", "fortran", "transposed", "read-only", "offset-view")


def seed_of(*parts):
    return np.random.default_rng(zlib.crc32(repr(parts).encode()))


def values(kind, shape, dtype, rng):
    """Random input of one adversarial kind, rounded to dtype."""
    name = str(np.dtype(dtype))
    a = rng.standard_normal(shape)
    big = 1e8 if name not in ("float16",) else 3e4
    if kind == "offset":
        a = a + 1e4
    elif kind in ("outlier", "outlier-first") and a.size:
        at = 0 if kind == "outlier-first" else a.size // 2
        a.reshape(-1)[at] = big
    elif kind == "constant":
        a = np.full(shape, 3.3)
    elif kind == "constant-but-one" and a.size:
        a = np.full(shape, -7.1)
        a.reshape(-1)[-1] = 2.0
    elif kind == "denormal":
        a = np.round(a * 50) * bounds.TINY[name]
    elif kind == "zeros":
        a = np.zeros(shape)
    elif kind == "wide":  # eight decades in one set
        a = a * 10.0 ** rng.uniform(-5, 3, shape)
    elif kind in ("nan", "inf", "-inf") and a.size:
        a.reshape(-1)[a.size // 2] = float(kind)
    return a.astype(dtype)


def arrange(a, memory):
    """The same values in another place in memory."""
    if memory == "strided":
        wide = np.full((*a.shape[:-1], 2 * a.shape[-1]), 77, a.dtype)
        wide[..., ::2] = a
        return wide[..., ::2]
    if memory == "reversed":
        backwards = (slice(None, None, -1),) * a.ndim
        return a[backwards].copy()[backwards]
    if memory == "fortran":
        return np.asfortranarray(a)
    if memory == "transposed" and a.ndim > 2:  # channels last under a channels-first face
        return np.moveaxis(np.ascontiguousarray(np.moveaxis(a, 1, -1)), -1, 1)
    if memory == "read-only":
        a = a.copy()
        a.setflags(write=False)
        return a
    if memory == "offset-view":  # starts one element into its buffer: rows are not aligned
        flat = np.empty(a.size + 1, a.dtype)
        flat[1:] = a.reshape(-1)
        return flat[1:].reshape(a.shape)
    return a


def affine_shape(kind, shape, axis):
    """Of gamma or beta: none, channel (C,), sample (N, C) or element (x without samples)."""
    axis = axis % len(shape)
    samples_axis = 1 if axis == 0 else 0
    return {
        "none": None,
        "channel": (shape[axis],),
        "sample": (shape[samples_axis], shape[axis]),
        "element": shape[:samples_axis] + shape[samples_axis + 1 :],
    }[kind]


def affine(kind, shape, axis, dtype, rng):
    """Random gamma or beta of a kind."""
    size = affine_shape(kind, shape, axis)
    if size is None:
        return None
    return (rng.standard_normal(size) + rng.choice([-1, 1], size) * 0.3).astype(dtype)


# Rows -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    norm: str = "batch"
    shape: tuple = ((4, 6, 7), 1)
    dtype: str = "float32"
    values: str = "normal"
    memory: str = "plain"
    gamma: str = "channel"
    beta: str = "same"  # as gamma; another kind is a mixture
    affine_dtype: str = "same"
    mask: str = "none"
    residual: bool = False
    activation: str | None = None

    def __str__(self):
        shape, axis = self.shape
        parts = [self.norm, "x".join(map(str, shape)), f"axis{axis}", self.dtype, self.values]
        parts += [self.memory, f"gamma={self.gamma}", f"beta={self.beta}", self.affine_dtype]
        parts += [f"mask={self.mask}"] * (self.mask != "none") + ["residual"] * self.residual
        return "-".join([*parts, str(self.activation or "")]).rstrip("-")


def pairwise(**factors):
    """Rows in which every two values of every two factors meet at least once (greedy, fixed)."""
    names = list(factors)
    pairs = {
        (i, a, j, b)
        for i, j in itertools.combinations(range(len(names)), 2)
        for a in range(len(factors[names[i]]))
        for b in range(len(factors[names[j]]))
    }
    rows, rng = [], np.random.default_rng(0)
    while pairs:
        best = ()
        for _ in range(12):
            i, a, j, b = min(pairs)
            row = {i: a, j: b}
            for k in rng.permutation(len(names)).tolist():
                if k not in row:
                    row[k] = max(
                        rng.permutation(len(factors[names[k]])).tolist(),
                        key=lambda v: sum(pair_of(k, v, m, row[m]) in pairs for m in row),
                    )
            met = {pair_of(i, row[i], j, row[j]) for i, j in itertools.combinations(row, 2)} & pairs
            if len(met) > len(best):
                best, chosen = met, row
        pairs -= best
        rows.append(Row(**{name: factors[name][chosen[i]] for i, name in enumerate(names)}))
    return rows


def pair_of(i, a, j, b):
    return (i, a, j, b) if i < j else (j, b, i, a)


PLAIN_ROWS = pairwise(
    norm=tuple(NORMS),
    shape=SHAPES,
    dtype=DTYPES,
    values=VALUES,
    memory=MEMORY,
    gamma=("channel", "none", "sample", "element"),
    beta=("same", "none", "channel", "element"),
    affine_dtype=("same", "float32"),
)

# Sets of many elements, where sums that lose a little at each step have lost much at the end
LARGE_ROWS = [
    Row(norm, shape, dtype, values)
    for norm, shape in (
        ("batch", ((6, 5, 70, 71), 1)),
        ("batch", ((6, 70, 71, 5), -1)),
        ("batch", ((30000, 5), 1)),
        ("layer", ((2, 5, 70, 71), 1)),
        ("tokens", ((3, 30000), -1)),
        ("tokens", ((2, 3000, 5), 1)),
        ("group", ((2, 70, 71, 6), -1)),
    )
    for dtype, values in (
        ("float64", "offset"),
        ("float64", "outlier-first"),
        ("float32", "outlier"),
        ("float16", "offset"),
    )
]

_OPTIONS = {
    "norm": tuple(NORMS),
    "shape": (
        ((5, 6), 1),
        ((3, 4, 5, 7), 1),
        ((3, 5, 7, 4), -1),
        ((4, 9, 6), -1),
        ((5, 8, 33, 35), 1),
        ((3, 5, 4, 7), 2),
    ),
    "memory": ("plain", "strided", "transposed"),
    "gamma": ("channel", "none", "sample", "element"),
}
_MASKS = ("positions", "full", "lengths", "column", "empties")
MASK_ROWS = pairwise(
    **_OPTIONS,
    mask=_MASKS,
    dtype=DTYPES,
    residual=(False, True),
    activation=tuple(oracle.ACTIVATIONS),
)
# Without a mask every epilogue is two kernels to compile, so not all of them meet all dtypes here;
# test_activations has each of them.
EPILOGUE_ROWS = [
    replace(row, residual=True) for row in pairwise(**_OPTIONS, activation=(None, "silu"))
]
EPILOGUE_ROWS += [
    Row("batch", ((3, 5, 7, 4), -1), dtype, residual=True, activation="relu")
    for dtype in DTYPES
    if dtype.endswith("16")
]
OPTION_ROWS = MASK_ROWS + EPILOGUE_ROWS


class Problem:
    """The arrays of a row, all fixed by the row itself: x, gamma, beta, residual, dy, options."""

    def __init__(self, row):
        self.row, (self.shape, self.axis) = row, row.shape
        rng = seed_of(row)
        dtype = dtype_of(row.dtype)
        affine_dtype = dtype if row.affine_dtype == "same" else dtype_of(row.affine_dtype)
        self.channels = self.shape[self.axis]
        self.norm, self.sets = (make(self.channels) for make in NORMS[row.norm])
        self.x = arrange(values(row.values, self.shape, dtype, rng), row.memory)
        self.gamma = affine(row.gamma, self.shape, self.axis, affine_dtype, rng)
        beta = row.gamma if row.beta == "same" else row.beta
        self.beta = affine(beta, self.shape, self.axis, affine_dtype, rng)
        self.dy = arrange(values("normal", self.shape, dtype, rng), row.memory)
        residual = values("normal", self.shape, dtype, rng) if row.residual else None
        self.options = {"axis": self.axis, "residual": residual, "activation": row.activation}
        self.options |= masks(row.mask, self.shape, self.axis, rng)
        self._truth = None

    @property
    def truth(self):
        if self._truth is None:
            self._truth = oracle.Oracle(self.sets, self.x, self.gamma, self.beta, **self.options)
            self.dy = quiet_kinks(self._truth, self.dy)
        return self._truth

    def forward(self, **more):
        return self.norm.forward(self.x, self.gamma, self.beta, **self.options, **more)


def masks(kind, shape, axis, rng):
    """mask= or lengths= of a kind; a set that loses all its elements only under "empties"."""
    axis = axis % len(shape)
    without = shape[:axis] + shape[axis + 1 :]
    if kind == "positions":
        return {"mask": rng.random(without) < 0.7}
    if kind == "full":
        return {"mask": rng.random(shape) < 0.7}
    if kind == "column":  # broadcasts along the last axis
        return {"mask": rng.random((*shape[:-1], 1)) < 0.7}
    if kind == "empties":
        mask = rng.random(without) < 0.7
        mask[0] = False
        return {"mask": mask}
    if kind == "lengths" and len(shape) > 2:
        return {"lengths": rng.integers(1, without[1] + 1, without[0])}
    return {}


def quiet_kinks(truth, dy):
    """dy with zeros where z is so near a kink of the activation that its side is a rounding's."""
    near = np.zeros(truth.z.shape, bool)
    for kink in truth.activation.kinks:
        near |= np.abs(truth.z - kink) < 1e-4
    dy = dy.copy()
    dy[truth.view.back(near)] = 0
    return dy
