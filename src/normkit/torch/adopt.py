"""torch.nn's norm layers turned into normkit's, in place."""

from __future__ import annotations

from torch import nn

from normkit.torch import layers
from normkit.torch.layers.base import KernelLayer

__all__ = ["adopt", "adopt_all"]

#: Exactly these classes: a subclass may have a forward of its own.
_OURS: dict[type, type[KernelLayer]] = {
    getattr(nn, name): getattr(layers, name) for name in layers.__all__ if hasattr(nn, name)
}


def adoptable(module: nn.Module) -> bool:
    """Whether a module is a norm layer of torch.nn's or normkit's."""
    return type(module) in _OURS or isinstance(module, KernelLayer)


def adopt(module: nn.Module) -> bool:
    """Make a torch.nn norm layer one of normkit's, with its parameters, buffers, mode and hooks.

    Returns:
        Whether it was one of torch.nn's.

    >>> from torch import nn
    >>> layer = nn.LayerNorm(4)
    >>> adopt(layer), type(layer).__module__.split(".")[0]
    (True, 'normkit')
    """
    ours = _OURS.get(type(module))
    if ours is None:
        return False
    ours.adopt(module)
    return True


def adopt_all(model: nn.Module) -> list[str]:
    """Names of the layers that were torch.nn's and are normkit's now."""
    return [name for name, module in model.named_modules() if adopt(module)]
