"""The files that port writes: tensors by the target's names, and beside them what they mean."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from normkit.errors import FileError
from normkit.extras import needed
from normkit.models.opening.detect import damaged
from normkit.models.porting.conventions import CONVENTIONS
from normkit.models.porting.weights import STATISTICS, NormWeights
from normkit.writing import replacing

__all__ = ["ENDINGS", "read_stored", "tensors_for", "write_stored"]

#: What may be written; .pt is PyTorch's own.
ENDINGS = (".safetensors", ".pt")
_KEY = "normkit.port"
_FIELDS = (
    "kind", "eps", "keep", "variance", "groups", "channels", "dims", "synced", "framework", "notes",
)  # fmt: skip


def tensors_for(weights: NormWeights) -> dict[str, np.ndarray[Any, Any]]:
    """A layer's tensors by the names that its framework gives them.

    >>> sorted(tensors_for(NormWeights("rms", (2,), 1e-6, np.ones(2), name="n", framework="keras")))
    ['n/gamma']
    """
    there = CONVENTIONS[weights.framework]
    names = dict(zip(STATISTICS, there.names, strict=True))
    prefix = f"{weights.name}{there.separator}" if weights.name else ""
    tensors = {f"{prefix}{names[role]}": value for role, value in weights.arrays().items()}
    if weights.framework == "torch" and weights.kind == "batch":
        tensors[f"{prefix}num_batches_tracked"] = np.array(0, np.int64)
    return tensors


def write_stored(path: Path, layers: Sequence[NormWeights]) -> None:
    """Write layers as ``.safetensors``, or as ``.pt`` that loads with weights only."""
    tensors: dict[str, Any] = {}
    for weights in layers:
        tensors |= tensors_for(weights)
    with replacing(path) as temporary:
        if path.suffix == ".pt":
            torch = needed("torch")
            torch.save({n: torch.from_numpy(v.copy()) for n, v in tensors.items()}, temporary)
            return
        plain = {name: np.ascontiguousarray(value) for name, value in tensors.items()}
        metadata = {_KEY: json.dumps([_described(weights) for weights in layers])}
        needed("safetensors.numpy").save_file(plain, str(temporary), metadata)


def _described(weights: NormWeights) -> dict[str, Any]:
    said = {name: getattr(weights, name) for name in _FIELDS}
    return {"name": weights.name, "shape": list(weights.shape), **said}


def read_stored(path: Path) -> list[NormWeights] | None:
    """The layers of a file that port has written; None where it is another's.

    Raises:
        FileError: what it says does not fit what it holds.
    """
    try:
        with needed("safetensors").safe_open(str(path), framework="numpy") as opened:
            text = (opened.metadata() or {}).get(_KEY)
            if text is None:
                return None
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except Exception as error:  # safetensors' own class
        raise damaged(path, "a safetensors file", str(error)) from error
    try:
        return [_layer(said, tensors) for said in json.loads(text)]
    except (KeyError, TypeError, ValueError) as error:
        raise FileError(
            "The file's description does not fit its tensors",
            received=f"{path}: {error}",
            expected="a file as port wrote it",
            remedy="Write it again with normkit port.",
        ) from error


def _layer(said: Mapping[str, Any], tensors: Mapping[str, Any]) -> NormWeights:
    there = CONVENTIONS[said["framework"]]
    prefix = f"{said['name']}{there.separator}" if said["name"] else ""
    held = {
        role: tensors[f"{prefix}{own}"]
        for role, own in zip(STATISTICS, there.names, strict=True)
        if f"{prefix}{own}" in tensors
    }
    options = {name: said[name] for name in _FIELDS if name != "notes"}
    return NormWeights(shape=tuple(said["shape"]), name=said["name"], **options, **held)
