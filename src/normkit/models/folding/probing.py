"""What a norm layer does, found by calling a copy of it: a class may do more than its name says.

Nothing here knows of libraries: a layer is what torch.nn's of its kind is, with an activation
behind that perhaps, or it is left alone.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from normkit.models.folding.algebra import Affine, Change, Layer, affine_of, changed
from normkit.models.folding.ends import Form
from normkit.models.folding.replacing import set_tensor
from normkit.models.sites import NormSite
from normkit.words import first_line

__all__ = ["form_of", "scales_with_weights", "tail_of", "without_affine"]

Tensor = torch.Tensor
#: Relative difference at which a layer counts as another: some compute in float32 come what may.
_TOLERANCE = 1e-6
_SAMPLES = 3


def form_of(site: NormSite) -> Form | str:
    """Where a layer's channels are and what it does behind the norm; or why it is not one.

    >>> from normkit.models.sites import site_of
    >>> form_of(site_of("norm", nn.BatchNorm2d(4).eval()))
    Form(axis=1, tail='')
    >>> form_of(site_of("norm", nn.LayerNorm(4).eval()))
    Form(axis=-1, tail='')
    """
    affine = affine_of(site)
    affine = Affine(affine.scale.cpu(), affine.shift.cpu())
    shape = getattr(site.module, "normalized_shape", ())
    if isinstance(shape, (tuple, list)) and len(shape) > 1:
        return f"it normalizes over {len(shape)} axes, of which no layer mixes all"
    try:
        trial = copy.deepcopy(site.module).cpu().double()
    except Exception as error:  # whatever a user's layer does
        return f"it cannot be copied: {first_line(error)}"
    attempts = _fixed if site.tracks else _gains
    answered, said = False, ""
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for form, matches in attempts(site, trial, affine):
            try:
                if matches():
                    return form
                answered = True
            except Exception as error:
                said = said or first_line(error)
    if answered:
        return f"{site.type_name} does not do what a {site.kind} norm does"
    return f"{site.type_name} cannot be tried out: {said}"


_Attempts = Iterator[tuple[Form, Callable[[], bool]]]


def _fixed(site: NormSite, trial: nn.Module, affine: Affine) -> _Attempts:
    """A norm with running statistics: scale and shift, and perhaps a tail."""
    assert site.mean is not None
    assert site.var is not None
    for sizes in _sizes(site):
        spread = site.var.detach().cpu().double().sqrt() + 1e-3
        x = torch.randn(_SAMPLES, len(affine.scale), *sizes, dtype=torch.float64)
        x = 2 * x * _along(spread, x) + _along(site.mean.detach().cpu().double(), x)
        y = x * _along(affine.scale, x) + _along(affine.shift, x)
        for tail in (tail_of(trial), nn.Identity()):
            name = "" if isinstance(tail, nn.Identity) else _name(tail)
            yield Form(1, name), lambda x=x, y=y, tail=tail: _alike(trial(x.clone()), tail(y))  # type: ignore[misc]


def _gains(site: NormSite, trial: nn.Module, affine: Affine) -> _Attempts:
    """A norm of which gamma and beta alone can be folded: they come last."""
    plain = copy.deepcopy(trial)
    _fill(plain)
    channels = len(affine.scale)
    last = [(-1, (_SAMPLES, 2, channels))] if site.kind in ("layer", "rms") else []
    for axis, shape in [*last, *((1, (_SAMPLES, channels, *sizes)) for sizes in _sizes(site))]:
        x = torch.randn(shape, dtype=torch.float64)
        scale, shift = (_along(v, x, axis) for v in (affine.scale, affine.shift))

        def matches(x: Tensor = x, scale: Tensor = scale, shift: Tensor = shift) -> bool:
            return _alike(trial(x.clone()), plain(x.clone()) * scale + shift)

        yield Form(axis), matches


def _sizes(site: NormSite) -> list[tuple[int, ...]]:
    """Spatial sizes that a layer may be called with."""
    if site.dims == 1 and site.kind == "batch":
        return [(), (5,)]
    known = [(5,), (2, 3), (2, 3, 2)]
    return known[site.dims - 1 : site.dims] if site.dims else [(2, 3), (5,), (), (2, 3, 2)]


def _along(values: Tensor, x: Tensor, axis: int = 1) -> Tensor:
    shape = [1] * x.dim()
    shape[axis] = -1
    return values.reshape(shape)


def _alike(got: Any, want: Tensor) -> bool:
    if not isinstance(got, Tensor) or got.shape != want.shape:
        return False
    got = got.double()
    return bool((got - want).abs().max() <= _TOLERANCE * want.abs().max().clamp(min=1e-30))


# --- what is left of a norm -----------------------------------------------------------------------


def tail_of(module: nn.Module) -> nn.Module:
    """What a layer with an activation of its own would do behind the norm, as far as one can see.

    Either it is named, or it is one of the layer's children.
    """
    name = getattr(module, "activation", None)
    if isinstance(name, str):
        make = _ACTIVATIONS.get(name.lower())
        slope = getattr(module, "activation_param", None)
        if make is not None:
            return make(slope) if name in ("leaky_relu", "elu") and slope is not None else make()
    inner = [child for child in module.children() if not isinstance(child, nn.Identity)]
    if not inner:
        return nn.Identity()
    return inner[0] if len(inner) == 1 else nn.Sequential(*inner)


_ACTIVATIONS: dict[str, Callable[..., nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "gelu_tanh": lambda: nn.GELU(approximate="tanh"),
    "silu": nn.SiLU,
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "hardswish": nn.Hardswish,
}


def _name(tail: nn.Module) -> str:
    parts = list(tail) if isinstance(tail, nn.Sequential) else [tail]
    return " and ".join(type(part).__name__ for part in parts)


def without_affine(site: NormSite, form: Form) -> tuple[dict[str, Tensor | None], dict[str, bool]]:
    """What gamma and beta become when they are folded, and the attributes that say so.

    None where the layer can do without them, as torch.nn's can; else ones and zeros.
    """
    names = [
        name for name, held in (("weight", site.gamma), ("bias", site.beta)) if held is not None
    ]
    flags = {f: False for f in ("elementwise_affine", "affine") if hasattr(site.module, f)}
    trial, plain = (copy.deepcopy(site.module).cpu().double() for _ in range(2))
    _fill(plain)
    assert site.channels is not None
    shape = (_SAMPLES, 2, site.channels)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for sizes in [None] if form.axis == -1 else _sizes(site):
            x = torch.randn(shape if sizes is None else (_SAMPLES, site.channels, *sizes)).double()
            try:
                for name in names:
                    set_tensor(trial, name, None)
                vars(trial).update(flags)
                if _alike(trial(x.clone()), plain(x.clone())):
                    return dict.fromkeys(names), flags
            except Exception:
                continue
    values = {"weight": torch.ones_like, "bias": torch.zeros_like}
    return {name: values[name](getattr(site.module, name).detach()) for name in names}, {}


def _fill(module: nn.Module) -> None:
    """Gamma of ones and beta of zeros."""
    for name, value in (("weight", 1.0), ("bias", 0.0)):
        held = getattr(module, name, None)
        if isinstance(held, Tensor):
            set_tensor(module, name, torch.full_like(held, value))


# --- layers ---------------------------------------------------------------------------------------


def scales_with_weights(layer: Layer, module: nn.Module) -> bool:
    """Whether a layer with a forward of its own does to its weights no more than torch.nn's would.

    Some pad in another way: then a norm behind them can go in all the same. Others normalize their
    weights, and then it cannot.
    """
    try:
        trial = copy.deepcopy(module).cpu().double()
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            sizes = [] if layer.kind == "linear" else [9 + 2 * k for k in layer.weight.shape[2:]]
            x = torch.randn(_SAMPLES, layer.inputs, *sizes, dtype=torch.float64)
            affine = Affine(*torch.randn(2, layer.outputs, dtype=torch.float64))
            y = trial(x.clone())
            new = changed(layer, [Change(affine, "outputs")])
            set_tensor(trial, "weight", new.weight)
            set_tensor(trial, "bias", new.bias)
            return _alike(trial(x.clone()), y * _along(affine.scale, y) + _along(affine.shift, y))
    except Exception:  # whatever a user's layer does
        return False
