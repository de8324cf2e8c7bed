"""Norms in a checkpoint, found by the names and shapes of its tensors alone."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch

from normkit.models.sites import NormSite

__all__ = ["named_sites"]

Tensor = torch.Tensor

# What PyTorch, Keras, TensorFlow and Flax call the same thing.
_ROLES = {
    "weight": "gamma", "gamma": "gamma", "scale": "gamma",
    "bias": "beta", "beta": "beta",
    "running_mean": "mean", "moving_mean": "mean", "mean": "mean",
    "running_var": "var", "moving_variance": "var", "moving_var": "var", "var": "var",
    "num_batches_tracked": "batches",
}  # fmt: skip

# Whose statistics they are, by words that a layer's name begins or ends with.
_KINDS = (
    ("instance", re.compile(r"instance|(^|_)in\d*$")),
    ("group", re.compile(r"group_?n|(^|_)gn\d*$")),
    ("rms", re.compile(r"rms")),
    ("batch", re.compile(r"batch_?n|(^|_)bn\d*$|(^|_)bn(_|$)")),
    ("layer", re.compile(r"layer_?norm|(^|_)ln(\d*$|_)|norm")),
)


def named_sites(tensors: Mapping[str, Tensor]) -> list[NormSite]:
    """The norms of a state_dict, in its order, as far as one can tell from names and shapes.

    Running statistics make a batch norm (an instance norm if the name says so). One-dimensional
    weights without them are taken for a norm's where the layer has nothing else and has a bias, or
    a name like a norm's; their kind is read off the name, or guessed: with a bias a layer norm,
    without one an RMS norm. eps and momentum are in no checkpoint: they stay None.

    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8))
    >>> [(s.name, s.kind, s.channels, s.eps) for s in named_sites(net.state_dict())]
    [('1', 'batch', 8, None)]
    """
    layers: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        path, role = _parts(name)
        layers.setdefault(path, {})[role] = tensor
    sites = (_site(path, roles) for path, roles in layers.items())
    return [site for site in sites if site is not None]


def _parts(name: str) -> tuple[str, str]:
    """The layer's path, and what the tensor is to it."""
    name = re.sub(r":\d+$", "", name)  # TensorFlow numbers its results
    separator = "/" if "/" in name and "." not in name else "."
    path, _, last = name.rpartition(separator)
    if separator == "/":  # Flax keeps a layer's halves in two collections
        path = re.sub(r"^(params|batch_stats)/", "", path)
    return path, _ROLES.get(last, f"={last}")


def _site(path: str, roles: dict[str, Tensor]) -> NormSite | None:
    mean, var = roles.get("mean"), roles.get("var")
    gamma, beta = (_row(roles.get(role)) for role in ("gamma", "beta"))
    if mean is not None and var is not None:
        if mean.shape != var.shape or mean.dim() not in (1, 2) or not mean.numel():
            return None
        kind = "instance" if _kind(path) == "instance" else "batch"
        called, channels = "running statistics", var.shape[-1]
    elif _only_affine(roles):
        named = _kind(path)
        if gamma is None or (named is None and (beta is None or len(gamma) < 2)):
            return None  # a PReLU's or a layer scale's weight, or a lone bias
        kind = named or "layer"
        if kind == "layer" and beta is None:
            kind = "rms"
        called, channels = f"1-D weight{'' if beta is None else ' and bias'}", len(gamma)
    else:
        return None
    batches = roles.get("batches")
    return NormSite(
        name=path,
        kind=kind,
        type_name=called,
        channels=channels,
        gamma=gamma,
        beta=beta,
        mean=mean,
        var=var,
        batches=int(batches.max()) if batches is not None and batches.numel() else None,
        tracks=var is not None,
    )


def _row(tensor: Tensor | None) -> Tensor | None:
    return tensor if tensor is not None and tensor.dim() == 1 and tensor.numel() else None


def _only_affine(roles: Mapping[str, Tensor]) -> bool:
    """Nothing but one-dimensional gamma and beta of one length."""
    shapes = {tuple(tensor.shape) for tensor in roles.values()}
    return set(roles) <= {"gamma", "beta"} and len(shapes) == 1 and len(shapes.pop()) == 1


def _kind(path: str) -> str | None:
    """By the innermost part of the path that says it."""
    for part in reversed(_words(path)):
        for kind, pattern in _KINDS:
            if pattern.search(part):
                return kind
        if not part.isdigit():
            return None  # an outer part names a block, not this layer
    return None


def _words(path: str) -> list[str]:
    return [_snake(part) for part in re.split(r"[./]", path)]


def _snake(part: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", part).lower()
