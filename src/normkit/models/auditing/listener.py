"""What passes through one norm while the model runs on data."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from normkit.models.auditing.evidence import Observation
from normkit.models.auditing.onnx_models import OnnxNorm
from normkit.models.measuring.channels import Gauge, Histogram, by_channel, sample_moments
from normkit.models.sites import NormSite
from normkit.torch import native

__all__ = ["Listener"]

Tensor = torch.Tensor
_DOMAINS = 16  # more groups than this are no domains


class Listener:
    """Hooks around a norm that measure its input and its output.

    Attributes:
        samples: in the batch that is under way, set by the pass: rows of an input that is a
            multiple of it belong to one sample together.
        groups: the domain of each sample of the batch, or of them all; None for none.
        batch_statistics: whether the norm is to normalize with its input's own statistics.
        deaf: whether to measure nothing.
        shape: of its first input.
    """

    def __init__(self, site: NormSite) -> None:
        self.site = site
        self.samples = 0
        self.groups: Any = None
        self.batch_statistics = self.deaf = False
        self.shape: tuple[int, ...] | None = None
        self.calls = self.most_calls = 0
        self.seen = 0
        self.masked = False
        self.input, self.in_training = Gauge(), Gauge()
        self.by_call: dict[int, Gauge] = {}
        self.by_domain: dict[str, Gauge] = {}
        self.histogram = Histogram()
        self.low: Tensor | None = None
        self.high: Tensor | None = None

    def attach(self) -> list[Any]:
        """Put the hooks on; returns their handles."""
        module: nn.Module = self.site.module
        return [
            module.register_forward_pre_hook(self._before, with_kwargs=True),
            module.register_forward_hook(self._after),
        ]

    def begin(self, samples: int, groups: Any, batch_statistics: bool = False) -> None:
        """A forward of the model follows."""
        self.samples, self.groups, self.calls = samples, groups, 0
        self.batch_statistics, self.deaf = batch_statistics, False
        if isinstance(self.site.module, OnnxNorm):  # hears only after the model has run
            self.site.module.batch_statistics = batch_statistics

    # --- hooks ----------------------------------------------------------------------------------

    def _before(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        x = _first_tensor(args, kwargs)
        if x is None or self.deaf:
            return
        self.shape = self.shape or tuple(x.shape)
        self.masked |= kwargs.get("mask") is not None or kwargs.get("lengths") is not None
        values = by_channel(_activated(x, kwargs), self.site)
        if values is None or not values.numel():
            return
        mean, var, positions = sample_moments(self._by_sample(values))
        domain = kwargs.get("domain") if self.site.mean is not None else None
        if not self.batch_statistics:
            self._measure(mean, var, positions, domain)
            return
        self.in_training.add(mean, var, positions)
        if domain is None:
            batch = Gauge()
            batch.add(mean, var, positions)
            _normalize_with(module, batch)

    def _measure(self, mean: Tensor, var: Tensor, positions: int, domain: Any) -> None:
        self.calls += 1
        self.most_calls = max(self.most_calls, self.calls)
        self.seen += len(mean)
        self.input.add(mean, var, positions)
        if self.calls <= _DOMAINS:
            self.by_call.setdefault(self.calls, Gauge()).add(mean, var, positions)
        groups = self.groups if domain is None else domain
        if isinstance(groups, Tensor) and groups.dim():
            if len(groups) == len(mean):
                groups = groups.to(mean.device)
                for group in groups.unique()[:_DOMAINS]:
                    rows = groups == group
                    self._of_domain(str(group.item())).add(mean[rows], var[rows], positions)
        elif groups is not None:
            name = str(groups.item() if isinstance(groups, Tensor) else groups)
            self._of_domain(name).add(mean, var, positions)

    def _of_domain(self, name: str) -> Gauge:
        return self.by_domain.setdefault(name, Gauge())

    def _by_sample(self, values: Tensor) -> Tensor:
        """Rows of one sample (frames, tokens, boxes) put together."""
        rows, channels, positions = values.shape
        each = rows // self.samples if self.samples else 0
        if each < 2 or rows % self.samples:
            return values
        split = values.reshape(self.samples, each, channels, positions)
        return split.transpose(1, 2).reshape(self.samples, channels, each * positions)

    def _after(self, _module: nn.Module, _args: Any, result: Any) -> None:
        if isinstance(result, tuple) and result:  # some operators hand on their statistics
            result = result[0]
        values = None if self.deaf else by_channel(result, self.site)
        if values is None or not values.numel():
            return
        low, high = (f(values.detach(), dim=(0, 2)).float().cpu() for f in (torch.amin, torch.amax))
        self.low = low if self.low is None else torch.minimum(self.low, low)
        self.high = high if self.high is None else torch.maximum(self.high, high)
        if not self.batch_statistics:
            self.histogram.add(values)

    # --- result ---------------------------------------------------------------------------------

    def observation(self) -> Observation | None:
        """None where the norm was not called, or with nothing that could be measured."""
        seen = self.input.spread()
        if self.low is None or self.high is None or seen is None:
            return None
        calls = [g.spread() for g in self.by_call.values()] if self.most_calls > 1 else []
        domains = {name: gauge.spread() for name, gauge in self.by_domain.items()}
        return Observation(
            input=None if self.masked else seen,
            output_min=self.low,
            output_max=self.high,
            samples=self.seen,
            calls=self.most_calls,
            edges=self.histogram.edges,
            counts=self.histogram.counts,
            in_training=None if self.masked else self.in_training.spread(),
            by_call=[] if self.masked else [s for s in calls if s is not None],
            by_domain={} if self.masked else {n: s for n, s in domains.items() if s is not None},
        )


def _first_tensor(args: Any, kwargs: Any) -> Tensor | None:
    return next((v for v in (*args, *kwargs.values()) if isinstance(v, Tensor)), None)


def _activated(x: Tensor, kwargs: Any) -> Tensor:
    """What a fused layer normalizes."""
    activation = kwargs.get("input_activation")
    return native.finish(x, None, activation) if native.knows(activation) and activation else x


def _normalize_with(module: nn.Module, gauge: Gauge) -> None:
    """Let a norm in eval mode use these statistics, as it would use the batch's in training."""
    moments = gauge.elements
    own = module._buffers if module._buffers.get("running_mean") is not None else module._parameters
    if moments is None or own.get("running_mean") is None or moments.count < 2:
        return
    for name, values in (("running_mean", moments.mean), ("running_var", moments.var)):
        stored: Any = own[name]
        new = values.to(stored.device, stored.dtype)
        own[name] = nn.Parameter(new, False) if isinstance(stored, nn.Parameter) else new
