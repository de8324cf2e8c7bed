"""A model that runs, and is afterwards as it was."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import nn

from normkit.torch.statistics import Tracker

__all__ = ["undisturbed"]


@contextlib.contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Undo, however the block ends, what it does to a model's modes, buffers and attributes.

    Parameters are not kept: the block is not to change them. Random generators, PyTorch's, NumPy's
    and Python's, go back too.

    >>> layer = nn.BatchNorm1d(2)
    >>> with undisturbed(layer):
    ...     _ = layer(torch.randn(8, 2))
    >>> layer.running_mean, int(layer.num_batches_tracked)
    (tensor([0., 0.]), 0)
    """
    kept = [_Kept(module) for module in model.modules()]
    state, legacy = random.getstate(), np.random.get_state()  # noqa: NPY002 - users' augmentations
    try:
        with torch.random.fork_rng(_devices(model)):
            yield
    finally:
        for each in kept:
            each.restore()
        random.setstate(state)
        np.random.set_state(legacy)  # noqa: NPY002


class _Kept:
    """One module's own state."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.attributes = dict(module.__dict__)
        # Hooks, children, lists and dictionaries of the user's: as they were, not as they will be.
        self.containers = [
            (value, value.copy())
            for value in self.attributes.values()
            if isinstance(value, (dict, list, set))
        ]
        buffers = [b for b in module._buffers.values() if b is not None and _has_values(b)]
        self.values = [(b, b.detach().clone()) for b in buffers]
        if isinstance(getattr(module, "tracker", None), Tracker):
            module.__dict__["tracker"] = Tracker()

    def restore(self) -> None:
        now = self.module.__dict__
        if now.keys() != self.attributes.keys() or any(
            now[name] is not value for name, value in self.attributes.items()
        ):
            now.clear()
            now.update(self.attributes)
        for container, before in self.containers:
            _refill(container, before)
        with torch.no_grad():
            for buffer, value in self.values:
                if not torch.equal(buffer, value):  # batch norm changes them without a new version
                    buffer.copy_(value)


def _has_values(tensor: torch.Tensor) -> bool:
    return not nn.parameter.is_lazy(tensor) and not tensor.is_meta


def _refill(container: Any, before: Any) -> None:
    """Contents by identity: what is in them may not compare."""
    if isinstance(container, dict):
        same = list(container) == list(before) and all(container[k] is before[k] for k in before)
    elif isinstance(container, list):
        same = len(container) == len(before) and all(
            a is b for a, b in zip(container, before, strict=True)
        )
    else:
        same = container == before
    if same:
        return
    container.clear()
    if isinstance(container, list):
        container.extend(before)
    else:
        container.update(before)


def _devices(model: nn.Module) -> list[Any]:
    """The accelerators whose generators the model may draw from."""
    tensors = [*model.parameters(), *model.buffers()]
    return sorted({t.device for t in tensors if t.device.type == "cuda"}, key=str)
