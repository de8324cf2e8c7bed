"""Norm, residual and activation as one layer and one pass over memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from normkit.epilogues import find_activation
from normkit.errors import DTypeError
from normkit.torch.adopt import adopt
from normkit.torch.layers.base import KernelLayer
from normkit.torch.options import check_choice

__all__ = ["NormAct"]

ORDERS = ("norm_first", "activation_first")


class NormAct(nn.Module):
    """A norm layer and an activation, fused, with an optional residual.

    ``order="norm_first"``: activation(norm(x) + residual), what a residual block ends with.
    ``order="activation_first"``: norm(activation(x)) + residual, the norm behind the activation.

    Args:
        norm: a layer of :mod:`normkit.torch`, or of torch.nn, which becomes one of normkit's.
        activation: a name that ``normkit.activation_names()`` lists.
        order: see above.

    Raises:
        DTypeError: ``norm`` is no norm layer.
        OptionError: unknown activation or order.

    Within :func:`normkit.torch.lean_memory` its output is not kept for backward.

    >>> import torch, normkit.torch as nt
    >>> block = NormAct(nt.BatchNorm2d(4), "relu")
    >>> x = torch.randn(2, 4, 5, 5)
    >>> y = block(x, residual=x)
    >>> bool((y >= 0).all())
    True
    """

    def __init__(
        self, norm: nn.Module, activation: str | None = "relu", order: str = "norm_first"
    ) -> None:
        super().__init__()
        if isinstance(norm, nn.Module):
            adopt(norm)
        if not isinstance(norm, KernelLayer):
            raise DTypeError(
                "NormAct has no norm",
                received=repr(norm),
                expected="a norm layer of normkit.torch or torch.nn",
                remedy='For instance NormAct(normkit.torch.BatchNorm2d(64), "relu").',
            )
        find_activation(activation)
        check_choice("order", order, ORDERS)
        self.norm, self.activation, self.order = norm, activation, order

    def extra_repr(self) -> str:
        order = "" if self.order == ORDERS[0] else f", order={self.order!r}"
        return f"activation={self.activation!r}{order}"

    def forward(
        self, input: torch.Tensor, residual: torch.Tensor | None = None, **options: Any
    ) -> torch.Tensor:
        """The norm layer's options (``mask=``, ``domain=``, ...) are handed on."""
        if self.order == "activation_first":
            return self.norm(input, residual=residual, input_activation=self.activation, **options)
        return self.norm(input, residual=residual, activation=self.activation, **options)
