"""Convolutions and linear layers whose filters are standardized before they are used."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 - its usual name

from normkit.errors import NormError
from normkit.torch.beyond.common import check_number, widened
from normkit.torch.beyond.gains import activation_gain

__all__ = [
    "ScaledWSConv1d",
    "ScaledWSConv2d",
    "ScaledWSConv3d",
    "ScaledWSLinear",
    "WSConv1d",
    "WSConv2d",
    "WSConv3d",
    "WSLinear",
]

# --- the mechanism ------------------------------------------------------------------------------


class _Standardized(nn.Module):
    """In front of a torch.nn layer in the bases: each filter loses its mean and its scale.

    The raw weight stays the parameter, so that constructor, ``state_dict`` and the options of the
    layer are torch.nn's.
    """

    weight: torch.Tensor
    usual_eps = 1e-10

    def __init__(self, *args: Any, eps: float | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.eps = self.usual_eps if eps is None else check_number("eps", eps, self.usual_eps)
        if self._fan_in() < 2:
            raise NormError(
                "A filter of one weight has no variance",
                received=f"a weight of shape {tuple(self.weight.shape)}",
                expected="at least 2 weights for each output",
                remedy="Use torch.nn's own layer here.",
            )

    def _fan_in(self) -> int:
        return math.prod(self.weight.shape[1:])

    def standardized_weight(self) -> torch.Tensor:
        """The weight that inputs meet, in the shape and dtype of ``self.weight``."""
        wide = widened(self.weight)
        inside = tuple(range(1, wide.dim()))
        deviation = wide - wide.mean(inside, keepdim=True)
        var = deviation.square().mean(inside, keepdim=True)
        return (deviation * self._factor(var)).to(self.weight.dtype)

    def _factor(self, var: torch.Tensor) -> torch.Tensor:
        return (var + self.eps).rsqrt()

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        layer: Any = self  # of whatever class follows
        weight = self.standardized_weight()
        if isinstance(layer, nn.Linear):
            return F.linear(input, weight, layer.bias)
        # Where a convolution keeps what padding_mode does.
        return layer._conv_forward(input, weight, layer.bias)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, eps={self.eps:g}"


class _ScaledStandardized(_Standardized):
    """The same with a learned gain a filter, fan-in taken into account, and a fixed factor."""

    usual_eps = 1e-4
    gain: nn.Parameter

    def __init__(
        self,
        *args: Any,
        gamma: float | str | None = None,
        eps: float | None = None,
        **kwargs: Any,
    ) -> None:
        if gamma is None or isinstance(gamma, str):
            factor = activation_gain(gamma)
        else:
            factor = check_number("gamma", gamma, 1.0, positive=True)
        super().__init__(*args, eps=eps, **kwargs)
        self.gamma = factor
        shape = (self.weight.shape[0],) + (1,) * (self.weight.dim() - 1)
        self.gain = nn.Parameter(self.weight.new_ones(shape))

    def reset_parameters(self) -> None:
        super().reset_parameters()  # type: ignore[misc]
        if hasattr(self, "gain"):  # not yet when torch.nn's constructor calls this
            nn.init.ones_(self.gain)

    def _factor(self, var: torch.Tensor) -> torch.Tensor:
        scale = (var * self._fan_in()).clamp(min=self.eps).rsqrt()
        return scale * self.gain.to(var.dtype) * self.gamma

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, gamma={self.gamma:g}"


# --- weight standardization ---------------------------------------------------------------------


class WSConv2d(_Standardized, nn.Conv2d):
    """``torch.nn.Conv2d`` with weight standardization: (W − μ) / √(σ² + ε), filter by filter.

    Qiao et al. 2019, "Micro-Batch Training with Batch-Channel Normalization and Weight
    Standardization". μ and σ² are over a filter's fan-in; scale and mean of the raw
    weights no longer matter. A norm of the activations, such as group norm, belongs behind it.

    Args:
        as of ``torch.nn.Conv2d``, and by keyword only:
        eps: ε, at least 0. 1e-10 by default: the paper adds its square root, 1e-5, to σ, which
            leaves an infinite derivative at σ = 0.

    Raises:
        OptionError: eps is negative or not finite.
        NormError: a filter has a single weight.

    >>> import torch
    >>> layer = WSConv2d(3, 4, 3, padding=1, padding_mode="reflect")
    >>> layer(torch.randn(2, 3, 8, 8)).shape, sorted(layer.state_dict())
    (torch.Size([2, 4, 8, 8]), ['bias', 'weight'])
    """


class WSConv1d(_Standardized, nn.Conv1d):
    """``torch.nn.Conv1d`` with weight standardization, as in :class:`WSConv2d`."""


class WSConv3d(_Standardized, nn.Conv3d):
    """``torch.nn.Conv3d`` with weight standardization, as in :class:`WSConv2d`."""


class WSLinear(_Standardized, nn.Linear):
    """``torch.nn.Linear`` with weight standardization, as in :class:`WSConv2d`."""


class ScaledWSConv2d(_ScaledStandardized, nn.Conv2d):
    """``torch.nn.Conv2d`` with scaled weight standardization: gain · γ · (W − μ) / (σ · √fan-in).

    Brock et al. 2021, "Characterizing signal propagation...", section 4, and "High-Performance
    Large-Scale Image Recognition Without Normalization": filters of unit norm, so that
    a network of them preserves the variance of its activations without normalizing these.

    Args:
        as of ``torch.nn.Conv2d``, and by keyword only:
        gamma: γ, by a number above 0, or by the name of the activation in front of this layer
            (see :func:`activation_gain`). None is 1.
        eps: the least σ² · fan-in that is divided by; 1e-4 by default.

    The gain, of shape (out, 1, 1, 1), is learned and starts at one.

    Raises:
        OptionError: gamma or eps has a value that it cannot have, or gamma an unknown name.
        NormError: a filter has a single weight.

    >>> import torch
    >>> layer = ScaledWSConv2d(3, 4, 3, gamma="relu")
    >>> layer(torch.randn(2, 3, 8, 8)).shape, sorted(layer.state_dict())
    (torch.Size([2, 4, 6, 6]), ['bias', 'gain', 'weight'])
    """


class ScaledWSConv1d(_ScaledStandardized, nn.Conv1d):
    """``torch.nn.Conv1d`` with scaled weight standardization, as in :class:`ScaledWSConv2d`."""


class ScaledWSConv3d(_ScaledStandardized, nn.Conv3d):
    """``torch.nn.Conv3d`` with scaled weight standardization, as in :class:`ScaledWSConv2d`."""


class ScaledWSLinear(_ScaledStandardized, nn.Linear):
    """``torch.nn.Linear`` with scaled weight standardization, as in :class:`ScaledWSConv2d`."""
