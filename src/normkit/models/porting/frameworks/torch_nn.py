"""PyTorch: torch.nn's norms, normkit's, and layers of others that are recognised by structure."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.modules.lazy import LazyModuleMixin

from normkit.errors import ModelError
from normkit.models.porting.conventions import complement
from normkit.models.porting.frameworks.base import Framework, refuse
from normkit.models.porting.parity import Outcome
from normkit.models.porting.weights import NormWeights, whole_sizes
from normkit.models.sites import NormSite, site_of

__all__ = ["Torch", "weights_of_site"]

Array = Any
Tensor = torch.Tensor
_PLAIN_CONVERT = (
    'normkit.models.convert(model, "batch") makes it a plain one, where that is wanted.'
)


class Torch(Framework):
    """torch.nn.Module."""

    name = "torch"

    def owns(self, source: Any) -> bool:
        return isinstance(source, nn.Module)

    def version(self) -> str:
        return f"PyTorch {torch.__version__}"

    def is_layer(self, source: Any) -> bool:
        return site_of("", source) is not None or _is_lazy(source)

    def layers(self, model: Any) -> list[tuple[str, Any]]:
        return [(name, module) for name, module in model.named_modules() if self.is_layer(module)]

    def read(self, layer: Any, name: str = "") -> NormWeights:
        if _is_lazy(layer):
            raise ModelError(
                "The number of channels is not known",
                received=f"{type(layer).__name__} that has seen no input"
                + (f" ({name})" if name else ""),
                expected="a layer with weights",
                remedy="Run the model on an example first.",
            )
        site = site_of(name, layer)
        if site is None:
            refuse(
                "torch",
                name,
                f"{type(layer).__name__}, which is no norm that is known",
                "Port the norm layers, or models that hold some.",
            )
        _check_options(site)
        if isinstance(layer, nn.RMSNorm) and layer.eps is None:  # computed in float32 at least
            wide = torch.float32 if site.gamma is None else site.gamma.dtype
            site = replace(site, eps=torch.finfo(torch.promote_types(wide, torch.float32)).eps)
        return weights_of_site(site, "torch")

    def write(self, weights: NormWeights) -> nn.Module:
        layer = _make(weights).to(_dtype(weights))
        _fill(layer, weights)
        return layer.eval()

    def unknown_rank(self, weights: NormWeights) -> str:
        ranked = weights.kind in ("batch", "instance") and not weights.synced
        ranked = ranked and weights.dims is None
        return "PyTorch has a layer for each number of positions" if ranked else ""

    def run(self, layer: Any, weights: NormWeights, x: Array, training: bool) -> Outcome:
        own = copy.deepcopy(layer).double().cpu()
        if isinstance(own, nn.SyncBatchNorm) and training:  # it wants a process group
            own = _apart(own)
        own.train(training)
        if isinstance(own, nn.RMSNorm) and own.eps is None:
            own.eps = weights.eps  # None would be float64's here
        if weights.kind == "batch" and weights.eps == 0:
            own.eps = 1e-300  # PyTorch wants some in training; this adds nothing
        if weights.kind == "batch" and training:
            _unfreeze(own)
        with torch.no_grad():
            y = own(torch.from_numpy(np.ascontiguousarray(x))).numpy()
        if not (training and weights.kind == "batch"):
            return Outcome(y)
        return Outcome(y, own.running_mean.numpy(), own.running_var.numpy())

    def holds(self, weights: NormWeights) -> NormWeights:
        if weights.kind == "batch" and weights.eps == 0:
            return weights.noted("PyTorch refuses to train a batch norm with an eps of 0")
        return weights

    def assign(self, model: Any, weights: Mapping[str, NormWeights]) -> Any:
        layers = dict(self.layers(model))
        for name, one in weights.items():
            _fill(layers[name], one)
        return model


def _is_lazy(module: Any) -> bool:
    lazy = isinstance(module, LazyModuleMixin) and "Norm" in type(module).__name__
    return lazy and LazyModuleMixin.has_uninitialized_params(module)


def weights_of_site(site: NormSite, framework: str) -> NormWeights:
    """A norm that was found in a module, a checkpoint or an ONNX model.

    Raises:
        ModelError: its kind has no counterpart, or it does not say what is needed.
    """
    if site.kind == "other":
        refuse(
            framework,
            site.name,
            f"{site.type_name}, which is no norm over a set of elements",
            "Leave it out, or port it by hand.",
        )
    if site.eps is None:
        raise ModelError(
            "A file of weights does not say eps",
            received=f"{site.name} without eps",
            expected="eps= as in the model's code",
            remedy="PyTorch's default is 1e-5; many transformers have 1e-12 or 1e-6.",
        )
    _check_present(site)
    _check_statistics(site, framework)
    notes = []
    if site.frozen or (site.kind == "batch" and site.learns is False):
        notes.append("frozen in the source; the target's layer is not")
    narrow = [t for t in (site.gamma, site.mean) if t is not None and t.dtype is torch.bfloat16]
    if narrow:
        notes.append("weights of bfloat16 widened to float32")
    if site.kind == "rms" and getattr(site.module, "eps", 0.0) is None:
        notes.append("eps was left to the dtype")
    keep = None if site.momentum is None else complement(site.momentum)
    batch = site.kind == "batch"
    return NormWeights(
        site.kind,
        _shape(site),
        site.eps,
        _array(site.gamma),
        _array(site.beta),
        _array(site.mean) if batch else None,
        _array(site.var) if batch else None,
        keep=keep if batch else None,
        variance="unbiased" if batch else None,
        groups=site.groups,
        channels=None if site.kind in ("layer", "rms") else "first",
        dims=site.dims,
        synced=site.synced,
        name=site.name,
        framework=framework,
        narrow=bool(narrow),
        notes=tuple(notes),
    )


def _check_present(site: NormSite) -> None:
    held = (site.gamma, site.beta, site.mean, site.var)
    if any(tensor is not None and tensor.is_meta for tensor in held):
        raise ModelError(
            "A layer has no weights, only their shapes",
            received=f"tensors on the meta device{f' ({site.name})' if site.name else ''}",
            expected="weights",
            remedy="Load the weights first: model.to_empty(device=...) and load_state_dict.",
        )


def _check_statistics(site: NormSite, framework: str) -> None:
    if site.kind == "instance" and site.tracks:
        refuse(
            framework,
            site.name,
            "an instance norm with running statistics",
            "In inference it is a batch norm: make it one with the same statistics.",
        )
    if site.kind != "batch":
        return
    if not site.tracks:
        refuse(
            framework,
            site.name,
            "a batch norm without running statistics",
            "Give it some: normkit.models.recalibrate(model, data), with track_running_stats=True.",
        )
    if site.cumulative:
        refuse(
            framework,
            site.name,
            "momentum=None, a cumulative average",
            "Set momentum to a number first, such as 0.1.",
        )


def _check_options(site: NormSite) -> None:
    """Refuse, by name, what normkit's layers can do and others cannot."""
    options = getattr(site.module, "options", None)
    usual = None if options is None else vars(type(options)())
    changed = [f"{n}={v!r}" for n, v in vars(options).items() if v != usual[n]] if usual else []
    if changed:
        refuse("torch", site.name, f"{site.type_name} with {', '.join(changed)}", _PLAIN_CONVERT)
    if site.type_name.startswith(("Adaptive", "Split")):
        refuse(
            "torch",
            site.name,
            f"{site.type_name}, with statistics of its own for each domain",
            _PLAIN_CONVERT,
        )


def _shape(site: NormSite) -> tuple[int, ...]:
    given = getattr(site.module, "normalized_shape", None)
    if isinstance(given, (tuple, list)) and given:
        return whole_sizes(given, site.name)
    for tensor in (site.gamma, site.beta, site.mean):
        if tensor is not None:
            return tuple(tensor.shape)
    return whole_sizes((site.channels,), site.name)


def _array(tensor: Tensor | None) -> Array | None:
    if tensor is None:
        return None
    value = tensor.detach().cpu()
    return value.float().numpy() if value.dtype is torch.bfloat16 else value.numpy()


def _dtype(weights: NormWeights) -> torch.dtype:
    return torch.float64 if weights.dtype == np.float64 else torch.float32


def _make(weights: NormWeights) -> nn.Module:
    affine = weights.gamma is not None
    if weights.kind == "layer":
        return nn.LayerNorm(
            weights.shape, weights.eps, elementwise_affine=affine, bias=weights.beta is not None
        )
    if weights.kind == "rms":
        return nn.RMSNorm(weights.shape, weights.eps, elementwise_affine=affine)
    if weights.kind == "group":
        assert weights.groups is not None
        return nn.GroupNorm(weights.groups, weights.size, weights.eps, affine)
    dims = max(weights.dims or 0, 1)  # BatchNorm1d takes (N, C) and (N, C, L)
    if weights.kind == "instance":
        made = getattr(nn, f"InstanceNorm{dims}d")
        return made(weights.size, weights.eps, affine=affine)
    made = nn.SyncBatchNorm if weights.synced else getattr(nn, f"BatchNorm{dims}d")
    return made(weights.size, weights.eps, affine=affine)


_ATTRIBUTES = ("weight", "bias", "running_mean", "running_var")
_EPS = ("eps", "variance_epsilon", "epsilon")


def _fill(layer: nn.Module, weights: NormWeights) -> None:
    values = (weights.gamma, weights.beta, weights.mean, weights.var)
    with torch.no_grad():
        for name, value in zip(_ATTRIBUTES, values, strict=True):
            if value is not None:
                getattr(layer, name).copy_(torch.from_numpy(value.copy()))
    held = next(name for name in _EPS if hasattr(layer, name))
    setattr(layer, held, weights.eps)
    if weights.kind == "batch" and weights.keep is not None:
        layer.momentum = complement(weights.keep)  # type: ignore[assignment]


def _any_dimensions(_: Tensor) -> None:
    """A synchronized layer takes them all."""


def _apart(layer: nn.Module) -> nn.Module:
    plain = nn.BatchNorm3d(layer.num_features, layer.eps, layer.momentum, layer.affine).double()  # type: ignore[arg-type]
    plain._check_input_dim = _any_dimensions  # type: ignore[assignment, method-assign]
    plain.load_state_dict(layer.state_dict())
    return plain


def _unfreeze(layer: nn.Module) -> None:
    if getattr(layer, "statistics_frozen", False):
        from normkit.torch import unfreeze

        unfreeze(layer)
