"""Norm layers that stand still while the rest of a model trains."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn.parameter import is_lazy

from normkit.errors import OptionError
from normkit.torch.adopt import adopt, adoptable
from normkit.torch.layers.base import KernelLayer
from normkit.torch.layers.running import RunningLayer

__all__ = ["freeze", "unfreeze"]


def freeze(model: nn.Module, stats: bool = True, affine: bool = True) -> list[str]:
    """Keep the model's norm layers as they are, whatever ``model.train()`` says later.

    A layer with frozen statistics normalizes with its running statistics in training as in eval,
    bit for bit, and does not move them; where gamma needs no gradient either, it keeps no input
    for backward. torch.nn's layers among them become normkit's.

    Args:
        model: a model, or a single layer.
        stats: freeze running statistics.
        affine: stop gradients of gamma and beta; :func:`unfreeze` knows which had them.

    Returns:
        Names of the layers that were changed.

    Raises:
        OptionError: neither is to be frozen.

    >>> import torch, normkit.torch as nt
    >>> net = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.BatchNorm1d(3))
    >>> freeze(net)
    ['1']
    >>> before = net[1].running_mean.clone()
    >>> y = net.train()(torch.randn(8, 3))
    >>> bool((net[1].running_mean == before).all()), net[1].weight.requires_grad
    (True, False)
    >>> unfreeze(net)
    ['1']
    """
    if not stats and not affine:
        raise OptionError(
            "Nothing to freeze",
            received="stats=False, affine=False",
            expected="at least one True",
            remedy="unfreeze(model) undoes a freeze.",
        )
    changed = []
    for name, layer in model.named_modules():
        if any(is_lazy(p) for p in layer.parameters(recurse=False)) and adoptable(layer):
            raise OptionError(
                "A lazy layer cannot be frozen yet",
                received=f"{type(layer).__name__} {name!r}",
                expected="layers that know their channels",
                remedy="Run an input through the model first.",
            )
    for name, layer in model.named_modules():
        adopt(layer)
        if isinstance(layer, KernelLayer) and _freeze(layer, stats, affine):
            changed.append(name)
    return changed


def _freeze(layer: Any, stats: bool, affine: bool) -> bool:
    done = False
    if stats and isinstance(layer, RunningLayer) and layer.running_mean is not None:
        layer.statistics_frozen = done = True
    if affine:
        thawed = layer.__dict__.setdefault("_affine_before_freeze", {})
        for name, parameter in layer.named_parameters(recurse=False):
            thawed.setdefault(name, parameter.requires_grad)
            parameter.requires_grad_(False)
            done = True
    return done


def unfreeze(model: nn.Module) -> list[str]:
    """Undo :func:`freeze`: statistics move in training, gamma and beta learn if they did before.

    Returns:
        Names of the layers that were changed.
    """
    changed = []
    for name, layer in model.named_modules():
        thawed = layer.__dict__.pop("_affine_before_freeze", {})
        frozen = layer.__dict__.pop("statistics_frozen", False)
        for parameter, learned in thawed.items():
            getattr(layer, parameter).requires_grad_(learned)
        if thawed or frozen:
            changed.append(name)
    return changed
