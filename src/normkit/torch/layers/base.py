"""What all layers share: when torch.nn's own forward serves, and the call of a norm when not."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn

from normkit.errors import ShapeError
from normkit.norms import Norm
from normkit.torch import native
from normkit.torch.calls import Plan, is_plain_cpu, run

Tensor = torch.Tensor


class KernelLayer(nn.Module):
    """A subclass of one of torch.nn's norms whose forward runs on normkit's kernels.

    Beside torch.nn's input, every layer takes at call time: ``mask=`` or ``lengths=`` (what
    counts), ``weight=`` and ``bias=`` (in place of its own: (C,), or (N, C) for conditional norms),
    ``residual=`` and ``activation=`` (fused behind the norm).
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.__signature__ = _signature(cls)  # type: ignore[attr-defined]

    @classmethod
    def adopt(cls, module: nn.Module) -> Any:
        """Make a layer of torch.nn one of normkit's, in place, with everything that hangs on it."""
        module.__class__ = cls
        module._prepare()  # type: ignore[operator]
        return module

    def _prepare(self) -> None:
        """Set what a layer has beyond torch.nn's attributes."""

    def _torch_forward(self, input: Tensor) -> Tensor:
        """torch.nn's own forward: for small inputs, other devices, and inputs it has words for."""
        return super().forward(input)

    def _suits_torch(self, norm: Norm, input: Tensor, axis: int = 1) -> bool:
        """Whether torch.nn's own forward is as quick, or all there is."""
        return not is_plain_cpu(input) or native.is_small(norm, input, axis) or not input.numel()

    def _affine(self, weight: Any, bias: Any) -> tuple[Any, Any]:
        """The layer's own parameters but for what the call gives."""
        own_weight, own_bias = self.weight, getattr(self, "bias", None)
        return own_weight if weight is None else weight, own_bias if bias is None else bias

    def _run(
        self, plan: Plan, x: Tensor, weight: Any, bias: Any, residual: Any
    ) -> tuple[Tensor, Any]:
        return run(plan, x, *self._affine(weight, bias), residual)


def is_given(*values: Any) -> bool:
    """Whether any option of a call is in use."""
    return any(value is not None for value in values)


def check_channels(input: Tensor, axis: int, expected: int, kind: str) -> None:
    """The input has as many channels as the layer.

    Raises:
        ShapeError: it has not.
    """
    if input.dim() <= axis or input.shape[axis] != expected:
        raise ShapeError(
            f"The input does not fit this {kind}",
            received=f"shape {tuple(input.shape)}",
            expected=f"{expected} channels along axis {axis}",
            remedy="Check num_features, and that channels come second.",
        )


def _signature(cls: type) -> inspect.Signature:
    """torch.nn's parameters, then the layer's own keyword-only options."""
    found: dict[str, inspect.Parameter] = {}
    for base in reversed(cls.__mro__):
        init = base.__dict__.get("__init__")
        if init is None or base in (nn.Module, object):
            continue
        parameters = list(inspect.signature(init).parameters.values())[1:]
        if base.__module__.startswith("torch.nn"):
            found = {}  # a subclass of torch.nn's repeats all that it takes
        found.update(
            (p.name, p) for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
        )
    ordered = sorted(found.values(), key=lambda p: p.kind)
    return inspect.Signature(ordered)
