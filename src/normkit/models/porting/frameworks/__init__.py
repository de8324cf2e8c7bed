"""One reader and one writer for each framework; none is imported before it is needed."""

from __future__ import annotations

from typing import Any

from normkit.models.porting.conventions import convention
from normkit.models.porting.frameworks.base import Framework
from normkit.models.porting.frameworks.equinox_nn import Equinox
from normkit.models.porting.frameworks.flax_linen import Linen
from normkit.models.porting.frameworks.flax_nnx import Flax
from normkit.models.porting.frameworks.keras_layers import Keras
from normkit.models.porting.frameworks.onnx_nodes import Onnx
from normkit.models.porting.frameworks.torch_nn import Torch

__all__ = ["FRAMEWORKS", "framework", "owner"]

FRAMEWORKS: dict[str, Framework] = {
    one.name: one for one in (Torch(), Keras(), Flax(), Linen(), Equinox(), Onnx())
}


def framework(name: str) -> Framework:
    """A framework by its name in the table of conventions.

    Raises:
        OptionError: there is none by that name.
    """
    convention(name)
    return FRAMEWORKS[name]


def owner(source: Any) -> Framework | None:
    """The framework of a layer or model; on PyTorch's backend Keras' layers are modules too."""
    order = ("keras", "torch", "flax", "linen", "equinox", "onnx")
    return next((FRAMEWORKS[name] for name in order if FRAMEWORKS[name].owns(source)), None)
