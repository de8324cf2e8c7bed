"""Layers whose sets lie within one sample and that keep no statistics: layer, RMS, group norm."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import lru_cache
from typing import Any

import torch
from torch import nn

from normkit.errors import ShapeError
from normkit.norms import GroupNorm as _GroupNorm
from normkit.norms import Norm
from normkit.norms import RMSNorm as _RMSNorm
from normkit.norms import TokenLayerNorm as _TokenLayerNorm
from normkit.torch.calls import Plan, check_lengths, run
from normkit.torch.layers.base import KernelLayer, check_channels
from normkit.torch.lean import offered
from normkit.torch.options import check_eps
from normkit.torch.transforms import is_transformed

Tensor = torch.Tensor
_layer_norm = lru_cache(maxsize=64)(_TokenLayerNorm)
_rms_norm = lru_cache(maxsize=64)(_RMSNorm)
_group_norm = lru_cache(maxsize=64)(_GroupNorm)


class SampleLayer(KernelLayer):
    """A layer without state beyond its parameters."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._prepare()

    def _prepare(self) -> None:
        check_eps(self.eps, type(self).__name__)


class GroupNorm(SampleLayer, nn.GroupNorm):
    """``torch.nn.GroupNorm`` on normkit's kernels: (N, C, ...) input, either memory format."""

    def _norm(self, input: Tensor) -> Norm:  # noqa: ARG002
        return _group_norm(self.num_groups, eps=self.eps)

    def _ordinary(self, input: Tensor, fused: bool) -> Tensor | None:
        odd = not 2 <= input.dim() <= 5 or input.size(1) != self.num_channels
        if not odd and not input.numel():
            return None  # torch.nn makes gradients of NaN
        if odd or input.numel() <= input.size(0) * self.num_groups:
            return self._torch_forward(input)  # torch.nn has words for it
        return self._torch_forward(input) if self._suits_torch(input, fused) else None

    def _general(self, plan: Plan, input: Tensor, weight: Any, bias: Any, residual: Any) -> Tensor:
        check_channels(input, 1, self.num_channels, "GroupNorm")
        return self._run(plan, input, weight, bias, residual)[0]


class _TrailingLayer(SampleLayer):
    """A norm over the trailing axes: every remaining index is a token of its own."""

    _axis = -1
    normalized_shape: tuple[int, ...]

    def _ordinary(self, input: Tensor, fused: bool) -> Tensor | None:
        rank = len(self.normalized_shape)
        odd = tuple(input.shape[-rank:]) != tuple(self.normalized_shape)  # torch.nn has words
        if odd or input.dim() == rank or self._suits_torch(input, fused):
            return self._torch_forward(input)
        return None

    def _general(self, plan: Plan, input: Tensor, weight: Any, bias: Any, residual: Any) -> Tensor:
        rank = len(self.normalized_shape)
        if tuple(input.shape[-rank:]) != tuple(self.normalized_shape):
            raise ShapeError(
                f"The input does not fit this {type(self).__name__}",
                received=f"shape {tuple(input.shape)}",
                expected=f"trailing axes of {tuple(self.normalized_shape)}",
                remedy="Check normalized_shape.",
            )
        per_sample = [self._per_sample(values, input, rank) for values in (weight, bias)]
        shape = self._token_shape(input, rank, any(per_sample))
        gamma, beta = self._affine(weight, bias)
        mask = _token_mask(input, rank, plan.mask, plan.lengths, shape)
        plan = replace(plan, mask=mask, lengths=None)
        if residual is not None:
            residual = self._like(input, residual).reshape(shape)
        gamma, beta = _flat(gamma, per_sample[0]), _flat(beta, per_sample[1])
        y, _ = run(plan, input.reshape(shape), gamma, beta, residual)
        return offered(y).reshape(input.shape)

    def _per_sample(self, values: Any, input: Tensor, rank: int) -> bool:
        """Whether a call's weight or bias is one for each sample."""
        if values is None or tuple(values.shape) == tuple(self.normalized_shape):
            return False
        expected = (input.shape[0], *self.normalized_shape)
        if tuple(values.shape) == expected and input.dim() > rank:
            return True
        raise ShapeError(
            "A call's weight or bias does not fit",
            received=f"shape {tuple(values.shape)} with input of shape {tuple(input.shape)}",
            expected=f"{tuple(self.normalized_shape)}, or {expected} for one a sample",
            remedy="Reshape it.",
        )

    def _token_shape(self, input: Tensor, rank: int, per_sample: bool) -> tuple[int, ...]:
        size = math.prod(self.normalized_shape)
        if per_sample and input.dim() > rank + 1:
            return (input.shape[0], math.prod(input.shape[1:-rank]), size)
        return (math.prod(input.shape[:-rank]), size)

    def _like(self, input: Tensor, residual: Tensor) -> Tensor:
        if residual.shape != input.shape:
            raise ShapeError(
                "residual does not fit the input",
                received=f"shape {tuple(residual.shape)}",
                expected=f"{tuple(input.shape)}",
                remedy="residual corresponds to the input element by element.",
            )
        return residual


def _flat(values: Any, per_sample: bool) -> Any:
    if values is None:
        return None
    return values.reshape(values.shape[0], -1) if per_sample else values.reshape(-1)


def _token_mask(
    input: Tensor,
    rank: int,
    mask: Any,
    lengths: Any,
    shape: tuple[int, ...],
) -> Tensor | None:
    """mask= or lengths= as the engine takes it for tokens of this shape."""
    tokens = tuple(input.shape[:-rank])
    if lengths is not None:
        if mask is not None or len(tokens) < 2:
            raise ShapeError(
                "lengths= does not fit",
                received="mask= too" if mask is not None else f"input of {tuple(input.shape)}",
                expected="lengths= alone, with (N, T, ...) input",
                remedy="Use mask= for anything else.",
            )
        if not is_transformed():
            check_lengths(lengths, tokens[1])
        steps = torch.arange(tokens[1], device=input.device)
        mask = steps[None, :] < lengths[:, None]
        mask = mask.reshape(tokens[:2] + (1,) * (len(tokens) - 2))
        mask = mask.expand(tokens)
    if mask is None:
        return None
    if tuple(mask.shape) == tokens:
        return mask.reshape(shape[:-1])
    try:
        return mask.expand(input.shape).reshape(shape)
    except RuntimeError:
        raise ShapeError(
            "mask= does not fit the input",
            received=f"mask of shape {tuple(mask.shape)} with input of shape {tuple(input.shape)}",
            expected=f"{tokens}, one a token, or a shape that broadcasts to the input's",
            remedy="Check the order of the axes.",
        ) from None


class LayerNorm(_TrailingLayer, nn.LayerNorm):
    """``torch.nn.LayerNorm`` on normkit's kernels: normalizes over the trailing axes.

    A mask leaves elements out of their token's statistics; tokens that are masked altogether come
    out as the bias.
    """

    def _norm(self, input: Tensor) -> Norm:  # noqa: ARG002
        return _layer_norm(eps=self.eps)


class RMSNorm(_TrailingLayer, nn.RMSNorm):
    """``torch.nn.RMSNorm`` on normkit's kernels: divides the trailing axes by their mean square."""

    def forward(self, x: Tensor, **options: Any) -> Tensor:  # type: ignore[override]
        """As in every layer; torch.nn calls the input x here."""
        return super().forward(x, **options)

    def _norm(self, input: Tensor) -> Norm:
        # torch.nn computes narrow dtypes in float32, and takes that dtype's eps.
        wide = torch.promote_types(input.dtype, torch.float32)
        eps = self.eps if self.eps is not None else torch.finfo(wide).eps
        return _rms_norm(eps=eps)
