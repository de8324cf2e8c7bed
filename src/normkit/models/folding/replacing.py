"""Changes to a model's tensors and children, prepared first and then made all or none."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

__all__ = ["Edits", "set_tensor"]

Tensor = torch.Tensor
_ABSENT = object()


class Edits:
    """What is to be put where. Nothing changes before :meth:`make`.

    >>> net, edits = nn.Sequential(nn.Linear(2, 2), nn.ReLU()), Edits()
    >>> edits.replace(net, net[1], nn.Identity())
    >>> edits.make()
    >>> net[1]
    Identity()
    """

    def __init__(self) -> None:
        self._steps: list[tuple[dict[str, Any], str, Any]] = []

    def tensor(self, module: nn.Module, name: str, value: Tensor | None) -> None:
        """A parameter or buffer of another value; it learns, and lies in memory, as it did."""
        holder: dict[str, Any] = module._buffers if name in module._buffers else module._parameters
        self._steps.append((holder, name, _kept_as(module, name, value)))

    def attribute(self, module: nn.Module, name: str, value: Any) -> None:
        """A plain attribute."""
        self._steps.append((vars(module), name, value))

    def replace(self, model: nn.Module, old: nn.Module, new: nn.Module) -> None:
        """Another module wherever the model has this one."""
        self.attribute(new, "training", old.training)
        for parent in model.modules():
            for name, child in parent._modules.items():
                if child is old:
                    self._steps.append((parent._modules, name, new))

    def make(self) -> None:
        """Make all of them; if that is interrupted, none."""
        before: list[tuple[dict[str, Any], str, Any]] = []
        try:
            for holder, name, value in self._steps:
                before.append((holder, name, holder.get(name, _ABSENT)))
                holder[name] = value
        except BaseException:
            for holder, name, value in reversed(before):
                holder.pop(name, None) if value is _ABSENT else holder.update({name: value})
            raise


def set_tensor(module: nn.Module, name: str, value: Tensor | None) -> None:
    """Put a tensor where the module has its parameter or buffer of this name, at once."""
    holder: dict[str, Any] = module._buffers if name in module._buffers else module._parameters
    holder[name] = _kept_as(module, name, value)


def _kept_as(module: nn.Module, name: str, value: Tensor | None) -> Tensor | None:
    """The value as the module keeps what it has under this name, a bias as it keeps its weight."""
    if value is None:
        return None
    old = getattr(module, name, None)
    like: Any = module.weight if old is None else old
    # empty_like keeps the memory format
    kept = value.to(like) if old is None else torch.empty_like(like.detach()).copy_(value)
    return kept if name in module._buffers else nn.Parameter(kept, like.requires_grad)
