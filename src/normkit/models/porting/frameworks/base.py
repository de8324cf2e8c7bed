"""What each framework's module can do: find its norm layers, read one, make one, run one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import partial
from typing import Any, NoReturn

import numpy as np

from normkit.errors import ModelError
from normkit.models.porting.conventions import CONVENTIONS, Convention
from normkit.models.porting.parity import Outcome, Side
from normkit.models.porting.weights import NormWeights

__all__ = ["Framework", "refuse"]

Array = Any


class Framework(ABC):
    """One framework's norm layers: a reader, a writer, and how a layer is run.

    A *layer* is what this framework has for one: a module; a module with its state (Equinox) or
    variables (Linen); an ONNX model of one node.
    """

    name: str
    wide = True  # it runs in float64

    @property
    def convention(self) -> Convention:
        """The framework's row of the table."""
        return CONVENTIONS[self.name]

    @abstractmethod
    def owns(self, source: Any) -> bool:
        """Whether this is a layer or model of the framework; without importing it."""

    @abstractmethod
    def version(self) -> str:
        """The framework's name and version. Raises ModuleNotFoundError where it is missing."""

    @abstractmethod
    def is_layer(self, source: Any) -> bool:
        """Whether it is a single layer that :meth:`read` takes, or refuses by name."""

    @abstractmethod
    def layers(self, model: Any) -> list[tuple[str, Any]]:
        """The norm layers of a model by their paths, those without a counterpart too."""

    @abstractmethod
    def read(self, layer: Any, name: str = "") -> NormWeights:
        """What a layer holds.

        Raises:
            ModelError: it is no norm with a counterpart, or has an option without one.
        """

    @abstractmethod
    def write(self, weights: NormWeights) -> Any:
        """A new layer with these weights, as :func:`adapt` has made them."""

    @abstractmethod
    def run(self, layer: Any, weights: NormWeights, x: Array, training: bool) -> Outcome:
        """Run a copy of the layer, in float64 where the framework can.

        Args:
            weights: what it holds, for where its channels lie. Where the framework is not
                ``wide`` the copy takes over this running mean: see :meth:`Side.probed`.
            x: (samples, channels, positions…), or (samples, …, shape) for a layer or RMS norm.
        """

    def side(self, layer: Any, weights: NormWeights, why_not: str = "") -> Side:
        """A layer as one of two that are compared; None for one that cannot be run, and why."""
        title, rounding = self.convention.title, self.convention.rounding
        if layer is None:
            return Side(title, weights, None, True, rounding, why_not)
        return Side(self.version(), weights, partial(self.run, layer), self.wide, rounding)

    @abstractmethod
    def assign(self, model: Any, weights: Mapping[str, NormWeights]) -> Any:
        """Set weights, eps and momentum of the layers by these names.

        Returns:
            The model: the same one where it can be changed in place, else a new one.
        """

    def holds(self, weights: NormWeights) -> NormWeights:
        """The weights in the precision that the framework can hold here."""
        return weights

    def unknown_rank(self, weights: NormWeights) -> str:
        """Why a layer cannot be made without knowing how many positions its input has; "" if so."""
        del weights
        return ""


def refuse(framework: str, name: str, what: str, remedy: str) -> NoReturn:
    """Say that a layer has no counterpart elsewhere."""
    raise ModelError(
        f"A layer of {CONVENTIONS[framework].title} has no counterpart elsewhere"
        + (f" ({name})" if name else ""),
        received=what,
        expected="a batch, layer, RMS, group or instance norm without options of its own",
        remedy=remedy,
    )


def channels_last(x: Array) -> Array:
    """(samples, channels, positions…) with the channels behind."""
    return np.moveaxis(x, 1, -1)


def channels_first(y: Array) -> Array:
    """The way back."""
    return np.moveaxis(y, -1, 1)
