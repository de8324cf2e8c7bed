"""The tables of benchmark cases: norms, layers, the price of a call, and networks.

``benchmarks/`` times these rows; ``tests/test_benchmark.py`` checks, at reduced sizes, that what is
timed is also right. The shape is always written channels first, (N, C, *positions), or (rows,
width) for norms over tokens; ``layout`` says how it lies in memory.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

ITEMSIZE = {"float32": 4, "bfloat16": 2}
SHORT = {"float32": "f32", "bfloat16": "bf16"}
MB = 1_000_000


@dataclass(frozen=True)
class Case:
    """One row: which norm, on what, in which memory layout and dtype."""

    norm: str  # batch, layer, token_layer, rms, instance, group; or a layer's or network's name
    shape: tuple[int, ...]
    layout: str = "first"  # first | last | tokens (the normalized axis is the last, contiguous one)
    dtype: str = "float32"
    groups: int | None = None
    residual: bool = False
    activation: str | None = None
    affine: str = "channel"  # channel: (C,), element: x.shape[1:]

    @property
    def id(self) -> str:
        name = self.norm + (str(self.groups) if self.groups else "")
        if self.affine == "element":
            name += "-elementwise"
        if self.residual or self.activation:
            name += "-" + "-".join(filter(None, ["add" * self.residual, self.activation]))
        size = "x".join(map(str, self.shape))
        return f"{name}-{size}-{self.layout}-{SHORT[self.dtype]}"

    @property
    def options(self) -> dict[str, Any]:
        """What differs from a plain norm, for the results file."""
        plain = {"groups": None, "residual": False, "activation": None, "affine": "channel"}
        return {name: getattr(self, name) for name in plain if getattr(self, name) != plain[name]}

    @property
    def fused(self) -> bool:
        return self.residual or self.activation is not None

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * ITEMSIZE[self.dtype]

    @property
    def affine_shape(self) -> tuple[int, ...]:
        return self.shape[1:] if self.affine == "element" else (self.shape[1],)

    @property
    def has_beta(self) -> bool:
        return self.norm not in ("rms", "RMSNorm")

    def reduced(self) -> Case:
        """The same case on some twenty thousand elements: every option kept, the sizes cut down.

        Not fewer, because the smallest inputs go to PyTorch's own operators.
        """
        samples, channels, *positions = self.shape
        if positions:
            wide = 2 * self.groups if self.groups else 48
            small = (min(samples, 8), min(channels, wide), *(min(p, 9) for p in positions))
        else:
            small = (min(samples, 64), min(channels, 320))
        return replace(self, shape=small)


IMAGES = (
    (32, 64, 112, 112),
    (32, 256, 56, 56),
    (32, 512, 28, 28),
    (64, 2048, 7, 7),
    (8, 64, 28, 28),
)
DENSE = ((256, 1024), (8, 16))
TOKENS = ((8192, 768), (4096, 4096))
DTYPES = ("float32", "bfloat16")


def _batch() -> list[Case]:
    images = [
        Case("batch", shape, layout, dtype)
        for dtype in DTYPES
        for layout in ("first", "last")
        for shape in IMAGES
    ]
    return images + [Case("batch", shape, "first", dtype) for dtype in DTYPES for shape in DENSE]


def _fused() -> list[Case]:
    rows = [(shape, "first", "float32") for shape in IMAGES]
    rows += [(IMAGES[1], "last", "float32"), (IMAGES[1], "first", "bfloat16")]
    added = [
        Case("batch", shape, layout, dtype, residual=True, activation="relu")
        for shape, layout, dtype in rows
    ]
    return added + [Case("batch", IMAGES[2], activation=name) for name in ("silu", "gelu")]


def _tokens() -> list[Case]:
    large = [
        Case(norm, shape, "tokens", dtype)
        for norm in ("token_layer", "rms")
        for dtype in DTYPES
        for shape in TOKENS
    ]
    return large + [Case(norm, (8, 16), "tokens") for norm in ("token_layer", "rms")]


def _maps() -> list[Case]:
    tiny = (4, 32, 4, 4)
    group = [
        Case("group", IMAGES[1], groups=32),
        Case("group", IMAGES[1], dtype="bfloat16", groups=32),
        Case("group", IMAGES[1], "last", groups=32),
        Case("group", IMAGES[2], groups=32),
        Case("group", IMAGES[4], groups=32),
        Case("group", tiny, groups=8),
    ]
    layer = [
        Case("layer", IMAGES[1]),
        Case("layer", IMAGES[2], dtype="bfloat16"),
        Case("layer", IMAGES[2], affine="element"),
        Case("layer", IMAGES[4]),
        Case("layer", tiny),
    ]
    instance = [
        Case("instance", IMAGES[0]),
        Case("instance", IMAGES[0], dtype="bfloat16"),
        Case("instance", IMAGES[2]),
        Case("instance", IMAGES[4]),
        Case("instance", tiny),
    ]
    return group + layer + instance


CASES: tuple[Case, ...] = tuple(_batch() + _fused() + _tokens() + _maps())

# What `--quick` runs: every norm and layout once, nothing above 26 MB.
QUICK = (
    "batch-64x2048x7x7-first-f32",
    "batch-8x64x28x28-first-f32",
    "batch-8x64x28x28-last-f32",
    "batch-256x1024-first-f32",
    "batch-8x16-first-f32",
    "batch-add-relu-8x64x28x28-first-f32",
    "token_layer-8x16-tokens-f32",
    "rms-8192x768-tokens-f32",
    "group32-8x64x28x28-first-f32",
    "layer-8x64x28x28-first-f32",
    "instance-8x64x28x28-first-f32",
)


def _layers() -> list[Case]:
    """torch.nn's layers, small, medium and large; trailing norms over tokens and whole maps."""
    maps = [
        Case(name, shape, layout, dtype, groups)
        for name, groups in (("BatchNorm2d", None), ("GroupNorm", 32), ("InstanceNorm2d", None))
        for dtype in DTYPES
        for layout in ("first", "last")
        for shape in (IMAGES[4], IMAGES[3], IMAGES[1])
    ]
    trailing = [
        case
        for name in ("LayerNorm", "RMSNorm")
        for dtype in DTYPES
        for case in (
            *(Case(name, shape, "tokens", dtype) for shape in (DENSE[0], *TOKENS)),
            *(
                Case(name, shape, layout, dtype, affine="element")
                for layout in ("first", "last")
                for shape in (IMAGES[4], IMAGES[2])
            ),
        )
    ]
    return maps + trailing


LAYERS: tuple[Case, ...] = tuple(_layers())
QUICK_LAYERS = tuple(
    case
    for case in LAYERS
    if case.dtype == "float32" and case.layout != "last" and case.shape in (IMAGES[4], DENSE[0])
)

# Inputs so small that nothing but the call itself takes time.
CALLS = (
    Case("BatchNorm1d", (8, 16)),
    Case("LayerNorm", (8, 16), "tokens"),
    Case("RMSNorm", (8, 16), "tokens"),
    Case("GroupNorm", (8, 16, 1), groups=4),
)

# Networks of benchmarks/networks.py, by name, and their input.
NETWORKS = tuple(Case("ResNet18", (32, 3, 32, 32), layout) for layout in ("first", "last"))
CHAINS = tuple(Case("Chain8", (32, 64, 32, 32), layout) for layout in ("first", "last"))


def find(pattern: str, cases: Sequence[Case] = CASES) -> list[Case]:
    """The cases whose id contains every part of the pattern (parts separated by commas)."""
    parts = [part for part in pattern.split(",") if part]
    return [case for case in cases if all(part in case.id for part in parts)]


def case_of(name: str) -> Case:
    """The case with exactly this id."""
    for case in CASES:
        if case.id == name:
            return case
    raise KeyError(f"no benchmark case is called {name!r}")


def arrays(case: Case, seed: int = 0) -> dict[str, np.ndarray | None]:
    """float32 inputs, channels first: x, gamma, beta, dy and residual (None where not used).

    A block of a million random numbers is repeated: drawing 25 million anew for every process would
    take longer than the measurement.
    """
    random = np.random.default_rng(seed)
    block = random.standard_normal(min(math.prod(case.shape), 1_000_003)).astype(np.float32)

    def fill(shape: tuple[int, ...], scale: float, offset: float) -> np.ndarray:
        random.shuffle(block)
        return np.resize(block * np.float32(scale) + np.float32(offset), shape)

    return {
        "x": fill(case.shape, 2.0, 3.0),
        "dy": fill(case.shape, 1.0, 0.1),
        "residual": fill(case.shape, 1.0, 0.0) if case.residual else None,
        "gamma": fill(case.affine_shape, 0.3, 1.0),
        "beta": fill(case.affine_shape, 0.5, 0.2) if case.has_beta else None,
    }
