"""Instance norm layers."""

from __future__ import annotations

import warnings
from dataclasses import replace
from functools import lru_cache
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 - its usual name

from normkit.moments import Moments
from normkit.norms import InstanceNorm, Norm
from normkit.torch import native
from normkit.torch.calls import Plan
from normkit.torch.layers.running import RunningLayer

Tensor = torch.Tensor
_instance_norm = lru_cache(maxsize=64)(InstanceNorm)


class InstanceLayer(RunningLayer, nn.modules.instancenorm._InstanceNorm):
    """torch.nn's instance norm; ``weight=`` and ``bias=`` of (N, C) in a call make it AdaIN."""

    _counts_batches = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._prepare()

    def _general(self, plan: Plan, input: Tensor, weight: Any, bias: Any, residual: Any) -> Tensor:
        self._check(input)
        if input.dim() > self._get_no_batch_dim():
            return self._call(plan, input, weight, bias, residual)
        mask, weight, bias, residual = (
            None if t is None else t.unsqueeze(0) for t in (plan.mask, weight, bias, residual)
        )
        one = self._call(replace(plan, mask=mask), input.unsqueeze(0), weight, bias, residual)
        return one.squeeze(0)

    def _norm(self, input: Tensor) -> Norm:  # noqa: ARG002
        return _instance_norm(eps=self.eps)

    # torch.nn's own way where track_running_stats was switched off later: the input's statistics
    # normalize, and move the running ones, also in eval.

    def _uses_running(self) -> bool:
        alone = not self.training and self.track_running_stats
        return (alone or self.statistics_frozen) and self.running_mean is not None

    def _tracks(self) -> bool:
        return (self.training or not self.track_running_stats) and self.running_mean is not None

    def _ordinary(self, input: Tensor, fused: bool) -> Tensor | None:
        axis = input.dim() - self._get_no_batch_dim()
        if axis not in (0, 1) or input.shape[axis] != self.num_features:
            return self._torch_forward(input)  # torch.nn has words for it
        frozen = self.statistics_frozen and self.running_mean is not None
        # Of an empty input, torch.nn makes running statistics of NaN, or an IndexError.
        if frozen or not input.numel() or not self._suits_torch(input, fused):
            return None
        if native.misreads_gradient(input if axis else input.unsqueeze(0)):
            return None
        if not self._stands_apart():
            return self._torch_forward(input)
        if axis == 0:
            one = self._ordinary(input.unsqueeze(0), fused)
            return None if one is None else one.squeeze(0)
        return self._torch_apart(F.instance_norm, input, float(input[0, 0].numel()))

    def _check(self, input: Tensor) -> None:
        self._check_input_dim(input)
        axis = input.dim() - self._get_no_batch_dim()
        size = input.size(axis)
        if size == self.num_features:
            return
        words = (
            f"expected input's size at dim={axis} to match num_features ({self.num_features}), "
            f"but got: {size}."
        )
        if self.affine or self.track_running_stats:
            raise ValueError(words)
        warnings.warn(words + " It is not used, because affine=False.", stacklevel=3)

    def _call(self, plan: Plan, x: Tensor, weight: Any, bias: Any, residual: Any) -> Tensor:
        if self._uses_running():
            # The same statistics for all samples.
            state, shape = self._state(None), (x.shape[0], x.shape[1])
            given = (state.mean.expand(shape).clone(), state.var.expand(shape).clone())
            return self._run(replace(plan, statistics=given), x, weight, bias, residual)[0]
        if x.numel() == x.shape[0] * x.shape[1] and x.numel() and plan.mask is None:
            raise ValueError(
                f"Expected more than 1 spatial element when training, got input size "
                f"{tuple(x.shape)}"
            )
        y, moments = self._run(plan, x, weight, bias, residual)
        if self._moves() and x.numel():
            self._record(_averaged(moments), None, x.shape[0])
        return y


def _averaged(moments: Moments) -> Moments:
    """What torch.nn tracks: the average over the samples of their means and variances."""
    count, mean, m2 = moments.count, moments.mean, moments.m2
    if isinstance(count, Tensor):
        seen = (count > 0).to(mean.dtype)
        samples = seen.sum(0).clamp(min=1)
        var = moments.population_var * seen
        each = count.sum(0) / samples
        mean, var = (mean * seen).sum(0) / samples, var.sum(0) / samples
        return Moments(each, mean, var * (each - 1).clamp(min=1))
    return Moments(count, mean.mean(0), m2.mean(0))


class InstanceNorm1d(InstanceLayer, nn.InstanceNorm1d):
    """``torch.nn.InstanceNorm1d`` on normkit's kernels: (N, C, L) or (C, L) input."""


class InstanceNorm2d(InstanceLayer, nn.InstanceNorm2d):
    """``torch.nn.InstanceNorm2d`` on normkit's kernels: (N, C, H, W) or (C, H, W) input.

    >>> import torch
    >>> adain, content = InstanceNorm2d(3), torch.rand(2, 3, 8, 8)
    >>> scale, shift = torch.full((2, 3), 2.0), torch.ones(2, 3)
    >>> stylized = adain(content, weight=scale, bias=shift)
    >>> stylized.mean((2, 3)).allclose(shift, atol=1e-5)
    True
    """


class InstanceNorm3d(InstanceLayer, nn.InstanceNorm3d):
    """``torch.nn.InstanceNorm3d`` on normkit's kernels: (N, C, D, H, W) or (C, D, H, W) input."""


class LazyInstanceNorm1d(InstanceLayer, nn.LazyInstanceNorm1d):
    """``torch.nn.LazyInstanceNorm1d``; becomes :class:`InstanceNorm1d` at the first input."""

    cls_to_become = InstanceNorm1d


class LazyInstanceNorm2d(InstanceLayer, nn.LazyInstanceNorm2d):
    """``torch.nn.LazyInstanceNorm2d``; becomes :class:`InstanceNorm2d` at the first input."""

    cls_to_become = InstanceNorm2d


class LazyInstanceNorm3d(InstanceLayer, nn.LazyInstanceNorm3d):
    """``torch.nn.LazyInstanceNorm3d``; becomes :class:`InstanceNorm3d` at the first input."""

    cls_to_become = InstanceNorm3d
