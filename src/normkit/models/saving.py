"""Weights to a file, whole or not at all."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from normkit.errors import FileError
from normkit.extras import needed
from normkit.writing import check_output, replacing

__all__ = ["check_weights_output", "save_weights"]

Tensor = torch.Tensor
ENDINGS = (".safetensors", ".pt", ".pth")


def check_weights_output(
    path: Path, inputs: Iterable[Path] = (), *, overwrite: bool = False
) -> None:
    """Whether weights may be written to ``path``; asked before the work.

    Raises:
        FileError: see :func:`normkit.writing.check_output`; or the ending says no format.
        ModuleNotFoundError: the format's library is missing.
    """
    if path.suffix not in ENDINGS and not path.is_dir():
        raise FileError(
            "No such format for weights",
            received=str(path),
            expected=f"a name that ends in {', '.join(ENDINGS)}",
            remedy=f"For instance {path.with_suffix('.safetensors')}.",
        )
    check_output(path, inputs, overwrite=overwrite, example="weights.safetensors")
    if path.suffix == ".safetensors":
        needed("safetensors")


def save_weights(
    model: nn.Module | Mapping[str, Tensor],
    path: str | Path,
    inputs: Iterable[Path] = (),
    *,
    overwrite: bool = False,
) -> None:
    """Write a ``state_dict`` as ``.safetensors``, or as ``.pt`` that loads with weights only.

    Raises:
        FileError: the file exists, or is no place to write to.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "weights.pt"
    >>> save_weights(nn.Linear(2, 1), path)
    >>> sorted(torch.load(path, weights_only=True))
    ['bias', 'weight']
    """
    path = Path(path)
    check_weights_output(path, inputs, overwrite=overwrite)
    state = model.state_dict() if isinstance(model, nn.Module) else model
    tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    with replacing(path) as temporary:
        if path.suffix == ".safetensors":
            needed("safetensors.torch").save_file(_apart(tensors), str(temporary))
        else:
            torch.save({name: value.detach() for name, value in tensors.items()}, temporary)


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Each in memory of its own and contiguous, as safetensors wants them."""
    seen: set[int] = set()
    found = {}
    for name, value in tensors.items():
        plain = value.detach().cpu().contiguous()
        whole = plain.untyped_storage().nbytes() == plain.numel() * plain.element_size()
        pointer = plain.untyped_storage().data_ptr()
        found[name] = plain.clone() if pointer in seen or not whole else plain
        seen.add(pointer)
    return found
