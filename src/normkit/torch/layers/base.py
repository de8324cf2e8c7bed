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
from normkit.torch.lean import is_lean, offered

Tensor = torch.Tensor


class KernelLayer(nn.Module):
    """A subclass of one of torch.nn's norms whose forward runs on normkit's kernels.

    Beside torch.nn's input, every layer takes at call time: ``mask=`` or ``lengths=`` (what
    counts), ``weight=`` and ``bias=`` (in place of its own: (C,), or (N, C) for conditional norms),
    ``residual=`` and ``activation=`` (fused behind the norm).
    """

    _axis = 1  # of the channels

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.__signature__ = _signature(cls)  # type: ignore[attr-defined]

    @classmethod
    def adopt(cls, module: nn.Module) -> Any:
        """Make a layer of torch.nn one of normkit's, in place, with everything that hangs on it.

        Raises:
            OptionError: it has an eps or momentum that normkit refuses; it stays as it was.
        """
        before = type(module)
        module.__class__ = cls
        try:
            module._prepare()  # type: ignore[operator]
        except Exception:
            module.__class__ = before
            raise
        return module

    def _prepare(self) -> None:
        """Set what a layer has beyond torch.nn's attributes."""

    def forward(
        self,
        input: Tensor,
        *,
        mask: Tensor | None = None,
        lengths: Tensor | None = None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        residual: Tensor | None = None,
        activation: str | None = None,
        input_activation: str | None = None,
    ) -> Tensor:
        """activation(norm(input_activation(input)) + residual); see the class for the options."""
        if promotes(input, residual, activation):  # as under autocast
            options = {"mask": mask, "lengths": lengths, "weight": weight, "bias": bias}
            y = self(input, input_activation=input_activation, **options)
            return native.finish(y, residual, activation)
        if mask is None and lengths is None and weight is None and bias is None:
            y = self._plainly(input, residual, activation, input_activation)
            if y is not None:
                return y
        plan = Plan(
            self._norm(input), self._axis, activation, mask, lengths,
            input_activation=input_activation,
        )  # fmt: skip
        return self._general(plan, input, weight, bias, residual)

    def _plainly(
        self, input: Any, residual: Any, activation: str | None, input_activation: str | None
    ) -> Tensor | None:
        """What torch.nn's forward and PyTorch's operators give; None where they do not serve."""
        if not isinstance(input, Tensor):
            return self._foreign(input, residual, activation, input_activation)
        if is_lean() and torch.is_grad_enabled():
            return None  # PyTorch's operators keep their outputs
        if residual is None and activation is None and input_activation is None:
            return self._ordinary(input, False)
        if not (native.knows(activation) and native.knows(input_activation)):
            return None
        if residual is not None and (
            residual.shape != input.shape or residual.dtype != input.dtype
        ):
            return None
        if not self._suits_torch(input, True):
            return None
        y = self._ordinary(native.finish(input, None, input_activation), True)
        return None if y is None else native.finish(y, residual, activation)

    def _foreign(self, input: Any, *options: Any) -> Any:
        """An input that is no tensor: torch.fx's stand-in for one, or a mistake."""
        if not isinstance(input, torch.fx.Proxy):
            return self._torch_forward(input)  # torch.nn has words for it
        # torch.fx takes torch.nn's layers as they are, but only those from its own modules.
        names = ("residual", "activation", "input_activation")
        given = {n: value for n, value in zip(names, options, strict=True) if value is not None}
        tracer: Any = input.tracer
        return tracer.create_proxy("call_module", tracer.path_of_module(self), (input,), given)

    def _ordinary(self, input: Tensor, fused: bool) -> Tensor | None:
        """torch.nn's own forward where it does the same as quickly; None where it does not."""
        raise NotImplementedError

    def _norm(self, input: Tensor) -> Norm:
        """The layer's norm, as the engine knows it."""
        raise NotImplementedError

    def _general(self, plan: Plan, input: Tensor, weight: Any, bias: Any, residual: Any) -> Tensor:
        """The call on normkit's kernels; ``plan`` holds the rest of the options."""
        raise NotImplementedError

    def _torch_forward(self, input: Tensor) -> Tensor:
        """torch.nn's own forward: for small inputs, other devices, and inputs it has words for."""
        return super().forward(input)

    def _suits_torch(self, input: Tensor, fused: bool) -> bool:
        """Whether torch.nn's own forward is as quick, or all there is."""
        if not is_plain_cpu(input) or not input.numel():
            return True
        if native.is_small(self._norm(input), input, self._axis, fused):
            return True
        return self._mixes_dtypes(input)

    def _mixes_dtypes(self, input: Tensor) -> bool:
        """Whether torch.nn may refuse these dtypes; then so do we, whatever the size."""
        for held in (self._parameters.get("weight"), self._buffers.get("running_mean")):
            if held is None or held.dtype is input.dtype:
                continue
            narrow = input.dtype is torch.bfloat16 or input.dtype is torch.float16
            if not (narrow and held.dtype is torch.float32):
                return True
        return False

    def _affine(self, weight: Any, bias: Any) -> tuple[Any, Any]:
        """The layer's own parameters but for what the call gives."""
        own_weight, own_bias = self.weight, getattr(self, "bias", None)
        return own_weight if weight is None else weight, own_bias if bias is None else bias

    def _run(
        self, plan: Plan, x: Tensor, weight: Any, bias: Any, residual: Any
    ) -> tuple[Tensor, Any]:
        y, moments = run(plan, x, *self._affine(weight, bias), residual)
        return offered(y), moments


def promotes(input: Any, residual: Any, activation: str | None) -> bool:
    """Whether a residual is not like the input, so that PyTorch's operators have to add it."""
    if residual is None or not isinstance(input, Tensor) or not native.knows(activation):
        return False
    if not isinstance(residual, Tensor):
        return isinstance(residual, (int, float))
    return residual.dtype != input.dtype or residual.shape != input.shape


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
