"""A checkpoint's weights put into a module: all of them, or the module is as it was."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from normkit.errors import ModelError
from normkit.models.opening.checkpoints import Checkpoint, open_checkpoint

__all__ = ["load_weights"]

Tensor = torch.Tensor


def load_weights(module: nn.Module, path: Path) -> Checkpoint:
    """Load a checkpoint into a module, in place; every name and shape must fit.

    Returns:
        what the file held.

    Raises:
        ModelError: they do not; the message counts and names those that differ.
        FileError: what :func:`open_checkpoint` raises.
    """
    own = module.state_dict(keep_vars=True)
    checkpoint = open_checkpoint(path)
    state = _renamed(checkpoint.state, own)
    kept = {
        name: value.detach().clone()
        for name, value in own.items()
        if isinstance(value, Tensor) and not is_lazy(value)
    }
    try:
        module.load_state_dict(state, strict=True)
    except BaseException as error:
        with torch.no_grad():
            for name, before in kept.items():
                own[name].copy_(before)
        if not isinstance(error, RuntimeError):
            raise
        _explain_misfit(module, own, state, path)
        raise ModelError(
            "The checkpoint does not fit the model",
            received=str(path),
            expected=f"the weights of this {type(module).__name__}",
            remedy=f"PyTorch says: {' '.join(str(error).split())[:400]}",
        ) from error
    return checkpoint


def _renamed(state: dict[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """The checkpoint's values under the module's names, where only wrappers' prefixes differ."""
    plain = {_plain(name): name for name in own}
    found = {_plain(name): value for name, value in state.items()}
    if len(plain) < len(own) or len(found) < len(state):
        return state
    if not any(name in plain for name in found):  # Lightning's "model.", or the like
        inner = {name.partition(".")[2]: value for name, value in found.items()}
        prefixes = {name.partition(".")[0] for name in found}
        if len(prefixes) == 1 and any(name in plain for name in inner):
            found = inner
    return {
        plain.get(name, name): value
        for name, value in found.items()
        if name in plain or name != "n_averaged"  # AveragedModel counts beside the weights
    }


def _plain(name: str) -> str:
    while name.startswith(("module.", "_orig_mod.")):
        name = name.partition(".")[2]
    return name


def _explain_misfit(
    module: nn.Module, own: Mapping[str, Any], state: Mapping[str, Any], path: Path
) -> None:
    """Count and name what differs, once PyTorch has refused: layers may load in their own way."""
    missing = [name for name in own if name not in state]
    unexpected = [name for name in state if name not in own]
    shapes = [
        f"{name} {tuple(state[name].shape)}, the model has {tuple(value.shape)}"
        for name, value in own.items()
        if isinstance(value, Tensor) and not is_lazy(value)
        and isinstance(state.get(name), Tensor) and state[name].shape != value.shape
    ]  # fmt: skip
    faults = [
        f"{len(names)} {what} ({', '.join(names[:3])}{', …' if len(names) > 3 else ''})"
        for what, names in (
            ("missing", missing), ("unexpected", unexpected), ("of another shape", shapes)
        )
        if names
    ]  # fmt: skip
    if faults:
        raise ModelError(
            "The checkpoint does not fit the model",
            received=f"{path} with {', '.join(faults)}",
            expected=f"the {len(own)} tensors of this {type(module).__name__}",
            remedy="Make the model as it was when the checkpoint was saved: the same function, "
            "with the same number of classes and options.",
        )
