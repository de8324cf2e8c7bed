"""Weights of norms across frameworks: PyTorch, Keras, Flax, Equinox and ONNX."""

from __future__ import annotations

from normkit.models.porting.layer import PortedLayer
from normkit.models.porting.ported import Ported
from normkit.models.porting.porting import port
from normkit.models.porting.weights import NormWeights

__all__ = ["NormWeights", "Ported", "PortedLayer", "port"]
