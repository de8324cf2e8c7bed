"""Initialization of weight-normalized layers from a minibatch (Salimans & Kingma 2016)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.utils import parametrize

from normkit.errors import NormError, OptionError
from normkit.torch.beyond.common import moments, widened
from normkit.torch.beyond.weights import WeightNorm, weight_norm_of

__all__ = ["data_dependent_init"]


def data_dependent_init(model: nn.Module, data: Any) -> nn.Module:
    """Give every weight-normalized layer pre-activations of mean 0 and variance 1 on a minibatch.

    Salimans & Kingma 2016, section 3: with t = v·x / |v|, g ← 1/σ[t] and b ← −μ[t]/σ[t] for each
    output feature, in one forward pass, so that a layer meets what initialized layers put out. The
    model is in evaluation mode meanwhile: dropout adds no noise, running statistics stay.

    A layer without bias gets its variance only. A layer that is used several times is initialized
    by its first use.

    Args:
        model: with linear layers or (transposed) convolutions under :func:`weight_norm`.
        data: the minibatch; a tuple is passed as several arguments.

    Returns:
        The model, with each module's training mode as it was.

    Raises:
        OptionError: no weight-normalized layer; one that this does not fit, or that the forward
            pass does not reach.
        NormError: a feature is constant on the minibatch.

    After any error, also one in the model itself, g, b and training modes are as they were.

    >>> import torch
    >>> from normkit.torch.beyond import weight_norm
    >>> model = torch.nn.Sequential(weight_norm(torch.nn.Linear(3, 4)), torch.nn.Tanh())
    >>> x = torch.arange(24.0).view(8, 3).sin()
    >>> t = data_dependent_init(model, x)[0](x)
    >>> bool(t.mean(0).abs().max() < 1e-6), bool((t.std(0, correction=0) - 1).abs().max() < 1e-5)
    (True, True)
    """
    layers = _layers_to_initialize(model)
    waiting = {id(layer): name for name, layer in layers}
    with torch.no_grad(), _undone_on_error(layers), _evaluating(model), _hooks(layers, waiting):
        model(*data) if isinstance(data, tuple) else model(data)
        if waiting:
            raise OptionError(
                "The forward pass does not reach every weight-normalized layer",
                received=f"no call of {', '.join(waiting.values())}",
                expected="each layer called as a module",
                remedy="Pass data that uses them, or initialize the used part of the model alone.",
            )
    return model


def _layers_to_initialize(model: nn.Module) -> list[tuple[str, Any]]:
    layers = []
    for name, module in model.named_modules():
        chains: Any = getattr(module, "parametrizations", None)
        if not parametrize.is_parametrized(module, "weight"):
            continue
        if not any(isinstance(p, WeightNorm) for p in chains["weight"]):
            continue
        chain = weight_norm_of(module, "weight")
        per_feature = chain is not None and _is_per_feature(module, chain[0])
        if not per_feature or "bias" in chains:
            raise OptionError(
                "A layer cannot be initialized from data",
                received=f"{name or 'the model'}, a {type(module).__name__}, with {chains}",
                expected="a linear layer or convolution with weight_norm() alone, one norm for "
                "each output feature",
                remedy='Use weight_norm(layer) with dim="output", and no other parametrization.',
            )
        layers.append((name or "the model", module))
    if not layers:
        raise OptionError(
            "There is nothing to initialize from data",
            received=f"a {type(model).__name__} without weight-normalized layers",
            expected="at least one",
            remedy="Apply normkit's weight_norm() to its layers first.",
        )
    return layers


def _is_per_feature(module: Any, norm: WeightNorm) -> bool:
    if isinstance(module, _ConvTransposeNd):
        return norm.dim == 1 and norm.groups == module.groups
    return isinstance(module, nn.Linear | _ConvNd) and norm.dim == 0


@contextmanager
def _undone_on_error(layers: list[tuple[str, Any]]) -> Iterator[None]:
    touched = [p for _, layer in layers for p in (_g(layer), layer.bias) if p is not None]
    before = [p.detach().clone() for p in touched]
    try:
        yield
    except BaseException:
        for parameter, value in zip(touched, before, strict=True):
            parameter.copy_(value)
        raise


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        yield
    finally:
        for module, mode in modes:  # each its own: parts of a model may be frozen
            module.training = mode


@contextmanager
def _hooks(layers: list[tuple[str, Any]], waiting: dict[int, str]) -> Iterator[None]:
    handles = []
    try:
        for name, layer in layers:
            handles.append(layer.register_forward_pre_hook(_before(waiting)))
            # First of the layer's hooks: t is what the layer itself puts out.
            handles.append(layer.register_forward_hook(_after(name, waiting), prepend=True))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _before(waiting: dict[int, str]) -> Any:
    def neutral(layer: Any, _: Any) -> None:
        if id(layer) in waiting:
            _g(layer).fill_(1)
            if layer.bias is not None:
                layer.bias.zero_()

    return neutral


def _after(name: str, waiting: dict[int, str]) -> Any:
    def initialize(layer: Any, _: Any, t: torch.Tensor) -> torch.Tensor | None:
        if waiting.pop(id(layer), None) is None:
            return None
        # From the back: inputs without a batch axis have one axis less.
        axis = t.dim() - (len(layer.kernel_size) + 1 if isinstance(layer, _ConvNd) else 1)
        wide = widened(t)
        mean, var = moments(wide, tuple(d for d in range(t.dim()) if d != axis))
        # Of a constant feature rounding leaves some spread, about an ulp of the mean.
        noise = (4 * torch.finfo(t.dtype).eps * mean).square()
        good = (var > noise) & var.isfinite()  # NaN fails both
        if not bool(good.all()):
            raise NormError(
                f"Features of {name} are constant on this minibatch, or not finite",
                received=f"{int((~good).sum())} of {var.numel()} without a finite variance above "
                f"0, from an output of shape {tuple(t.shape)}",
                expected="several different values for each feature",
                remedy="Pass a larger or more varied minibatch.",
            )
        scale = var.rsqrt()
        _g(layer).copy_(scale.reshape(_g(layer).shape))
        if layer.bias is None:
            return (wide * scale).to(t.dtype)
        layer.bias.copy_((-mean * scale).flatten())
        return ((wide - mean) * scale).to(t.dtype)

    return initialize


def _g(layer: Any) -> torch.Tensor:
    return layer.parametrizations.weight.original0
