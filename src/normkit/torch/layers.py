"""torch.nn's batch norm layers on normkit's kernels.

Subclasses of torch.nn's own: constructor, parameters, buffers, ``state_dict`` and ``repr`` are
inherited, and ``isinstance`` checks hold. What the kernels do not take (tensors on another device,
small inputs) goes to torch.nn's own forward.
"""

from __future__ import annotations

import math
from functools import lru_cache, wraps
from typing import Any

import torch
from torch import nn

from normkit.errors import OptionError
from normkit.moments import Moments
from normkit.norms import BatchNorm
from normkit.torch.functional import is_plain_cpu, normalize_with_statistics
from normkit.torch.native import is_small

__all__ = ["BatchNorm1d", "BatchNorm2d"]

_norm = lru_cache(maxsize=64)(BatchNorm)


def _check(momentum: float | None, eps: float) -> None:
    """torch.nn accepts any number; NaN would poison the running statistics silently."""
    for name, value in (("momentum", momentum), ("eps", eps)):
        if value is not None and not math.isfinite(value):
            raise OptionError(
                f"A batch norm layer cannot have this {name}",
                received=repr(value),
                expected="a finite number" + (" or None" if name == "momentum" else ""),
                remedy="torch.nn's defaults are momentum=0.1 and eps=1e-5.",
            )
    if eps < 0:
        raise OptionError(
            "A batch norm layer cannot have this eps",
            received=repr(eps),
            expected="at least 0",
            remedy="torch.nn's default is 1e-5.",
        )


class _OnKernels(nn.modules.batchnorm._BatchNorm):
    """What the layers share: torch.nn's semantics around one call of the kernels."""

    @wraps(nn.modules.batchnorm._BatchNorm.__init__)  # type: ignore[misc]  # keeps the signature
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        _check(self.momentum, self.eps)

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002 - torch.nn's name
        # torch.nn has words for what it does not take.
        odd = input.dim() < 2 or input.size(1) != self.num_features
        if odd or input.numel() <= input.size(1):
            return super().forward(input)
        norm = _norm(eps=self.eps)
        if not is_plain_cpu(input) or is_small(norm, input):
            return super().forward(input)
        self._check_input_dim(input)
        average = self._average_factor()
        own = self.training or (self.running_mean is None and self.running_var is None)
        given = None if own else (self.running_mean, self.running_var)
        y, moments = normalize_with_statistics(
            norm, input, self.weight, self.bias, 1, None, None, given
        )
        if self.training and self.track_running_stats and self.running_mean is not None:
            self._track(moments, average)
        return y

    def _average_factor(self) -> float:
        """Weight of this batch in the running statistics, as torch.nn has it."""
        if not (self.training and self.track_running_stats):
            return 0.0
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            if self.momentum is None:
                return 1.0 / float(self.num_batches_tracked)
        return 0.0 if self.momentum is None else self.momentum

    def _track(self, moments: Moments, average: float) -> None:
        with torch.no_grad():
            pairs: tuple[tuple[Any, Any], ...] = (
                (self.running_mean, moments.mean),
                (self.running_var, moments.population_var),
            )
            for buffer, values in pairs:
                buffer.lerp_(torch.as_tensor(values).to(buffer.dtype), average)


class BatchNorm1d(_OnKernels, nn.BatchNorm1d):
    """``torch.nn.BatchNorm1d`` on normkit's kernels: (N, C) or (N, C, L) input.

    >>> import torch
    >>> layer = BatchNorm1d(3)
    >>> isinstance(layer, torch.nn.BatchNorm1d), tuple(layer.running_mean.shape)
    (True, (3,))
    """


class BatchNorm2d(_OnKernels, nn.BatchNorm2d):
    """``torch.nn.BatchNorm2d`` on normkit's kernels: (N, C, H, W) input, either memory format."""
