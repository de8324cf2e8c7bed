"""Libraries that are not always there, and what to install where they are missing."""

from __future__ import annotations

import importlib
from typing import Any

__all__ = ["EXTRAS", "needed"]

#: The extra of normkit's that brings a library.
EXTRAS = {
    "torch": "torch", "typer": "cli", "rich": "cli", "safetensors": "safetensors",
    "onnx": "onnx", "onnxruntime": "onnx", "onnxscript": "onnx", "jinja2": "report",
    "markupsafe": "report", "plotly": "report", "tensorboard": "watch", "PIL": "images",
    "sklearn": "scaling", "joblib": "lab", "dask": "cluster", "distributed": "cluster",
    "jax": "jax", "flax": "flax", "equinox": "equinox", "keras": "keras", "h5py": "keras",
}  # fmt: skip


def needed(module: str) -> Any:
    """Import a module of an optional library.

    Raises:
        ModuleNotFoundError: it is not installed; the message says how to install it.

    >>> needed("math").pi > 3
    True
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        name = (error.name or "").split(".")[0]
        if name not in EXTRAS:
            raise
        words = f"{name} is not installed; pip install 'normkit[{EXTRAS[name]}]'"
        raise ModuleNotFoundError(words, name=name) from error
