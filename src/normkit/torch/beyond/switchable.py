"""Switchable norm (Luo et al. 2018): learned weights over instance, layer and batch statistics."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from normkit.errors import OptionError, ShapeError
from normkit.torch.beyond.common import (
    TrackingLayer,
    check_number,
    merge,
    moments,
    positions,
    widened,
)

__all__ = ["SwitchableNorm"]

_ALL = ("instance", "layer", "batch")


class SwitchableNorm(TrackingLayer):
    """γ · (x − Σ wₖμₖ) / √(Σ w'ₖσ²ₖ + ε) + β over k = instance, layer, batch statistics.

    Luo et al. 2018, "Differentiable Learning-to-Normalize via Switchable Normalization",
    section 2. w and w' are softmaxes of learned logits, one set for the means and one for the
    variances. x is read once for the instances' moments; those of layer and batch are merged from
    them. In evaluation running averages take the place of the batch's statistics.

    Args:
        num_features: C of inputs (N, C, L), (N, C, H, W), (N, C, D, H, W), ...
        eps: ε, at least 0.
        momentum: weight of a new batch in the running statistics; None for a plain average.
        choices: between which statistics the layer chooses. Without ``"batch"`` it treats every
            sample alone and keeps no running statistics; without ``"instance"`` it also takes
            (N, C), where an instance is a single number.
        track_running_stats: False takes the batch's statistics in evaluation too.
        device, dtype: of the parameters.

    Raises:
        OptionError: an option has a value that it cannot have.
        ShapeError, DTypeError: (when called) the input does not fit.

    >>> import torch
    >>> layer = SwitchableNorm(3)
    >>> y = layer(torch.randn(4, 3, 8, 8))
    >>> layer.mean_weight.softmax(0).detach()  # equal at first
    tensor([0.3333, 0.3333, 0.3333])
    """

    mean_weight: nn.Parameter
    var_weight: nn.Parameter

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        choices: Sequence[str] | str = _ALL,
        track_running_stats: bool = True,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        chosen = _checked_choices(choices)
        names = ("running_mean", "running_var")
        tracks = track_running_stats and "batch" in chosen
        super().__init__(
            num_features, momentum, names if tracks else (), device=device, dtype=dtype
        )
        self.eps = check_number("eps", eps, 1e-5)
        self.choices = chosen
        for name in () if tracks else names:
            self.register_buffer(name, None)
        for name in ("mean_weight", "var_weight"):
            logits = torch.empty(len(self.choices), device=device, dtype=dtype)
            self.register_parameter(name, nn.Parameter(logits))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        super().reset_parameters()
        nn.init.ones_(self.mean_weight)
        nn.init.ones_(self.var_weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        axis = self.channel_axis(x)
        if x.dim() == 2 and "instance" in self.choices:
            raise ShapeError(
                "Instances of a single number have no variance",
                received=f"shape {tuple(x.shape)}",
                expected="at least 3 dimensions, (N, C, ...)",
                remedy="For (N, C) make the layer with choices=('layer', 'batch').",
            )
        wide = widened(x)
        means, variances = zip(*self._statistics(wide), strict=True)
        mean = _mixed(means, self.mean_weight)
        var = _mixed(variances, self.var_weight)
        return self.affine((wide - mean) * (var + self.eps).rsqrt(), axis).to(x.dtype)

    def _statistics(self, x: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Mean and variance by each choice, of shapes that broadcast against x."""
        instance = moments(x, positions(x, 1))
        found = []
        for choice in self.choices:
            if choice == "instance":
                found.append(instance)
            elif choice == "layer":
                found.append(merge(*instance, 1))
            else:
                found.append(self._batch(x, instance))
        return found

    def _batch(
        self, x: torch.Tensor, instance: tuple[torch.Tensor, torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        running_mean, running_var = self.running_mean, self.running_var
        if not self.training and running_mean is not None and running_var is not None:
            return self.along(running_mean, x, 1), self.along(running_var, x, 1)
        mean, var = merge(*instance, 0)
        self.track(x.numel() // self.num_features, running_mean=mean, running_var=var)
        return mean, var

    def extra_repr(self) -> str:
        return (
            f"{self.num_features}, eps={self.eps:g}, momentum={self.momentum}, "
            f"choices={self.choices}, track_running_stats={self.running_var is not None}"
        )


def _mixed(values: tuple[torch.Tensor, ...], logits: torch.Tensor) -> torch.Tensor:
    weights = logits.to(values[0].dtype).softmax(0)
    mixed = weights[0] * values[0]
    for k, value in enumerate(values[1:], 1):
        mixed = mixed + weights[k] * value
    return mixed


def _checked_choices(choices: Any) -> tuple[str, ...]:
    names = tuple(choices) if isinstance(choices, list | tuple) else (choices,)
    unknown = [name for name in names if name not in _ALL]
    if not names or unknown or len(set(names)) < len(names):
        near = difflib.get_close_matches(str(unknown[0]), _ALL, 1) if unknown else []
        raise OptionError(
            "Switchable norm cannot choose between these",
            received=repr(choices),
            expected=f"at least one of {', '.join(_ALL)}, each once",
            remedy=f"Did you mean {near[0]!r}?" if near else "The paper has all three.",
        )
    return tuple(name for name in _ALL if name in names)  # one order, so that state dicts fit
