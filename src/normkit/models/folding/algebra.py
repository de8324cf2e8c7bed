"""What folding computes: a scale and a shift of channels taken into a layer's weights, in float64.

A norm whose statistics stand still is y = scale·x + shift for each channel. Behind a layer that is
linear in its weights, scale multiplies the weights of each output channel and its bias; in front of
one, scale multiplies the weights that read each input channel, and what the shift contributes is
the same everywhere and goes into the bias.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from normkit.models.sites import NormSite

__all__ = ["Affine", "Change", "Layer", "affine_of", "changed"]

Tensor = torch.Tensor


@dataclass(frozen=True, eq=False)
class Affine:
    """y = scale·x + shift for each channel; both (C,), float64.

    >>> a = Affine(torch.tensor([2.0, 3.0]), torch.tensor([0.0, 1.0]))
    >>> a.repeated(outer=1, inner=2).scale.tolist(), a.repeated(outer=2, inner=1).scale.tolist()
    ([2.0, 2.0, 3.0, 3.0], [2.0, 3.0, 2.0, 3.0])
    """

    scale: Tensor
    shift: Tensor

    @property
    def has_shift(self) -> bool:
        """Whether any channel is shifted."""
        return bool(self.shift.count_nonzero())

    @property
    def keeps_order(self) -> bool:
        """Whether no channel is turned around, so that a maximum stays one."""
        return bool((self.scale >= 0).all())

    def repeated(self, outer: int, inner: int) -> Affine:
        """For features of which channel c holds those at (o·C + c)·inner + i, o < outer."""
        scale, shift = (v.repeat_interleave(inner).repeat(outer) for v in (self.scale, self.shift))
        return Affine(scale, shift)


def affine_of(site: NormSite) -> Affine:
    """What a norm does to a channel once it is normalized, or altogether.

    Batch norm, and instance norm with running statistics: the whole layer. Other norms: gamma and
    beta alone.
    """
    assert site.channels is not None
    device = next((t.device for t in (site.gamma, site.beta, site.var) if t is not None), None)
    ones = torch.ones(site.channels, dtype=torch.float64, device=device)
    gamma = ones if site.gamma is None else site.gamma.detach().double().reshape(-1)
    beta = torch.zeros_like(ones) if site.beta is None else site.beta.detach().double().reshape(-1)
    if not site.tracks:
        return Affine(gamma, beta)
    assert site.mean is not None
    assert site.var is not None
    scale = gamma / torch.sqrt(site.var.detach().double() + (site.eps or 0.0))
    return Affine(scale, beta - site.mean.detach().double() * scale)


@dataclass(frozen=True, eq=False)
class Layer:
    """The weights of a layer that a norm can go into.

    Args:
        kind: ``"conv"``, ``"conv_transpose"`` or ``"linear"``.
        weight: as torch.nn keeps it: conv (out, in/groups, ...), conv_transpose
            (in, out/groups, ...), linear (out, in).
        bias: (out,), or None.
        groups: of a convolution.
        opaque: why it is not known what the weights meet, in which case a norm behind the layer
            can go in, and none before it; "" where it is.
    """

    kind: str
    weight: Tensor
    bias: Tensor | None = None
    groups: int = 1
    opaque: str = ""

    @property
    def inputs(self) -> int:
        """Input channels."""
        transposed = self.kind == "conv_transpose"
        return self.weight.shape[0] if transposed else self.weight.shape[1] * self.groups

    @property
    def outputs(self) -> int:
        """Output channels."""
        transposed = self.kind == "conv_transpose"
        return self.weight.shape[1] * self.groups if transposed else self.weight.shape[0]


@dataclass(frozen=True, eq=False)
class Change:
    """One norm taken into one layer.

    Args:
        affine: one value for each channel that the layer has on this side.
        side: ``"outputs"`` where the norm came behind the layer, ``"inputs"`` where before.
    """

    affine: Affine
    side: str


def changed(layer: Layer, changes: Any) -> Layer:
    """The layer with norms taken in one after the other; weight and bias in float64.

    >>> layer = Layer("linear", torch.tensor([[1.0, 2.0]]))
    >>> affine = Affine(torch.tensor([10.0, 1.0]), torch.tensor([0.0, 3.0]))
    >>> new = changed(layer, [Change(affine, "inputs")])
    >>> new.weight.tolist(), new.bias.tolist()
    ([[10.0, 2.0]], [6.0])
    """
    bias = None if layer.bias is None else layer.bias.detach().double()
    layer = replace(layer, weight=layer.weight.detach().double(), bias=bias)
    for change in changes:
        layer = (_outputs if change.side == "outputs" else _inputs)(layer, change.affine)
    return layer


def _outputs(layer: Layer, affine: Affine) -> Layer:
    scale, shift = (v.to(layer.weight) for v in (affine.scale, affine.shift))
    if layer.kind == "conv_transpose":
        weight = _by_groups(layer)  # (groups, in/groups, out/groups, ...)
        weight = weight * scale.reshape(layer.groups, 1, -1, *[1] * (weight.dim() - 3))
    else:
        weight = layer.weight * scale.reshape(-1, *[1] * (layer.weight.dim() - 1))
    bias = None if layer.bias is None else layer.bias * scale
    return _with(layer, weight, bias, shift)


def _inputs(layer: Layer, affine: Affine) -> Layer:
    assert layer.kind != "conv_transpose", "a shift gives its borders another bias"
    scale, shift = (v.to(layer.weight) for v in (affine.scale, affine.shift))
    weight = _by_groups(layer)  # (groups, out/groups, in/groups, ...)
    shape = (layer.groups, 1, -1, *[1] * (weight.dim() - 3))
    added = (weight * shift.reshape(shape)).flatten(2).sum(2).reshape(-1)
    return _with(layer, weight * scale.reshape(shape), layer.bias, added)


def _by_groups(layer: Layer) -> Tensor:
    first, *rest = layer.weight.shape
    return layer.weight.reshape(layer.groups, first // layer.groups, *rest)


def _with(layer: Layer, weight: Tensor, bias: Tensor | None, added: Tensor) -> Layer:
    """The layer with this weight, and a bias that it did not have only where there must be one."""
    if bias is None and added.count_nonzero():
        bias = torch.zeros_like(added)
    bias = None if bias is None else bias + added
    return replace(layer, weight=weight.reshape(layer.weight.shape), bias=bias)
