"""Layers as a user makes them: torch.nn's, the same through torch.compile, and normkit's.

Each is constructed as torch.nn documents it, converted to the case's dtype as a whole, and given
the case's gamma and beta. A step is forward and backward of the layer in training mode.
"""

from __future__ import annotations

import importlib
from typing import Any, ClassVar

from bench_cases import Case
from benchmarks.peers import EPS, Session, TorchSession


def make_layer(package: str, case: Case) -> Any:
    """The layer of that package that a case names."""
    kind = getattr(importlib.import_module(package), case.norm)
    match case.norm:
        case "GroupNorm":
            return kind(case.groups, case.shape[1], eps=EPS)
        case "LayerNorm" | "RMSNorm":
            return kind(case.shape[1:], eps=EPS)
        case _:  # affine is not the default of instance norm
            return kind(case.shape[1], eps=EPS, affine=True)


class TorchLayer(TorchSession):
    """torch.nn's layer, eager."""

    package: ClassVar[str] = "torch.nn"

    def __init__(self, case: Case, dtype: Any = None) -> None:
        super().__init__(case, dtype)
        import torch

        x, given = self.inputs["x"], {"weight": "gamma", "bias": "beta"}
        layer = make_layer(self.package, case).to(x.dtype)
        with torch.no_grad():
            for name, parameter in layer.named_parameters():
                parameter.copy_(self.inputs[given[name]])
        self.inputs = {"x": x} | {given[name]: p for name, p in layer.named_parameters()}
        self.layer = layer
        self.run = layer

    def forward(self) -> None:
        self.y = self.run(self.inputs["x"])


class CompiledLayer(TorchLayer):
    """torch.nn's layer through torch.compile."""

    def __init__(self, case: Case, dtype: Any = None) -> None:
        super().__init__(case, dtype)
        import torch

        self.run = torch.compile(self.layer, dynamic=False)


class NormkitLayer(TorchLayer):
    """normkit's layer as it comes: small inputs go to PyTorch's own operators."""

    package = "normkit.torch"


LAYER_PEERS: dict[str, type[Session]] = {
    "nn": TorchLayer,
    "nn-compiled": CompiledLayer,
    "normkit-layer": NormkitLayer,
}
