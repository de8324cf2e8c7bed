"""What is measured of the layers: by hooks in the steps that are recorded, and from the weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from normkit.models.measuring.channels import Gauge, by_channel, sample_moments
from normkit.models.measuring.drift import from_running
from normkit.models.sites import NormSite, site_of
from normkit.torch.transforms import is_recomputation

__all__ = ["Ear", "Updates", "zero_gains"]

Tensor = torch.Tensor


class Ear:
    """Hears one norm for one step: its input, its output, the statistics in front of the batch."""

    def __init__(self, name: str, module: nn.Module, root: nn.Module) -> None:
        self.name, self._module, self._root = name, module, root
        self._handles: list[Any] = []
        self._forget()

    def _forget(self) -> None:
        self._site: NormSite | None = None
        self._gauge = Gauge()
        self._before: tuple[Tensor, Tensor] | None = None
        self._highest: Tensor | None = None

    def open(self) -> None:
        """Listen from now on."""
        self._forget()
        hear = self._module.register_forward_pre_hook(_Listener(self._hear_input), with_kwargs=True)
        self._handles.append(hear)
        self._handles.append(self._module.register_forward_hook(_Listener(self._hear_output)))

    def close(self) -> None:
        """Leave the module as if nobody had listened."""
        while self._handles:
            self._handles.pop().remove()

    def _is_out(self) -> bool:
        """Whether this call is none of training: a validation in between, or one that is repeated.

        What a compiler sees here it leaves out: parts that it has compiled are not heard.
        """
        return torch.compiler.is_compiling() or not self._root.training or is_recomputation()

    def _hear_input(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        if self._is_out():
            return
        if self._site is None:
            site = self._site = site_of(self.name, module)
            if site is not None and site.mean is not None and site.var is not None:
                # Copies: the batch moves them.
                self._before = (site.mean.detach().clone(), site.var.detach().clone())
        masked = kwargs.get("mask") is not None or kwargs.get("lengths") is not None
        if self._before is None or self._site is None or masked or self._before[0].dim() != 1:
            return
        values = by_channel(args[0] if args else kwargs.get("input"), self._site)
        if values is not None:
            self._gauge.add(*sample_moments(values.detach()))

    def _hear_output(self, module: nn.Module, args: Any, output: Any) -> None:  # noqa: ARG002
        if self._is_out() or self._site is None:
            return
        values = by_channel(output, self._site)
        if values is not None and values.numel():
            highest = values.detach().amax((0, 2))
            old = self._highest
            self._highest = highest if old is None else torch.maximum(old, highest)

    @property
    def heard(self) -> bool:
        """Whether the norm was called."""
        return self._site is not None

    def state(self) -> dict[str, Any]:
        """Fields of a LayerState."""
        found: dict[str, Any] = {}
        spread = self._gauge.spread()
        if spread is not None and self._before is not None and self._site is not None:
            behind = spread.samples * _batches_behind(self._site)
            drift = from_running(*self._before, spread, self._site.eps, behind)
            found["drift"] = float(drift.divergence.mean())
            found["drift_worst"] = float(drift.divergence.max())
            found["chance"] = float(drift.chance.mean())
        if self._highest is not None:
            found["dead"] = int((self._highest <= 0).sum())
        return found


class _Listener:
    """A hook that changes nothing, so that fused layers may stay fused, and that is not copied."""

    listens_only = True

    def __init__(self, function: Any = None) -> None:
        self._function = function

    def __call__(self, *args: Any) -> None:
        if self._function is not None:
            self._function(*args)

    def __deepcopy__(self, memo: Any) -> _Listener:
        return _Listener()

    def __reduce__(self) -> tuple[Any, ...]:
        return _Listener, ()


def _batches_behind(site: NormSite) -> float:
    """How many batches' worth of samples running statistics rest on."""
    if site.momentum is None or site.momentum <= 0:
        return max(site.batches or 1, 1)
    return (2 - site.momentum) / site.momentum


def zero_gains(site: NormSite) -> int | None:
    """Channels whose gamma is next to nothing."""
    if site.gamma is None:
        return None
    gains = site.gamma.detach().abs().float()
    return int((gains <= 1e-3 * gains.median()).sum())


class Updates:
    """The parameters as they were at the last record, to tell how far they have moved.

    Of a sharded model, the part that is on this rank.
    """

    def __init__(self, model: nn.Module) -> None:
        self._own: dict[str, list[Tensor]] = {}
        known: set[int] = set()
        for name, module in model.named_modules():
            own = [p for p in module.parameters(recurse=False) if _has_values(p)]
            own = [p for p in own if id(p) not in known]  # tied ones belong to the first
            known |= {id(p) for p in own}
            if own:
                self._own[name] = own
        self._old = {n: [_local(p).clone() for p in own] for n, own in self._own.items()}

    def ratios(self) -> dict[str, float]:
        """By layer; none for one that was all zero. The parameters are the next record's old ones.

        One synchronization with an accelerator, however many layers there are.
        """
        rows = []
        for name, own in self._own.items():
            olds, new = self._old[name], [_local(p) for p in own]
            moved = _norm([p - old for p, old in zip(new, olds, strict=True)])
            rows.append(torch.stack([moved, _norm(olds)]))
            for p, old in zip(new, olds, strict=True):
                old.copy_(p)
        table = torch.stack([row.to(rows[0].device) for row in rows]).tolist() if rows else []
        return {n: moved / size for n, (moved, size) in zip(self._own, table, strict=True) if size}


def _has_values(p: Tensor) -> bool:
    return not is_lazy(p) and not p.is_meta and p.is_floating_point()


def _local(p: Any) -> Tensor:
    """A parameter's values on this rank, without gradients."""
    p = p.detach()
    return p.to_local() if hasattr(p, "to_local") else p


def _norm(tensors: list[Tensor]) -> Tensor:
    norm = torch.linalg.vector_norm
    wide = [torch.promote_types(t.dtype, torch.float32) for t in tensors]
    return norm(torch.stack([norm(t, dtype=w).float() for t, w in zip(tensors, wide, strict=True)]))
