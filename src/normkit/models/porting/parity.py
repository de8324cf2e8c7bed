"""Whether two layers of different frameworks compute the same: both are run on the same numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

import normkit as nk
from normkit.errors import ParityError
from normkit.models.porting.weights import NormWeights
from normkit.words import first_line

__all__ = ["Outcome", "Parity", "Side", "compare", "overall", "reference", "sample"]

Array = Any
_SAMPLES, _POSITIONS = 7, (5, 4, 3)
_ENOUGH = 64  # elements of a set, where its axes allow
_FAR = {True: 40.0, False: 4.0}  # means in deviations: float32 would lose its digits further out
_NEAR = 30.0  # deviations: to here a running mean is brought for a layer that runs in float32
_MOST = 1e-3  # what is further apart than this is never called rounding


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a layer gave: y, laid out as its input, and what a batch in training left."""

    y: Array
    mean: Array | None = None
    var: Array | None = None


Run = Callable[[NormWeights, Array, bool], Outcome]


@dataclass(frozen=True, eq=False)
class Side:
    """One of the two layers that are compared.

    Args:
        title: what computes it.
        weights: what it holds.
        run: the layer, with the running mean of the weights that it is called with; None where
            it cannot be run.
        wide: it runs in float64; else in float32.
        rounding: relative, of its options.
        why_not: it is not run.
    """

    title: str
    weights: NormWeights
    run: Run | None
    wide: bool = True
    rounding: float = 0.0
    why_not: str = ""

    def tolerance(self, training: bool) -> float:
        """Relative to the largest value of a channel.

        In float64 1e-9, where conventions that differ show in the fifth digit or before; in float32
        some roundings. Means that are far out, in deviations, cost digits; where the variance is
        taken of the input, which :func:`sample` keeps within bounds, their square.
        """
        batch = self.weights.kind == "batch"
        far = _far_out(self.weights) if batch and not training else _FAR[self.wide] ** 2
        if not self.wide:
            return 32 * 2.0**-24 * (1.0 + min(far, _NEAR))
        share = 1.0 - (self.weights.keep or 0.0) if training else 1.0  # of a batch: itself rounded
        rounding = max(self.rounding, 1e-15)  # 1 - momentum has no more digits than that
        own = rounding / share if share else rounding
        return min(_MOST, max(1e-9, 32 * 2.0**-53 * (1.0 + far), own))

    def probed(self, x: Array, training: bool) -> tuple[NormWeights, Array]:
        """Weights and input to run it with: y is that of its own weights and x.

        A layer in float32 would lose all digits at a running mean far out, and agree with
        anything: its mean is brought near, and its input by as much.
        """
        weights = self.weights
        if self.wide or training or weights.kind != "batch":
            return weights, x
        mean, far = np.asarray(weights.mean, np.float64), _NEAR * _std(weights)
        near = np.clip(mean, -far, far)
        return replace(weights, mean=near), x - _column(mean - near, x, 1)


def _std(weights: NormWeights) -> Array:
    std = np.sqrt(np.asarray(weights.var, np.float64) + weights.eps)
    return np.maximum(std, np.finfo(np.float64).tiny)


def _far_out(weights: NormWeights) -> float:
    """The largest running mean in deviations."""
    return float(np.max(np.abs(np.asarray(weights.mean)) / _std(weights)))


@dataclass(frozen=True)
class Parity:
    """How far a port's two sides are apart, relative to the largest value of a channel.

    A side that could not be run is not compared: the other is held against what the weights mean.

    Args:
        inference: of the outputs; None where nothing was compared.
        training: of outputs and updated statistics of a batch norm in training; None for the rest.
        sides: the titles of both.
        not_run: titles of sides that could not be run, with the reason.
    """

    inference: float | None
    training: float | None
    sides: tuple[str, str]
    not_run: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        """For people.

        >>> print(Parity(1e-16, None, ("Keras 3.15", "PyTorch 2.13")))
        Keras 3.15 and PyTorch 2.13 agree to 1e-16
        >>> print(Parity(1e-16, None, ("Keras", "PyTorch"), {"Keras": "it is not installed"}))
        PyTorch agrees with the formula to 1e-16; NOT run in Keras: it is not installed
        >>> print(Parity(None, None, ("a file", "Keras"), {"a file": "weights only"}))
        nothing was compared; NOT run in a file: weights only
        """
        ran = [side for side in self.sides if side not in self.not_run]
        if self.inference is None:
            words = "nothing was compared"
        elif self.not_run:
            words = f"{ran[0]} agrees with the formula to {self.inference:.0e}"
        else:
            words = f"{self.sides[0]} and {self.sides[1]} agree to {self.inference:.0e}"
        if self.training is not None:
            words += f", in training to {self.training:.0e}"
        return "; ".join([words, *(f"NOT run in {s}: {why}" for s, why in self.not_run.items())])


def overall(found: Sequence[Parity]) -> Parity:
    """Of several layers: the largest gaps, and every side that was not run."""
    gaps = [p.inference for p in found if p.inference is not None]
    trained = [p.training for p in found if p.training is not None]
    not_run = {side: why for p in found for side, why in p.not_run.items()}
    sides = max(found, key=lambda p: len(p.not_run)).sides
    if len(gaps) < len(found):  # not one layer is called compared that was not
        return Parity(None, None, sides, not_run)
    return Parity(max(gaps), max(trained, default=None), sides, not_run)


def sample(weights: NormWeights, dims: int, *, training: bool = False, wide: bool = True) -> Array:
    """An input on which conventions show: far from zero, oddly scaled, some of it hardly varying.

    Args:
        dims: axes of positions.
        training: for a batch norm's training; else its inputs lie about its running mean.
        wide: for two sides that run in float64.
    """
    rng = np.random.default_rng(0)
    if weights.kind in ("layer", "rms"):
        noise = rng.normal(size=(_SAMPLES, *weights.shape))
        if weights.kind == "layer":
            noise = _standard(noise, _SAMPLES)
        scale = _column([3.7, 1e-2, 1.0, 30.0, 1e-3, 0.3, 3.7], noise, 0)  # eps shows in small ones
        lone = weights.kind == "layer" and weights.size == 1
        far = 0.0 if lone else _FAR[wide]
        return _narrow(scale * (noise + far * _column([1.0, -1.0], noise, 0)))
    samples = _ENOUGH if not dims else _SAMPLES
    noise = rng.normal(size=(samples, weights.size, *_positions(weights, dims)))
    if weights.kind == "batch":
        std = _column(np.sqrt(np.asarray(weights.var, np.float64) + weights.eps), noise, 1)
        mean = _column(np.asarray(weights.mean, np.float64), noise, 1)
        return _narrow(std * (noise + _FAR[wide]) if training else mean + 3.7 * std * (noise + 4.0))
    sets = samples * _groups(weights)
    far = 0.0 if noise.size == sets else _FAR[wide]
    scale = _column([3.7, 1e-2, 30.0], noise, 1 if weights.kind == "instance" else 0)
    return _narrow(scale * (_standard(noise, sets) + far))


def _groups(weights: NormWeights) -> int:
    """Sets in a sample of a group or instance norm."""
    return weights.groups or weights.size


def _positions(weights: NormWeights, dims: int) -> tuple[int, ...]:
    """Sizes that give a set of a group or instance norm enough elements."""
    usual = _POSITIONS[:dims]
    if not dims or weights.kind == "batch":
        return usual
    others = math.prod(usual[1:]) * (weights.size // _groups(weights))
    return (max(usual[0], -(-_ENOUGH // others)), *usual[1:])


def _standard(noise: Array, sets: int) -> Array:
    """Mean 0 and deviation 1 in each set: a few drawn numbers may lie close together, far out.

    A set of one element is 0: any digits of its own would be lost by all but exact subtraction.
    """
    rows = noise.reshape(sets, -1)
    rows = rows - rows.mean(1, keepdims=True)
    return (rows / np.maximum(rows.std(1, keepdims=True), 1e-300)).reshape(noise.shape)


def _column(values: Array, like: Array, axis: int) -> Array:
    """Values along an axis, over and over."""
    shape = [-1 if a == axis else 1 for a in range(like.ndim)]
    return np.resize(values, like.shape[axis]).reshape(shape)


def _narrow(x: Array) -> Array:
    """Numbers that float32 has too."""
    return x.astype(np.float32).astype(np.float64)


def reference(weights: NormWeights, x: Array, training: bool) -> Outcome:
    """What the weights mean, computed by normkit's engine in float64."""
    gamma, beta = (_wide(value) for value in (weights.gamma, weights.beta))
    if weights.kind in ("layer", "rms"):
        rows = x.reshape(-1, weights.size)
        made = nk.RMSNorm if weights.kind == "rms" else nk.TokenLayerNorm
        norm = made(eps=weights.eps)
        y, _ = norm.forward(rows, _flat(gamma), _flat(beta))
        return Outcome(y.reshape(x.shape))
    if weights.kind == "batch":
        return _batch(weights, x, gamma, beta, training)
    alone, eps = weights.kind == "instance", weights.eps
    norm = nk.InstanceNorm(eps=eps) if alone else nk.GroupNorm(weights.groups or 1, eps=eps)
    return Outcome(norm.forward(x, gamma, beta)[0])


def _wide(value: Array | None) -> Array | None:
    return None if value is None else np.asarray(value, np.float64)


def _flat(value: Array | None) -> Array | None:
    return None if value is None else value.reshape(-1)


def _batch(weights: NormWeights, x: Array, gamma: Any, beta: Any, training: bool) -> Outcome:
    norm = nk.BatchNorm(eps=weights.eps)
    held = _wide(weights.mean), _wide(weights.var)
    if not training:
        return Outcome(norm.forward(x, gamma, beta, statistics=held)[0])
    y, saved = norm.forward(x, gamma, beta)
    found = saved.statistics
    unbiased = weights.variance == "unbiased"
    batch = found.mean, found.population_var if unbiased else found.var
    after = [_moved(weights, old, new) for old, new in zip(held, batch, strict=True)]
    if weights.lagging:
        y, _ = norm.forward(x, gamma, beta, statistics=tuple(after))
    return Outcome(y, *after)


def _moved(weights: NormWeights, old: Any, new: Any) -> Array:
    """Running statistics after a batch."""
    assert weights.keep is not None
    keep = weights.keep
    if weights.seen is None:
        return keep * old + (1 - keep) * new
    # Zero-debiased: divided by 1 - keepⁿ after n batches; before the first one by nothing.
    before = 1 - keep**weights.seen if weights.seen else 1.0
    after = 1 - keep ** (weights.seen + 1)
    return (keep * before * old + (1 - keep) * new) / after


def compare(here: Side, there: Side, dims: int) -> Parity:
    """Run both layers on random input in inference, batch norms in training too, and compare.

    Each side is held against what its weights mean, and their outputs against each other where
    they mean the same function.

    Args:
        dims: axes of positions.

    Raises:
        ParityError: they differ.
    """
    both = (here.weights, there.weights)
    trained = here.weights.kind == "batch" and None not in [w.keep for w in both]
    titles = (here.title, there.title)
    not_run = {side.title: side.why_not for side in (here, there) if side.run is None}
    if here.run is None and there.run is None:
        return Parity(None, None, titles, not_run)
    inference = _largest_gap(here, there, dims, False)
    training = _largest_gap(here, there, dims, True) if trained else None
    return Parity(inference, training, titles, not_run)


def _called(side: Side) -> str:
    return side.title if side.run is not None else f"the formula for {side.title}"


def _largest_gap(here: Side, there: Side, dims: int, training: bool) -> float:
    x = sample(here.weights, dims, training=training, wide=here.wide and there.wide)
    worst, outputs = 0.0, []
    for side in (here, there):
        wanted = reference(side.weights, x, training)
        got = wanted if side.run is None else _run(side, x, training)
        worst = max(worst, _checked(side, got, wanted, training))
        outputs.append(got.y)
    if _mean_the_same(here.weights, there.weights, training):
        gap = _gap(*outputs)
        if not gap <= here.tolerance(training) + there.tolerance(training):
            raise _error(_called(here), _called(there), "outputs", training, gap)
        worst = max(worst, gap)
    return worst


def _run(side: Side, x: Array, training: bool) -> Outcome:
    assert side.run is not None
    try:
        return side.run(*side.probed(x, training), training)
    except Exception as error:  # whatever a layer of somebody's own does with an input
        raise ParityError(
            f"A layer cannot be run{side.weights.place}",
            received=f"{side.title}: {first_line(error)}",
            expected=f"an output for an input of shape {x.shape}, "
            + ("in training" if training else "in inference"),
            remedy="A layer that wants more than an input can only be ported by hand.",
        ) from error


def _mean_the_same(one: NormWeights, other: NormWeights, training: bool) -> bool:
    """Whether outputs are to be alike: not where a variance was corrected, or float64 rounded."""
    if training and one.lagging != other.lagging:
        return False
    pairs = ((v, getattr(other, name)) for name, v in one.arrays().items())
    return all(w is None or np.array_equal(v, w) for v, w in pairs)


def _checked(side: Side, got: Outcome, wanted: Outcome, training: bool) -> float:
    """How far a layer is from what its weights mean."""
    worst, place = 0.0, side.weights.name or "the layer"
    for what in ("y", "mean", "var"):
        value = getattr(got, what)
        if value is None:
            continue
        held = getattr(side.weights, what, None)  # an average of opposites has fewer digits
        gap = _gap(value, getattr(wanted, what), 0.0 if held is None else np.abs(held))
        if not gap <= side.tolerance(training):  # NaN too
            raise _error(_called(side), "its weights", f"{what} of {place}", training, gap)
        worst = max(worst, gap)
    return worst


def _gap(one: Array, other: Array, scale: Any = 0.0) -> float:
    """The largest difference, relative to the largest value of its channel, or to ``scale``."""
    if one.shape != other.shape:
        return float("inf")
    axes = tuple(a for a in range(one.ndim) if a != 1) if one.ndim > 1 else ()
    largest = np.abs(other).max(axis=axes, keepdims=True) if axes else np.abs(other)
    largest = np.maximum(np.maximum(largest, scale), np.finfo(np.float64).tiny)
    return float((np.abs(one - other) / largest).max(initial=0.0))


def _error(one: str, other: str, what: str, training: bool, gap: float) -> ParityError:
    return ParityError(
        f"The two layers do not compute the same in {'training' if training else 'inference'}",
        received=f"{what}: {one} and {other} differ by {gap:.1e} of the largest value",
        expected="a difference of rounding",
        remedy="Nothing was written. A layer that computes something else than its class says, or "
        "a version of a framework with another convention, is the likeliest reason.",
    )
