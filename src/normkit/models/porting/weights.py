"""What a norm layer of any framework holds, as one value in one convention."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from normkit.errors import ModelError, OptionError

__all__ = ["KINDS", "STATISTICS", "NormWeights"]

#: The norms that have a counterpart in another framework.
KINDS = ("batch", "layer", "rms", "group", "instance")
STATISTICS = ("gamma", "beta", "mean", "var")

Array = Any


@dataclass(frozen=True, eq=False)
class NormWeights:
    """A norm layer's weights and options: what is read from one framework and written to another.

    Args:
        kind: one of :data:`KINDS`.
        shape: of gamma and beta: (channels,), or the last axes that a layer or RMS norm spans.
        eps: added to the variance.
        gamma, beta: of this shape; None where the layer has none.
        mean, var: running statistics of a batch norm, as inference uses them.
        keep: weight of the old statistics when a batch moves them: Keras' momentum, and one minus
            PyTorch's.
        variance: which variance of a batch moves the running one: the ``"biased"`` one, or the
            ``"unbiased"`` one, m/(m - 1) times as large for m elements a channel.
        groups: of a group norm.
        channels: where they lie in the input: ``"first"`` (after the samples), ``"last"``, or None
            where the layer does not say.
        dims: axes beside samples and channels; None where any number serves, or is not known.
        synced: the statistics are taken over all devices.
        seen: batches that a zero-debiased average has seen; None for an average without.
        lagging: it normalizes by its running statistics in training too.
        name: the layer's path in its model.
        framework: where it comes from.
        narrow: the layer holds its weights in less than float32.
        notes: what else reading it has shown.

    Raises:
        ModelError: values that do not fit together; the message names the layer.

    >>> weights = NormWeights("layer", (3,), 1e-5, gamma=np.ones(3))
    >>> weights.size, weights.dtype.name
    (3, 'float64')
    """

    kind: str
    shape: tuple[int, ...]
    eps: float
    gamma: Array | None = field(default=None, repr=False)
    beta: Array | None = field(default=None, repr=False)
    mean: Array | None = field(default=None, repr=False)
    var: Array | None = field(default=None, repr=False)
    keep: float | None = None
    variance: str | None = None
    groups: int | None = None
    channels: str | None = None
    dims: int | None = None
    synced: bool = False
    seen: int | None = None
    lagging: bool = False
    name: str = ""
    framework: str = ""
    narrow: bool = False
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self._check(self.kind in KINDS, f"kind {self.kind!r}", f"one of {', '.join(KINDS)}")
        sized = bool(self.shape) and all(isinstance(n, int) and n > 0 for n in self.shape)
        self._check(sized, f"shape {self.shape}", "known sizes of at least 1")
        fits = math.isfinite(self.eps) and self.eps >= 0
        self._check(fits, f"eps {self.eps!r}", "a finite number, at least 0")
        placed = self.channels in (None, "first", "last")
        self._check(placed, f"channels {self.channels!r}", "first, last, or None")
        counted = self.dims is None or (type(self.dims) is int and 0 <= self.dims <= 3)
        self._check(counted, f"dims {self.dims!r}", "0 to 3 axes of positions, or None")
        for name in STATISTICS:
            self._check_values(name, getattr(self, name))
        if self.kind == "batch":
            self._check_statistics()
        if self.kind == "group":
            divides = bool(self.groups) and self.shape[-1] % (self.groups or 1) == 0
            self._check(divides, f"groups {self.groups}", f"a divisor of {self.shape[-1]}")

    def _check_values(self, name: str, value: Array | None) -> None:
        if value is None:
            return
        own = np.array(value)  # a copy: the layer may change
        if own.dtype not in (np.float32, np.float64):
            self._note(f"{name} of {own.dtype} widened to float32")
            object.__setattr__(self, "narrow", True)
            own = own.astype(np.float32)
        own.flags.writeable = False
        object.__setattr__(self, name, own)
        self._check(own.shape == self.shape, f"{name} of shape {own.shape}", f"{self.shape}")
        self._check(bool(np.isfinite(own).all()), f"{name} with NaN or infinity", "finite numbers")

    def _check_statistics(self) -> None:
        has = self.mean is not None and self.var is not None
        self._check(has, "no running statistics", "a running mean and variance")
        negative = self.var is not None and bool(np.any(self.var < 0))
        self._check(not negative, "a negative variance", "at least 0")
        divides = self.eps > 0 or self.var is None or bool(np.all(self.var > 0))
        self._check(divides, "a variance of 0 with eps 0", "something to divide by")
        keeps = self.keep is None or 0.0 <= self.keep <= 1.0
        self._check(keeps, f"weight {self.keep} of the old statistics", "0 to 1, or None")
        known = self.variance in ("biased", "unbiased")
        self._check(known, f"variance {self.variance!r}", "biased or unbiased")

    def _check(self, holds: bool, received: str, expected: str) -> None:
        if not holds:
            raise ModelError(
                f"A layer cannot be ported{self.place}",
                received=received,
                expected=expected,
                remedy="Look at the layer's weights and options in its own framework.",
            )

    def _note(self, words: str) -> None:
        object.__setattr__(self, "notes", (*self.notes, words))

    @property
    def place(self) -> str:
        """Where the layer is, for a message."""
        return f" ({self.name})" if self.name else ""

    @property
    def size(self) -> int:
        """Elements of gamma."""
        return math.prod(self.shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        """float64 if gamma or beta is, else float32; of the statistics where it has neither."""
        affine = [value for value in (self.gamma, self.beta) if value is not None]
        held = affine or [value for value in (self.mean, self.var) if value is not None]
        return np.result_type(np.float32, *held)

    def rounded(self, dtype: Any) -> NormWeights:
        """All weights in one dtype."""
        return replace(self, **{name: v.astype(dtype) for name, v in self.arrays().items()})

    @property
    def sets(self) -> tuple[str, tuple[int, ...], int | None]:
        """What elements form a set; groups of single channels make an instance norm."""
        alone = self.kind == "group" and self.groups == self.size
        kind = "instance" if alone else self.kind
        return kind, self.shape, self.groups if kind == "group" else None

    def arrays(self) -> dict[str, Array]:
        """The weights that it has, by their names here."""
        held = {name: getattr(self, name) for name in STATISTICS}
        return {name: value for name, value in held.items() if value is not None}

    def noted(self, *words: str) -> NormWeights:
        """With notes added."""
        return replace(self, notes=(*self.notes, *(w for w in words if w)))

    def corrected(self, wanted: str, elements: int) -> NormWeights:
        """With the running variance in the other convention, for batches of so many elements.

        Args:
            wanted: ``"biased"`` or ``"unbiased"``.
            elements: of a channel in a batch: samples times positions.

        Raises:
            OptionError: fewer than 2 elements.

        >>> one = np.ones(1)
        >>> torch_like = NormWeights("batch", (1,), 1e-5, mean=one, var=one, variance="unbiased")
        >>> torch_like.corrected("biased", 4).var
        array([0.75])
        """
        if isinstance(elements, bool) or not isinstance(elements, int) or elements < 2:
            raise OptionError(
                "No count of elements in a batch",
                received=f"batch_elements={elements!r}",
                expected="a whole number of at least 2: samples times positions of a channel",
                remedy="Leave it away, and the running variance is taken over as it is.",
            )
        if self.var is None or self.variance == wanted:
            return self
        ratio = (elements - 1) / elements
        var = self.var * (ratio if wanted == "biased" else 1 / ratio)
        changed = replace(self, var=var.astype(self.var.dtype), variance=wanted)
        return changed.noted(f"running variance made {wanted} for batches of {elements} elements")


def whole_sizes(sizes: Iterable[Any], name: str) -> tuple[int, ...]:
    """Sizes as whole numbers.

    Raises:
        ModelError: one is not known.
    """
    found = tuple(sizes)
    if not all(isinstance(n, (int, np.integer)) and n > 0 for n in found):
        raise ModelError(
            "The number of channels is not known",
            received=f"{name or 'a layer'} for an input of shape {found}",
            expected="a known size along the axis that the norm has weights for",
            remedy="Build or export the model with that size fixed; the batch may stay open.",
        )
    return tuple(int(n) for n in found)
