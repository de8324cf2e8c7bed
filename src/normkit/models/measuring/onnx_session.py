"""ONNX models run by onnxruntime, and what they take."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from normkit.errors import ModelError
from normkit.extras import needed

__all__ = ["dtype_of", "inputs_of", "session_of"]

_MOST_IN_MEMORY = 2**31 - 2**20  # bytes: protobuf's limit


@contextlib.contextmanager
def session_of(proto: Any, *, optimized: bool) -> Iterator[Any]:
    """A session of onnxruntime on the CPU.

    Args:
        optimized: let it change the graph, as it does by default; it folds norms too.
    """
    runtime = needed("onnxruntime")
    options = runtime.SessionOptions()
    options.log_severity_level = 4
    if not optimized:
        options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
    providers = ["CPUExecutionProvider"]
    if proto.ByteSize() < _MOST_IN_MEMORY:
        session = runtime.InferenceSession(proto.SerializeToString(), options, providers)
        del proto  # its weights need not be there twice while the session is in use
        yield session
        return
    onnx = needed("onnx")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        copied = type(proto)()
        copied.CopyFrom(proto)
        onnx.save_model(copied, str(path), save_as_external_data=True, location="weights")
        yield runtime.InferenceSession(str(path), options, providers)


def inputs_of(proto: Any) -> list[Any]:
    """What the model is to be given: in old files its weights are inputs too."""
    weights = {tensor.name for tensor in proto.graph.initializer}
    return [i for i in proto.graph.input if i.name not in weights]


def dtype_of(value: Any) -> np.dtype[Any]:
    """An input's.

    Raises:
        ModelError: it is no tensor.
    """
    kind = value.type.tensor_type.elem_type
    if not kind:
        raise ModelError(
            "The model takes what is no tensor",
            received=f"its input {value.name}, of {value.type.WhichOneof('value') or 'no type'}",
            expected="inputs that are tensors",
            remedy="Use the part of the model that takes tensors.",
        )
    return np.dtype(needed("onnx").helper.tensor_dtype_to_np_dtype(kind))
