"""What data parallelism and compilation wrap around a model."""

from __future__ import annotations

from torch import nn

__all__ = ["plain_model"]


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
