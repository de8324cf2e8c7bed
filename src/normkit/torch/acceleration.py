"""A whole model on normkit's kernels, in place, with proof."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from normkit.errors import DTypeError, OptionError
from normkit.torch.adopt import adopt_all
from normkit.torch.comparing import arguments, relative_difference
from normkit.torch.fusion import Fusions, fuse_container
from normkit.words import counted

__all__ = ["accelerate"]

Tensor = torch.Tensor
#: Relative difference allowed in float64, where both ways differ by rounding only.
_TOLERANCE = 1e-8


def accelerate(
    model: nn.Module,
    example: Any = None,
    *,
    report: Callable[[str], Any] | None = print,
) -> nn.Module:
    """Swap a model's norm layers for normkit's and fuse what follows them, in place.

    Every norm layer of torch.nn becomes one of normkit's, with its parameters, buffers, mode and
    hooks. Where torch.fx can trace a module's forward, norm + activation, norm + addition and
    norm + addition + activation become one call. Names of parameters and ``state_dict`` stay.

    Args:
        model: changed in place; not changed at all if the verification fails.
        example: the model's input (a tensor, a tuple of arguments or a dictionary of keyword
            arguments). With it, outputs and gradients of the model and of its accelerated copy are
            compared in float64, in training and in eval, before anything is changed. Without it
            nothing is verified.
        report: takes the lines that say what was changed; None for silence.

    Returns:
        The model.

    Raises:
        OptionError: outputs or gradients differ; the model is as it was.

    >>> import torch
    >>> net = torch.nn.Sequential(
    ...     torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.ReLU()
    ... )
    >>> net = accelerate(net, torch.randn(2, 3, 8, 8))
    accelerate: 1 norm layer on normkit's kernels, 1 activation and 0 additions fused
    accelerate: verified in float64: outputs and gradients differ by at most ...
    """
    if not isinstance(model, nn.Module):
        raise DTypeError(
            "accelerate() has no model",
            received=type(model).__name__,
            expected="a torch.nn.Module",
            remedy="Pass the model itself, and its input as example=.",
        )
    say = report or _silence
    worst = None if example is None else _try(model, example)
    swapped, done = _change(model)
    say(
        f"accelerate: {counted(len(swapped), 'norm layer')} on normkit's kernels, "
        f"{counted(done.activations, 'activation')} and {counted(done.additions, 'addition')} fused"
    )
    for name, reason in done.left_alone.items():
        say(f"accelerate: nothing fused in {name or 'the model itself'}: {reason}")
    if worst is None:
        say("accelerate: not verified; pass example=, an input of the model")
    else:
        say(f"accelerate: verified in float64: outputs and gradients differ by at most {worst:.1e}")
    return model


def _silence(line: str) -> None:
    """Takes a line of the report and leaves it at that."""


def _change(model: nn.Module) -> tuple[list[str], Fusions]:
    swapped, done = adopt_all(model), Fusions()
    for name, module in model.named_modules():
        fuse_container(name, module, done)
    return swapped, done


def _try(model: nn.Module, example: Any) -> float:
    """The worst relative difference that the change makes, tried on a copy."""
    trial = copy.deepcopy(model)
    _change(trial)
    return _verify(model, trial, example)


# --- verification ---------------------------------------------------------------------------------


def _verify(model: nn.Module, trial: nn.Module, example: Any) -> float:
    """The worst relative difference between the two."""
    args, kwargs = arguments(example)
    worst = 0.0
    for training in (True, False):
        try:
            wanted = _results(copy.deepcopy(model).double().train(training), args, kwargs)
        except Exception:
            if training and not model.training:
                continue  # a model for inference only
            raise
        found = _results(copy.deepcopy(trial).double().train(training), args, kwargs)
        for what, want in wanted.items():
            difference = relative_difference(found[what], want)
            worst = max(worst, difference)
            if not difference <= _TOLERANCE:
                raise OptionError(
                    "The accelerated model does not do the same; nothing was changed",
                    received=f"a relative difference of {difference:.1e} in {what} "
                    f"({'training' if training else 'eval'} mode)",
                    expected=f"at most {_TOLERANCE:g} in float64",
                    remedy="Swap the layers without fusing: accelerate(model) and no example, or "
                    "report this model.",
                )
    return worst


def _results(model: nn.Module, args: Any, kwargs: Any) -> dict[str, Tensor]:
    """Outputs, and gradients of a fixed random combination of them."""

    def wide(value: Any) -> Any:
        floating = isinstance(value, Tensor) and value.is_floating_point()
        return value.detach().double().requires_grad_() if floating else value

    args, kwargs = pytree.tree_map(wide, (args, kwargs))
    with torch.random.fork_rng(), torch.enable_grad():
        torch.manual_seed(0)  # the same dropout in both
        leaves = [t for t in pytree.tree_leaves(model(*args, **kwargs)) if isinstance(t, Tensor)]
        found = {f"output {i}": t.detach() for i, t in enumerate(leaves)}
        torch.manual_seed(1)
        loss = sum((t * torch.randn_like(t)).sum() for t in leaves if t.requires_grad)
    if isinstance(loss, Tensor):
        loss.backward()
    inputs = [t for t in pytree.tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
    grads = {f"the gradient of input {i}": t.grad for i, t in enumerate(inputs)}
    grads |= {f"the gradient of {name}": p.grad for name, p in model.named_parameters()}
    return found | {what: grad for what, grad in grads.items() if grad is not None}
