"""Batch norm for data that comes from more than one distribution."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from normkit.errors import OptionError, ShapeError
from normkit.moments import Moments
from normkit.torch.calls import Plan, run_by_operators
from normkit.torch.layers.batch import BatchLayer, BatchNorm1d, BatchNorm2d, BatchNorm3d

__all__ = [
    "AdaptiveBatchNorm1d",
    "AdaptiveBatchNorm2d",
    "AdaptiveBatchNorm3d",
    "SplitBatchNorm1d",
    "SplitBatchNorm2d",
    "SplitBatchNorm3d",
]

Tensor = torch.Tensor


# --- a new domain at inference --------------------------------------------------------------------


class _Prior:
    """A reducer that mixes a batch's statistics with those of the training data."""

    def __init__(self, mean: Tensor, var: Tensor, share: float) -> None:
        self.mean, self.var, self.share = mean, var, share

    def moments(self, moments: Moments) -> Moments:
        mean, var = moments.mean, moments.var
        mean = torch.lerp(mean, self.mean.to(mean.dtype), self.share)
        var = torch.lerp(var, self.var.to(var.dtype), self.share)
        return Moments(2.0, mean, 2.0 * var)  # any count of at least 2 stands for "taken"

    def sums(self, dz: Tensor, dzx: Tensor) -> tuple[Tensor, Tensor]:
        raise NotImplementedError("the mixture is differentiated by PyTorch's operators")


class _Adaptive(BatchLayer):
    """Batch norm whose statistics at inference follow the domain that it is used on.

    In eval mode it normalizes with (prior * running + n * batch) / (prior + n) for the mean and the
    variance, n being the samples in the batch (Schneider et al. 2020, section 3.2). prior=0 is the
    batch's own statistics (Li et al. 2016, AdaBN, batch by batch); a large one trusts the training
    data, and ``math.inf`` is plain batch norm. Training is plain batch norm.

    Args:
        prior: how many samples the training statistics count for.
        the rest: as in torch.nn and :class:`BatchNorm2d`.

    Raises:
        OptionError: a negative prior, or no running statistics to start from.
    """

    def __init__(self, *args: Any, prior: float = 16.0, **kwargs: Any) -> None:
        if not isinstance(prior, (int, float)) or not prior >= 0:
            raise OptionError(
                "prior= counts no samples",
                received=repr(prior),
                expected="a number of at least 0",
                remedy="16 is a fair start; math.inf is plain batch norm.",
            )
        super().__init__(*args, **kwargs)
        if not self.track_running_stats:
            raise OptionError(
                "The training statistics are missing",
                received="track_running_stats=False",
                expected="track_running_stats=True",
                remedy="An adaptive batch norm mixes them with the batch's.",
            )
        self.prior = prior

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, prior={self.prior:g}"

    def _ordinary(self, input: Tensor, fused: bool) -> Tensor | None:
        adapts = self._uses_running() and self.prior != math.inf and input.numel()
        odd = input.dim() < 2 or input.size(1) != self.num_features
        return None if adapts and not odd else super()._ordinary(input, fused)

    def _call(
        self, plan: Plan, x: Tensor, weight: Any, bias: Any, residual: Any, domain: int | None
    ) -> Tensor:
        if not self._uses_running() or self.prior == math.inf or not x.numel():
            return super()._call(plan, x, weight, bias, residual, domain)
        state = self._state(domain)
        share = self.prior / (self.prior + x.shape[0])
        mixture = _Prior(state.mean.clone(), state.var.clone(), share)
        plan = replace(plan, reducer=mixture)
        gamma, beta = self._affine(weight, bias)
        return run_by_operators(plan, x, gamma, beta, residual)[0]


class AdaptiveBatchNorm1d(_Adaptive, BatchNorm1d):
    __doc__ = _Adaptive.__doc__


class AdaptiveBatchNorm2d(_Adaptive, BatchNorm2d):
    __doc__ = _Adaptive.__doc__


class AdaptiveBatchNorm3d(_Adaptive, BatchNorm3d):
    __doc__ = _Adaptive.__doc__


# --- several domains in one batch -----------------------------------------------------------------


class _Split(BatchLayer):
    """Auxiliary batch norm (Xie et al. 2020, AdvProp): one layer for each part of a training batch.

    The first part of the batch goes through this layer, each further one through one of its own,
    ``aux_bn[i]``; in eval mode everything goes through this layer.

    Args:
        num_features: C.
        num_splits: parts of a training batch, at least 2.
        the rest: as in torch.nn and :class:`BatchNorm2d`.

    Call:
        sizes: samples in each part; equal parts by default.

    Raises:
        OptionError: fewer than two parts.
        ShapeError: a batch that does not divide into the parts.

    >>> import torch
    >>> layer = SplitBatchNorm1d(2, num_splits=2)
    >>> clean, adversarial = torch.randn(8, 2), torch.randn(8, 2) + 5
    >>> y = layer(torch.cat([clean, adversarial]))
    >>> bool(layer.running_mean.max() < layer.aux_bn[0].running_mean.min())
    True
    """

    def __init__(self, num_features: int, *args: Any, num_splits: int = 2, **kwargs: Any) -> None:
        if isinstance(num_splits, bool) or not isinstance(num_splits, int) or num_splits < 2:
            raise OptionError(
                "num_splits= makes no parts",
                received=repr(num_splits),
                expected="a whole number of at least 2",
                remedy="2 is AdvProp's: clean and adversarial samples.",
            )
        if kwargs.get("domains") is not None:
            raise OptionError(
                "A split batch norm has no domains",
                received=f"domains={kwargs['domains']!r}",
                expected="num_splits= alone",
                remedy="BatchNorm2d(..., domains=) takes a domain for each sample.",
            )
        super().__init__(num_features, *args, **kwargs)
        plain = next(k for k in (BatchNorm1d, BatchNorm2d, BatchNorm3d) if isinstance(self, k))
        self.num_splits = num_splits
        self.aux_bn = nn.ModuleList(
            plain(num_features, *args, **kwargs) for _ in range(num_splits - 1)
        )

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, num_splits={self.num_splits}"

    def forward(self, input: Tensor, *, sizes: Any = None, **options: Any) -> Tensor:
        """As in :class:`BatchNorm2d`, with ``sizes=`` in training."""
        if not self.training:
            return super().forward(input, **options)
        sizes = self._sizes(input, sizes)
        samples = input.shape[0]
        layers = [super().forward, *self.aux_bn]
        results = []
        for i, layer in enumerate(layers):
            part = slice(sum(sizes[:i]), sum(sizes[: i + 1]))
            own = {name: _part(name, value, samples, part) for name, value in options.items()}
            results.append(layer(input[part], **own))
        return torch.cat(results)

    def _sizes(self, input: Tensor, sizes: Any) -> list[int]:
        samples = input.shape[0] if input.dim() else 0
        if sizes is None and samples % self.num_splits == 0:
            return [samples // self.num_splits] * self.num_splits
        if sizes is not None and len(sizes) == self.num_splits and sum(sizes) == samples:
            return list(sizes)
        raise ShapeError(
            "The batch does not divide into the parts",
            received=f"{samples} samples" + ("" if sizes is None else f" with sizes={sizes}"),
            expected=f"{self.num_splits} parts" + (", equal ones" if sizes is None else ""),
            remedy="Pass sizes=, the samples in each part.",
        )


def _part(name: str, value: Any, samples: int, part: slice) -> Any:
    """An option of a call for some of the samples."""
    if not isinstance(value, Tensor) or not value.dim() or value.shape[0] != samples:
        return value
    return value[part] if value.dim() > 1 or name in ("lengths", "mask") else value


class SplitBatchNorm1d(_Split, BatchNorm1d):
    __doc__ = _Split.__doc__


class SplitBatchNorm2d(_Split, BatchNorm2d):
    __doc__ = (_Split.__doc__ or "").partition("    >>>")[0]


class SplitBatchNorm3d(_Split, BatchNorm3d):
    __doc__ = (_Split.__doc__ or "").partition("    >>>")[0]
