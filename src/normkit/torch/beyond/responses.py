"""Layers that scale by responses' magnitudes (FRN, GRN) or squash them (TLU, DyT)."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import nn

from normkit.torch.beyond.common import ChannelLayer, check_number, positions, widened

__all__ = ["DynamicTanh", "FilterResponseNorm", "GlobalResponseNorm", "ThresholdedLinearUnit"]

#: What a learned eps starts from (Singh & Krishnan 2020).
_LEARNED_EPS = 1e-4


class FilterResponseNorm(ChannelLayer):
    """γ · x / √(ν² + ε) + β, where ν² is the mean of x² over a channel's positions.

    Singh & Krishnan 2020, "Filter Response Normalization Layer", section 3. Not centred, so the
    paper puts a :class:`ThresholdedLinearUnit` behind it.

    Args:
        num_features: C.
        eps: ε, at least 0.
        learnable_eps: add the magnitude of a learned scalar to ε, which starts at 1e-4. The paper
            needs it where a channel has few positions: of one position only the sign would be left.
        axis: the channel axis. Axis 0 holds the samples; all others are positions.
        device, dtype: of the parameters.

    Raises:
        OptionError: an option has a value that it cannot have.
        ShapeError, DTypeError: (when called) the input does not fit.

    >>> import torch
    >>> FilterResponseNorm(1, eps=0.0)(torch.tensor([[[1.0, 7.0]]]))
    tensor([[[0.2000, 1.4000]]], grad_fn=<AddBackward0>)
    """

    learned_eps: nn.Parameter | None

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-6,
        learnable_eps: bool = False,
        axis: int = 1,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(num_features, axis, device=device, dtype=dtype)
        self.eps = check_number("eps", eps, 1e-6)
        learned = torch.empty((), device=device, dtype=dtype) if learnable_eps else None
        self.register_parameter("learned_eps", None if learned is None else nn.Parameter(learned))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        super().reset_parameters()
        if self.learned_eps is not None:
            nn.init.constant_(self.learned_eps, _LEARNED_EPS)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        axis = self.channel_axis(x)
        wide = widened(x)
        squares, inside = wide.square(), positions(x, axis)
        power = squares.mean(inside, keepdim=True) if inside else squares
        power = power + self.eps
        if self.learned_eps is not None:
            power = power + self.learned_eps.to(wide.dtype).abs()
        return self.affine(wide * power.rsqrt(), axis).to(x.dtype)

    def extra_repr(self) -> str:
        learned = self.learned_eps is not None
        return f"{super().extra_repr()}, eps={self.eps:g}, learnable_eps={learned}"


class ThresholdedLinearUnit(ChannelLayer):
    """max(x, τ), τ learned for each channel and zero at first: a ReLU whose knee moves.

    Singh & Krishnan 2020, section 3.

    Args:
        num_features: C.
        axis: the channel axis.
        device, dtype: of the parameter.

    Raises:
        OptionError: an option has a value that it cannot have.
        ShapeError, DTypeError: (when called) the input does not fit.

    >>> import torch
    >>> ThresholdedLinearUnit(2)(torch.tensor([[-1.0, 2.0]]))
    tensor([[0., 2.]], grad_fn=<MaximumBackward0>)
    """

    starts: ClassVar[dict[str, float]] = {"threshold": 0.0}
    has_samples: ClassVar[bool] = False

    threshold: nn.Parameter

    def __init__(
        self, num_features: int, axis: int = 1, device: Any = None, dtype: Any = None
    ) -> None:
        super().__init__(num_features, axis, device=device, dtype=dtype)
        self.reset_parameters()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.maximum(x, self.along(self.threshold, x, self.channel_axis(x)))


class GlobalResponseNorm(ChannelLayer):
    """x + γ · x · n + β, where n is a channel's norm over its positions, relative to the channels'.

    Woo et al. 2023, "ConvNeXt V2", section 4: G = ‖x‖₂ over a channel's positions,
    n = G / (mean of G over the channels + ε). γ and β start at zero, so that the layer starts as
    the identity.

    Args:
        num_features: C.
        eps: ε, at least 0.
        axis: the channel axis; the paper's blocks have channels last. Axis 0 holds the samples.
        device, dtype: of the parameters.

    Raises:
        OptionError: an option has a value that it cannot have.
        ShapeError, DTypeError: (when called) the input does not fit.

    >>> import torch
    >>> x = torch.randn(2, 7, 7, 4)
    >>> torch.equal(GlobalResponseNorm(4)(x), x)
    True
    """

    starts: ClassVar[dict[str, float]] = {"weight": 0.0, "bias": 0.0}

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-6,
        axis: int = -1,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(num_features, axis, device=device, dtype=dtype)
        self.eps = check_number("eps", eps, 1e-6)
        self.reset_parameters()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        axis = self.channel_axis(x)
        wide = widened(x)
        inside = positions(x, axis)
        # vector_norm has the derivative 0 at 0, where that of the root of a sum is infinite:
        # a ReLU in front makes channels of zeros.
        norm = torch.linalg.vector_norm(wide, 2, inside, keepdim=True) if inside else wide.abs()
        relative = norm / (norm.mean(axis, keepdim=True) + self.eps)
        return (wide + self.affine(wide * relative, axis)).to(x.dtype)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, eps={self.eps:g}"


class DynamicTanh(ChannelLayer):
    """γ · tanh(α·x) + β with one learned α: in place of a layer norm, without statistics.

    Zhu et al. 2025, "Transformers without Normalization", section 4.

    Args:
        num_features: C.
        alpha: what α starts from, above 0; the paper has 0.5 but for large language models.
        axis: the channel axis; the last one of tokens.
        device, dtype: of the parameters.

    Raises:
        OptionError: an option has a value that it cannot have.
        ShapeError, DTypeError: (when called) the input does not fit.

    >>> import torch
    >>> DynamicTanh(2)(torch.tensor([[0.0, 2.0]]))
    tensor([[0.0000, 0.7616]], grad_fn=<AddBackward0>)
    """

    has_samples: ClassVar[bool] = False

    def __init__(
        self,
        num_features: int,
        alpha: float = 0.5,
        axis: int = -1,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(num_features, axis, device=device, dtype=dtype)
        self.alpha_start = check_number("alpha", alpha, 0.5, positive=True)
        self.alpha = nn.Parameter(torch.empty(1, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        super().reset_parameters()
        nn.init.constant_(self.alpha, self.alpha_start)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        axis = self.channel_axis(x)
        wide = widened(x)
        return self.affine(torch.tanh(self.alpha.to(wide.dtype) * wide), axis).to(x.dtype)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, alpha={self.alpha_start:g}"
