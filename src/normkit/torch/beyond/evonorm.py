"""EvoNorm (Liu, Brock, Simonyan & Le 2020): normalization and activation found as one formula."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from normkit.errors import OptionError, ShapeError
from normkit.torch.beyond.common import (
    TrackingLayer,
    check_count,
    check_number,
    moments,
    positions,
    widened,
)

__all__ = ["EvoNormB0", "EvoNormS0"]


class _EvoNorm(TrackingLayer):
    """What both share: gamma, beta, v (absent without the activation), and eps."""

    v: nn.Parameter | None

    def __init__(
        self, num_features: int, eps: float, momentum: float | None, tracked: tuple[str, ...],
        apply_act: bool, device: Any, dtype: Any,
    ) -> None:  # fmt: skip
        super().__init__(num_features, momentum, tracked, device=device, dtype=dtype)
        self.eps = check_number("eps", eps, 1e-5)
        self.apply_act = bool(apply_act)
        v = torch.empty(num_features, device=device, dtype=dtype) if self.apply_act else None
        self.register_parameter("v", None if v is None else nn.Parameter(v))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        super().reset_parameters()
        if self.v is not None:
            nn.init.ones_(self.v)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        axis = self.channel_axis(x)
        wide = widened(x)
        y = wide
        if self.v is not None:
            y = self._activated(wide, self.along(self.v, wide, axis))
        return self.affine(y, axis).to(x.dtype)

    def _activated(self, x: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError


class EvoNormB0(_EvoNorm):
    """γ · x / max(√(batch var + ε), v·x + √(instance var + ε)) + β (Liu et al. 2020).

    Batch norm and an activation at once: put no activation behind it. In evaluation the running
    variance takes the place of the batch's.

    Args:
        num_features: C of inputs (N, C), (N, C, L), (N, C, H, W), (N, C, D, H, W), ...
        eps: added to both variances.
        momentum: weight of a new batch in the running variance; None for a plain average.
        apply_act: False leaves only γ · x + β, as the paper does where no activation follows.
        track_running_stats: False takes the batch's variance in evaluation too.
        device, dtype: of the parameters.

    Raises:
        OptionError: an option has a value that it cannot have.
        ShapeError, DTypeError: (when called) the input does not fit.

    >>> import torch
    >>> layer = EvoNormB0(3)
    >>> layer(torch.randn(4, 3, 8, 8)).shape, int(layer.num_batches_tracked)
    (torch.Size([4, 3, 8, 8]), 1)
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        apply_act: bool = True,
        track_running_stats: bool = True,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        # Without the activation nothing is normalized, so there is nothing to average.
        tracked = ("running_var",) if apply_act and track_running_stats else ()
        super().__init__(num_features, eps, momentum, tracked, apply_act, device, dtype)
        if not tracked:
            self.register_buffer("running_var", None)

    def _activated(self, x: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        inside = positions(x, 1)
        running = None if self.training else self.running_var
        if running is None:
            _, batch = moments(x, (0, *inside))
            self.track(x.numel() // self.num_features, running_var=batch)
        else:
            batch = self.along(running, x, 1)
        _, instance = moments(x, inside)
        return x / torch.maximum((batch + self.eps).sqrt(), v * x + (instance + self.eps).sqrt())

    def extra_repr(self) -> str:
        return (
            f"{self.num_features}, eps={self.eps:g}, momentum={self.momentum}, "
            f"apply_act={self.apply_act}, track_running_stats={self.running_var is not None}"
        )


class EvoNormS0(_EvoNorm):
    """γ · x · σ(v·x) / √(group var + ε) + β (Liu et al. 2020).

    Group norm and SiLU at once, not centred: put no activation behind it. Each sample is
    normalized on its own, in training and evaluation alike.

    Args:
        num_features: C of inputs (N, C), (N, C, L), (N, C, H, W), (N, C, D, H, W), ...
        groups: into how many equal groups the channels are cut; the paper has 32.
        eps: added to the variance.
        apply_act: False leaves only γ · x + β, as the paper does where no activation follows.
        device, dtype: of the parameters.

    Raises:
        OptionError: an option has a value that it cannot have; the groups do not divide C.
        ShapeError, DTypeError: (when called) the input does not fit.

    >>> import torch
    >>> layer = EvoNormS0(4, groups=2)
    >>> layer(torch.randn(2, 4, 8, 8)).shape
    torch.Size([2, 4, 8, 8])
    """

    def __init__(
        self,
        num_features: int,
        groups: int = 32,
        eps: float = 1e-5,
        apply_act: bool = True,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        groups = check_count("groups", groups)
        if check_count("num_features", num_features) % groups:
            raise OptionError(
                "The groups do not divide the channels",
                received=f"groups={groups} with num_features={num_features}",
                expected="equal groups",
                remedy=f"The largest that fits is groups={_divisor(num_features, groups)}.",
            )
        super().__init__(num_features, eps, None, (), apply_act, device, dtype)
        self.groups = groups

    def _activated(self, x: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        grouped = x.unflatten(1, (self.groups, -1))
        if math.prod(grouped.shape[2:]) == 1:
            raise ShapeError(
                "A group of one element has no variance",
                received=f"shape {tuple(x.shape)} in {self.groups} groups",
                expected="several channels or positions a group",
                remedy="Make the layer with fewer groups.",
            )
        _, var = moments(grouped, tuple(range(2, grouped.dim())))
        var = var.expand(-1, -1, grouped.shape[2], *var.shape[3:]).flatten(1, 2)
        return x * torch.sigmoid(v * x) * (var + self.eps).rsqrt()

    def extra_repr(self) -> str:
        return (
            f"{self.num_features}, groups={self.groups}, eps={self.eps:g}, "
            f"apply_act={self.apply_act}"
        )


def _divisor(whole: int, most: int) -> int:
    return next(d for d in range(min(whole, most), 0, -1) if whole % d == 0)
