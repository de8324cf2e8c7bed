"""The model while it is measured: in eval mode, norms on the statistics of the batch at hand."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from normkit.errors import ModelError
from normkit.models.measuring.channels import channel_axis
from normkit.models.measuring.undisturbed import undisturbed
from normkit.models.recalibration.averages import Reading
from normkit.models.sites import NormSite
from normkit.moments import Moments
from normkit.norms import BatchNorm, InstanceNorm
from normkit.torch.layers.base import KernelLayer
from normkit.torch.statistics import merge_sets

__all__ = ["Heard", "like", "listening", "measuring", "slot"]

Tensor = torch.Tensor
#: What a call of a norm brings: the site's name, the domain, the reading.
Heard = Callable[[str, int | None, Reading], None]
_CHUNK = 1 << 18  # elements in float64 that stay in cache: 8 times as fast as all at once
_NAMES = ("running_mean", "running_var")
_OPTIONS = ("mask", "lengths", "input_activation", "domain")


def slot(module: nn.Module, name: str) -> dict[str, Any]:
    """Where a module keeps a running statistic, so that another tensor can stand in for it.

    Raises:
        ModelError: it is computed, or not the module's own.
    """
    for own in (module._buffers, module._parameters):
        if own.get(name) is not None:
            return own
    raise ModelError(
        "Running statistics cannot be replaced",
        received=f"{type(module).__name__}, whose {name} is no buffer of its own",
        expected="a buffer or a parameter",
        remedy="Leave that layer out, or register the buffer.",
    )


@contextlib.contextmanager
def measuring(model: nn.Module, sites: Sequence[NormSite]) -> Iterator[None]:
    """Everything in eval mode, and whatever ends the block, all of the model as it was.

    Within it, the running statistics of ``sites`` are copies, nothing takes gradients, and compiled
    parts run as they were written: what torch.compile made of them hears no hooks.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(undisturbed(model))
        stack.enter_context(torch.no_grad())
        if "torch._dynamo" in sys.modules:  # else nothing was compiled, and it is slow to import
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        for module in model.modules():
            module.training = False
        for site in sites:
            for name in _NAMES:
                own = slot(site.module, name)
                own[name] = like(own[name], own[name])
        yield


def like(values: Tensor, stored: Tensor) -> Tensor:
    """A new tensor of the kind of ``stored`` with these values."""
    new = values.detach().to(stored.device, stored.dtype, copy=True)
    return nn.Parameter(new, requires_grad=False) if isinstance(stored, nn.Parameter) else new


@contextlib.contextmanager
def listening(
    sites: Sequence[NormSite], stored: Mapping[str, tuple[Tensor, Tensor]], heard: Heard
) -> Iterator[None]:
    """Hear every call of these norms, and let each normalize with what it is called with.

    Args:
        stored: by site, the mean and variance for sets of a single element, which have none.
        heard: is told of each call.
    """
    handles = []
    before: list[tuple[dict[str, Any], str, Any]] = []
    try:
        for site in sites:
            if site.kind == "instance":  # its samples' own statistics, and none to move
                for name in _NAMES:
                    own = slot(site.module, name)
                    before.append((own, name, own[name]))
                    own[name] = None
                site.module.training = True
            ear = _Ear(site, stored[site.name], heard)
            handles.append(site.module.register_forward_pre_hook(ear, with_kwargs=True))
        yield
    finally:
        for handle in handles:
            handle.remove()
        for own, name, tensor in before:
            own[name] = tensor
        for site in sites:
            site.module.training = False


@dataclass(frozen=True, eq=False)
class _Ear:
    """The hook in front of one norm."""

    site: NormSite
    stored: tuple[Tensor, Tensor]
    heard: Heard

    def __call__(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        x = args[0] if args else kwargs.get("input", next(iter(kwargs.values()), None))
        if not isinstance(x, Tensor):
            raise _no_input(self.site, type(x).__name__)
        if not x.numel():
            return
        x = x.detach()
        options = {n: kwargs.get(n) for n in _OPTIONS} if isinstance(module, KernelLayer) else {}
        domain = options.pop("domain", None)
        parts = [(domain, x)]
        if isinstance(domain, Tensor):  # one a sample; never with a mask
            parts = [(int(d), x[domain.to(x.device) == d]) for d in domain.unique()]
        for number, part in parts:
            reading = self._read(part, options)
            self.heard(self.site.name, number, reading)
            if self.site.kind == "batch":
                self._use(number, reading.moments)

    def _read(self, x: Tensor, options: dict[str, Any]) -> Reading:
        if x.device.type == "mps":  # has no float64
            x = x.cpu()
        axis = _axis(self.site, x)
        if self.site.kind == "instance":
            if axis == 0:
                mask = options.get("mask")
                x, options = x.unsqueeze(0), {**options, "mask": _in_a_batch(mask)}
            sets = _moments(InstanceNorm(), x, 1, options)
            seen = (sets.count > 0).to(sets.mean.dtype)
            share = seen / seen.sum(0).clamp(min=1)
            mean, var = (share * sets.mean).sum(0), (share * sets.population_var).sum(0)
            return Reading(merge_sets(sets), mean, var, x.shape[0])
        moments = _moments(BatchNorm(), x, axis, options)
        return Reading(moments, moments.mean, moments.population_var, x.shape[0])

    def _use(self, domain: int | None, moments: Moments) -> None:
        """Normalize with these statistics; where there are none, with those stored."""
        module = self.site.module
        for name, values, stored in zip(
            _NAMES, (moments.mean, moments.var), self.stored, strict=True
        ):
            own = slot(module, name)
            row = stored if domain is None else stored[domain]
            values = torch.where(moments.count > 1, values, row.to(values))
            if domain is not None:
                table = own[name].detach().clone()
                table[domain] = values.to(table)
                values = table
            own[name] = like(values, own[name])


def _axis(site: NormSite, x: Tensor) -> int:
    """Which axis of x holds the norm's channels."""
    if site.kind == "instance" and hasattr(site.module, "_get_no_batch_dim"):
        return 0 if x.dim() == site.module._get_no_batch_dim() else 1
    axis = channel_axis(site, x)
    if axis is None:
        raise _no_input(site, f"shape {tuple(x.shape)}")
    return axis


def _in_a_batch(mask: Tensor | None) -> Tensor | None:
    return None if mask is None else mask.unsqueeze(0)


def _no_input(site: NormSite, received: str) -> ModelError:
    return ModelError(
        "A norm was called with something else than its channels",
        received=f"{received} at {site.name!r}",
        expected=f"{site.channels} channels along axis 1, or along the last one and no other",
        remedy="Look at what comes into this layer; of two axes as long as that, none can be told "
        "to be the channels'.",
    )


def _moments(norm: Any, x: Tensor, axis: int, options: dict[str, Any]) -> Moments:
    """Moments in float64, of batches cut small enough to be widened in cache."""
    given = any(value is not None for name, value in options.items() if name != "input_activation")
    rows = len(x) if given else max(1, _CHUNK // max(x[0].numel(), 1))
    parts = [_wide(norm.moments(part.double(), axis, **options)) for part in x.split(rows)]
    if norm.samples == 1:  # sets of single samples: no two parts share one
        return Moments(*(torch.cat(v) for v in zip(*map(_fields, parts), strict=True)))
    return parts[0].merge(*parts[1:])


def _wide(moments: Moments) -> Moments:
    mean = moments.mean
    count = torch.as_tensor(moments.count, dtype=mean.dtype, device=mean.device).expand_as(mean)
    return Moments(count, mean, moments.m2)


def _fields(moments: Moments) -> tuple[Any, Any, Any]:
    return moments.count, moments.mean, moments.m2
