"""How the frameworks' norm layers differ: one table, which readers, writers and notes look into."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from normkit.errors import ModelError, OptionError
from normkit.models.porting.weights import NormWeights

__all__ = ["CONVENTIONS", "Convention", "adapt", "complement", "convention", "differences"]

# Which of (gamma, beta) a layer can have.
_ALL = frozenset({(False, False), (True, False), (False, True), (True, True)})
_BOTH_OR_NONE = frozenset({(False, False), (True, True)})
_BETA_WITH_GAMMA = frozenset({(False, False), (True, False), (True, True)})
_GAMMA_OR_NONE = frozenset({(False, False), (True, False)})
_GAMMA = frozenset({(True, False)})
_BOTH = frozenset({(True, True)})
_GAMMA_OR_BOTH = frozenset({(True, False), (True, True)})

_Affine = frozenset[tuple[bool, bool]]


@dataclass(frozen=True)
class Convention:
    """What is usual in one framework.

    Args:
        title: the framework's name.
        momentum: what its momentum weighs: the ``"new"`` batch or the ``"old"`` statistics.
        variance: of a batch that moves the running variance.
        channels: where they are: ``"first"``, ``"last"``; ``movable`` if an option says it.
        layers: what it calls each kind.
        eps: the default of each kind; None for the dtype's own.
        affine: which of (gamma, beta) each kind may have.
        names: of gamma, beta, mean and var.
        separator: between a layer's name and that of a weight.
        old_momentum: the default of a batch norm, as the weight of the old statistics.
        several_axes: a layer norm may span more than the last axis.
        rounding: relative, of its options: ONNX keeps eps and momentum in float32.
    """

    title: str
    momentum: str
    variance: str
    channels: str
    movable: frozenset[str]
    layers: Mapping[str, str]
    eps: Mapping[str, float | None]
    affine: Mapping[str, _Affine]
    names: tuple[str, str, str, str]
    separator: str
    old_momentum: float
    several_axes: bool = True
    rounding: float = 0.0

    def momentum_of(self, keep: float | None) -> float | None:
        """The framework's own number for a weight of the old statistics."""
        if keep is None or self.momentum == "old":
            return keep
        return complement(keep)

    def kept(self, weights: NormWeights) -> float:
        """The weight of the old statistics for a new layer: the framework's own without one."""
        return self.old_momentum if weights.keep is None else weights.keep


def complement(momentum: float) -> float:
    """One minus it, without the last digit's noise: 0.9 gives 0.1."""
    return round(1.0 - momentum, 15)


def _eps(value: float, **others: float | None) -> dict[str, float | None]:
    return {**dict.fromkeys(("batch", "layer", "rms", "group", "instance"), value), **others}


CONVENTIONS: dict[str, Convention] = {
    "torch": Convention(
        "PyTorch", "new", "unbiased", "first", frozenset(),
        {"batch": "BatchNorm{dims}d", "layer": "LayerNorm", "rms": "RMSNorm",
         "group": "GroupNorm", "instance": "InstanceNorm{dims}d"},
        _eps(1e-5, rms=None),
        {"batch": _BOTH_OR_NONE, "layer": _BETA_WITH_GAMMA, "rms": _GAMMA_OR_NONE,
         "group": _BOTH_OR_NONE, "instance": _BOTH_OR_NONE},
        ("weight", "bias", "running_mean", "running_var"), ".", 0.9,
    ),
    "keras": Convention(
        "Keras", "old", "biased", "last", frozenset({"batch", "group", "instance"}),
        {"batch": "BatchNormalization", "layer": "LayerNormalization", "rms": "RMSNormalization",
         "group": "GroupNormalization", "instance": "GroupNormalization"},
        _eps(1e-3, rms=1e-6),
        {"batch": _ALL, "layer": _ALL, "rms": _GAMMA, "group": _ALL, "instance": _ALL},
        ("gamma", "beta", "moving_mean", "moving_variance"), "/", 0.99,
    ),
    "flax": Convention(
        "Flax NNX", "old", "biased", "last", frozenset({"batch"}),
        {"batch": "BatchNorm", "layer": "LayerNorm", "rms": "RMSNorm", "group": "GroupNorm",
         "instance": "InstanceNorm"},
        _eps(1e-6, batch=1e-5),
        {"batch": _ALL, "layer": _ALL, "rms": _GAMMA_OR_NONE, "group": _ALL, "instance": _ALL},
        ("scale", "bias", "mean", "var"), "/", 0.99, several_axes=False,
    ),
    "equinox": Convention(
        "Equinox", "old", "biased", "first", frozenset(),
        {"batch": "BatchNorm", "layer": "LayerNorm", "rms": "RMSNorm", "group": "GroupNorm",
         "instance": "GroupNorm"},
        _eps(1e-5),
        {"batch": _BOTH_OR_NONE, "layer": _ALL, "rms": _ALL, "group": _BOTH_OR_NONE,
         "instance": _BOTH_OR_NONE},
        ("weight", "bias", "mean", "var"), ".", 0.99,
    ),
    "onnx": Convention(
        "ONNX", "old", "biased", "first", frozenset(),
        {"batch": "BatchNormalization", "layer": "LayerNormalization", "rms": "RMSNormalization",
         "group": "GroupNormalization", "instance": "InstanceNormalization"},
        _eps(1e-5),
        {"batch": _BOTH, "layer": _GAMMA_OR_BOTH, "rms": _GAMMA, "group": _BOTH, "instance": _BOTH},
        ("scale", "bias", "mean", "var"), ".", 0.9, rounding=2.0**-23,
    ),
}  # fmt: skip
# Linen's layers are NNX's in everything but that a layer norm may span several axes.
CONVENTIONS["linen"] = replace(CONVENTIONS["flax"], title="Flax Linen", several_axes=True)


def convention(framework: str) -> Convention:
    """A framework's row of the table.

    Raises:
        OptionError: there is none by that name.

    >>> convention("torch").momentum_of(0.99), convention("keras").momentum_of(0.99)
    (0.01, 0.99)
    """
    found = CONVENTIONS.get(framework)
    if found is None:
        raise OptionError(
            "No such framework to port to",
            received=repr(framework),
            expected=", ".join(repr(name) for name in CONVENTIONS),
            remedy="flax is NNX; linen makes a module with its variables.",
        )
    return found


def adapt(
    weights: NormWeights,
    target: str,
    *,
    channels: str | None = None,
    dims: int | None = None,
    batch_elements: int | None = None,
) -> NormWeights:
    """The weights as a layer of the target can have them; the same function is computed.

    Gamma of 1 and beta of 0 are filled in where the target wants them. What differs is noted.

    Args:
        target: a framework.
        channels: where the target's layer is to have them; without, its usual place, or as
            they are within one framework.
        dims: axes beside samples and channels; the source's without.
        batch_elements: see :meth:`NormWeights.corrected`; for the target's variance.

    Raises:
        ModelError: the target has no such layer; the message names what it lacks.
        OptionError: channels where the target cannot have them.
    """
    there = convention(target)
    placed = weights.kind not in ("layer", "rms")
    if placed and channels not in (None, there.channels) and weights.kind not in there.movable:
        raise OptionError(
            f"{there.title} has the channels {there.channels}{weights.place}",
            received=f"channels={channels!r}",
            expected=repr(there.channels),
            remedy="Leave channels= away.",
        )
    own = weights.channels if target == weights.framework else None
    weights = replace(
        weights,
        channels=channels or own or there.channels if placed else None,
        dims=weights.dims if dims is None else dims,
    )
    if weights.synced and target != "torch":
        weights = replace(weights, synced=False).noted(
            "statistics synchronized over devices in the source; the target's are each device's own"
        )
    if len(weights.shape) > 1 and not there.several_axes:
        raise lacks(weights, there, f"a norm over axes of sizes {weights.shape}", _FLATTEN)
    if batch_elements is not None:
        weights = weights.corrected(there.variance, batch_elements)
    if weights.kind == "batch":  # from here on the target's rules move the statistics
        weights = replace(weights, variance=there.variance, seen=None, lagging=False)
    return _filled(replace(weights, framework=target, narrow=False).rounded(weights.dtype), there)


_FLATTEN = "Flatten these axes before the norm, and port the flat layer."


def lacks(weights: NormWeights, there: Convention, what: str, remedy: str) -> ModelError:
    """The error for an option that the target does not have."""
    return ModelError(
        f"{there.title} has no counterpart{weights.place}",
        received=what,
        expected=f"what its {there.layers[weights.kind].format(dims='')} can do",
        remedy=remedy,
    )


def _filled(weights: NormWeights, there: Convention) -> NormWeights:
    has = (weights.gamma is not None, weights.beta is not None)
    allowed = there.affine[weights.kind]
    layer = there.layers[weights.kind].format(dims="")
    wider = [pair for pair in allowed if pair[0] >= has[0] and pair[1] >= has[1]]
    if not wider:
        if weights.beta is None or weights.beta.any():
            raise lacks(weights, there, "a beta that is not zero", "Add it in a layer behind.")
        bare = replace(weights, beta=None)
        return _filled(bare.noted(f"beta, all zero, left away: {layer} has none"), there)
    gamma, beta = min(wider, key=sum)
    notes = []
    if gamma and not has[0]:
        weights = replace(weights, gamma=np.ones(weights.shape, weights.dtype))
        notes.append("gamma of 1 filled in")
    if beta and not has[1]:
        weights = replace(weights, beta=np.zeros(weights.shape, weights.dtype))
        notes.append("beta of 0 filled in")
    return weights.noted(*notes)


def differences(before: NormWeights, after: NormWeights, target: str) -> tuple[str, ...]:
    """What a user should know who goes on with the layer in the target framework."""
    here, there = convention(before.framework), convention(target)
    found = []
    usual = there.eps[before.kind]
    if before.eps != usual:
        shown = "the dtype's own" if usual is None else f"{usual:g}"
        found.append(f"eps {before.eps:g} is set; {there.title}'s default is {shown}")
    if before.kind == "batch":
        if here.momentum != there.momentum and before.keep is not None:
            found.append(
                f"momentum weighs the {here.momentum} statistics in {here.title}, "
                f"the {there.momentum} ones in {there.title}"
            )
        if before.variance != after.variance and np.array_equal(before.var, after.var):  # type: ignore[arg-type]
            found.append(_variance_note(here.title, str(before.variance), there))
        if before.seen is not None:
            found.append(_debias_note(before, there))
        if before.lagging:
            found.append(
                f"in training {here.title} normalizes by running statistics (mode='ema'), "
                f"{there.title} by the batch's"
            )
    place = before.channels or here.channels
    if before.kind in ("batch", "group", "instance") and place != after.channels and after.dims:
        found.append(f"channels come {place} in {here.title}, {after.channels} in {there.title}")
    if len(before.shape) > 1:
        found.append(f"gamma and beta lie over axes of sizes {before.shape}, in this order")
    return tuple(found)


def _variance_note(here: str, held: str, there: Convention) -> str:
    return (
        f"running variance taken over as it is: {here} averages {held} variances of batches, "
        f"{there.title} {there.variance} ones, so later training moves it to a value "
        "a factor m/(m - 1) apart (m elements a channel); batch_elements= corrects it now"
    )


def _debias_note(before: NormWeights, there: Convention) -> str:
    seen = f"{before.seen} batches" if before.seen != 1 else "1 batch"
    return (
        f"statistics are the zero-debiased ones after {seen}; {there.title}'s average is not "
        "debiased, so its next batches weigh less than they would here"
    )
