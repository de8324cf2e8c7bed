"""What data parallelism and compilation wrap around a model."""

from __future__ import annotations

from torch import nn

from normkit.errors import ModelError

__all__ = ["HOOKS", "check_bare", "plain_model"]

#: Where a module keeps what users hung on its calls.
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def check_bare(model: nn.Module, tool: str) -> None:
    """Whether layers can be taken out of a model, or put in, without its wrapper noticing.

    Raises:
        ModelError: it is wrapped.
    """
    inside = plain_model(model)
    if inside is not model:
        raise ModelError(
            f"{tool}() takes the model that is inside",
            received=f"{type(model).__name__} around {type(inside).__name__}",
            expected="the model without its wrapper",
            remedy="Pass model.module (data parallelism) or model._orig_mod (torch.compile), and "
            "wrap the result.",
        )


def plain_model(model: nn.Module) -> nn.Module:
    """The model inside wrappers of data parallelism and compilation.

    >>> net = nn.Linear(2, 2)
    >>> plain_model(nn.DataParallel(net)) is net
    True
    """
    wrappers = (nn.DataParallel, nn.parallel.DistributedDataParallel)
    while True:
        if isinstance(model, wrappers):
            model = model.module
        elif isinstance(getattr(model, "_orig_mod", None), nn.Module):
            model = model._orig_mod  # type: ignore[assignment]
        else:
            return model
