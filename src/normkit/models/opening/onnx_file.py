"""ONNX models from files, with external data only from their own folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from normkit.errors import FileError
from normkit.extras import needed
from normkit.models.opening.detect import damaged, missing

__all__ = ["read_onnx", "tensors_of_proto"]

Tensor = torch.Tensor


def read_onnx(path: Path) -> Any:
    """The ModelProto of a file, its external data loaded.

    Raises:
        FileError: damaged, or its external data is missing, cut short, or not in its folder.
    """
    onnx = needed("onnx")
    decode_error = needed("google.protobuf.message").DecodeError
    try:
        proto = onnx.load(str(path), load_external_data=False)
    except decode_error as error:
        raise damaged(path, "an ONNX model", "its bytes end within a field") from error
    if not proto.HasField("graph"):
        raise damaged(path, "an ONNX model", "it has no graph")
    outside = [t for t in _tensors(proto.graph) if _is_external(t)]
    for tensor in outside:
        _check_external(tensor, path)
    if outside:
        try:
            onnx.load_external_data_for_model(proto, str(path.parent))
        except Exception as error:  # the checker's own classes
            raise damaged(path, "an ONNX model with its external data", str(error)) from error
    return proto


def tensors_of_proto(proto: Any, name: str = "the model") -> dict[str, Tensor]:
    """The weights of a model: its initializers, and its nodes' constants by their results' names.

    Tensors of text, which weights are not, are left out.

    Raises:
        FileError: a tensor's bytes do not fit its shape.
    """
    result = {}
    for label, tensor in _named(proto.graph):
        try:
            value = _to_torch(tensor)
        except (ValueError, TypeError) as error:
            raise FileError(
                "A tensor of the model is damaged",
                received=f"{label} in {name}: {error}",
                expected=f"bytes for shape {tuple(tensor.dims)}",
                remedy="Export or download the model again.",
            ) from error
        if value is not None:
            result[label] = value
    return result


def _named(graph: Any) -> Iterator[tuple[str, Any]]:
    for tensor in graph.initializer:
        yield tensor.name, tensor
    for node in graph.node:
        if node.op_type == "Constant" and node.output:
            for attribute in node.attribute:
                if attribute.name == "value":
                    yield node.output[0], attribute.t


def _tensors(graph: Any) -> Iterator[Any]:
    """Every tensor, those within nodes' graphs too."""
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            for inner in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else ())):
                yield from _tensors(inner)


def _is_external(tensor: Any) -> bool:
    return tensor.HasField("data_location") and tensor.data_location == tensor.EXTERNAL


def _check_external(tensor: Any, path: Path) -> None:
    """Its bytes lie in a file in the model's folder, whole."""
    said = {entry.key: entry.value for entry in tensor.external_data}
    location = said.get("location", "")
    folder = path.parent.resolve()
    file = path.parent / location
    strange = not location or "\\" in location or ":" in location or "\0" in location
    if strange or Path(location).is_absolute() or not file.resolve().is_relative_to(folder):
        raise FileError(
            "The model asks for a file outside of its folder; it was not read",
            received=f"{path}, whose tensor {tensor.name} lies in {location!r}",
            expected=f"external data in {folder}",
            remedy="Put the data beside the model, and export it again with a relative name.",
        )
    if not file.is_file():
        raise missing(file, f"the external data of {path.name}")
    try:
        start, length = int(said.get("offset", 0)), int(said.get("length", 0))
    except ValueError:
        raise damaged(path, "an ONNX model", f"tensor {tensor.name} lies at no number") from None
    if start < 0 or length < 0 or start + length > file.stat().st_size:
        raise damaged(file, f"the external data of {path.name}", f"{tensor.name} ends after it")


def _to_torch(tensor: Any) -> Tensor | None:
    from onnx import TensorProto, numpy_helper

    if tensor.data_type == TensorProto.STRING:
        return None
    array = np.ascontiguousarray(numpy_helper.to_array(tensor)).reshape(tuple(tensor.dims))
    if array.dtype.kind in "biufc":
        return torch.from_numpy(array.copy())  # to_array's may be read-only
    dtype = getattr(torch, array.dtype.name, None)  # bfloat16, float8_e4m3fn, ...
    if isinstance(dtype, torch.dtype) and dtype.is_floating_point:  # torch.int4 is but a name
        whole = array.view(np.dtype(f"i{array.dtype.itemsize}"))
        return torch.from_numpy(whole.copy()).view(dtype)
    return torch.from_numpy(array.astype(np.float32))
