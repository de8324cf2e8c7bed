""".keras files, read as data: a zip of two JSON documents and the weights. Nothing in it is run."""

from __future__ import annotations

import contextlib
import json
import math
import re
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from normkit.errors import FileError, is_explained
from normkit.extras import needed
from normkit.models.opening.detect import damaged
from normkit.models.porting.frameworks.keras_config import is_norm
from normkit.words import first_line

__all__ = ["SavedLayer", "read_keras_file", "readable"]

Array = Any
#: The newest version whose files were tried; what a newer one writes is checked and noted.
NEWEST = (3, 15)
_LARGEST_DOCUMENT = 1 << 26  # bytes of JSON
_LARGEST_PACKED = 1 << 31  # of weights in a member that is compressed
_LARGEST_WEIGHT = 1 << 26  # elements of a norm's
_WEIGHTS = "model.weights.h5"
_ODD = (
    zipfile.BadZipFile, OSError, RuntimeError, AttributeError, TypeError, LookupError, ValueError,
    ArithmeticError,
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class SavedLayer:
    """A norm layer as a file describes it.

    Args:
        name: its path by the layers' names: ``encoder/bn1``.
        class_name, config: as in the file.
        arrays: its variables in Keras' order.
        input_shape: that it was built for.
    """

    name: str
    class_name: str
    config: Mapping[str, Any]
    arrays: tuple[Array, ...]
    input_shape: tuple[int | None, ...] | None


def read_keras_file(path: Path) -> tuple[list[SavedLayer], str]:
    """The norm layers of a .keras file, and a note on its version; "" where it is a known one.

    Raises:
        FileError: damaged, of Keras 2, a subclassed model, or otherwise not what Keras 3 writes.
        ModuleNotFoundError: h5py is not installed.
    """
    h5py = needed("h5py")
    with readable(path), zipfile.ZipFile(path) as archive:
        version = str(_document(archive, "metadata.json", path).get("keras_version", ""))
        note = _version_note(version, path)
        config = _document(archive, "config.json", path)
        member = _weights_member(archive, path)
        with archive.open(member) as stream, h5py.File(stream, "r") as weights:
            return list(_model(config, weights, "", path)), note


@contextlib.contextmanager
def readable(path: Path) -> Iterator[None]:
    """Whatever goes wrong while a file's words are taken for a model's is the file's fault."""
    try:
        yield
    except _ODD as error:
        if is_explained(error):
            raise
        why = f"{type(error).__name__}: {first_line(error)}"
        raise damaged(path, "a Keras model", why) from error


def _document(archive: zipfile.ZipFile, name: str, path: Path) -> dict[str, Any]:
    info = _member(archive, name, path)
    if info.file_size > _LARGEST_DOCUMENT:
        raise damaged(path, "a Keras model", f"{name} of {info.file_size:,} bytes")
    with archive.open(info) as stream:
        text = stream.read(_LARGEST_DOCUMENT + 1)  # what the archive says need not be true
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise damaged(path, "a Keras model", f"{name} is no JSON ({first_line(error)})") from None
    if not isinstance(found, dict):
        raise damaged(path, "a Keras model", f"{name} holds no dictionary")
    return found


def _member(archive: zipfile.ZipFile, name: str, path: Path) -> zipfile.ZipInfo:
    try:
        return archive.getinfo(name)
    except KeyError:
        held = ", ".join(archive.namelist()[:5])
        raise damaged(path, "a Keras model", f"it has no {name}, but {held}") from None


def _weights_member(archive: zipfile.ZipFile, path: Path) -> zipfile.ZipInfo:
    if "model.weights.json" in archive.namelist():
        raise FileError(
            "The model's weights are in several files",
            received=f"{path} with model.weights.json",
            expected=f"one {_WEIGHTS}",
            remedy="Save it again with model.save(path), without max_shard_size.",
        )
    info = _member(archive, _WEIGHTS, path)
    if info.compress_type != zipfile.ZIP_STORED and info.file_size > _LARGEST_PACKED:
        raise damaged(path, "a Keras model", f"weights that unpack to {info.file_size:,} bytes")
    return info


def _version_note(version: str, path: Path) -> str:
    numbers = tuple(int(n) for n in re.findall(r"\d+", version)[:2])
    if not numbers or numbers[0] != 3:
        raise FileError(
            "The file is of another generation of Keras",
            received=f"{path}, written by Keras {version or 'of no known version'}",
            expected="a .keras file of Keras 3",
            remedy="Load it with the Keras that wrote it, and port the model in memory; or save it "
            "with Keras 3: keras.saving.load_model(path).save(other).",
        )
    if numbers <= NEWEST:
        return ""
    tried = ".".join(map(str, NEWEST))
    return f"written by Keras {version}, newer than any that was tried ({tried})"


def _model(config: Any, weights: Any, prefix: str, path: Path) -> Iterator[SavedLayer]:
    """The norms of a model, or of a lone layer, at a group of the file."""
    if not isinstance(config, Mapping):
        raise damaged(path, "a Keras model", f"no layer where {prefix or 'the model'} should be")
    inner = config.get("config", {})
    layers = inner.get("layers") if isinstance(inner, Mapping) else None
    if layers is None:
        raise FileError(
            "The file does not list the model's layers",
            received=f"{path}, a {config.get('class_name', 'model')} that is code of its own",
            expected="a functional or sequential model",
            remedy="Load it with keras.saving.load_model, and port the model in memory.",
        )
    used: dict[str, int] = {}
    group = weights.get("layers", {})
    for layer in layers:
        key = _unique(_snake(str(layer.get("class_name", ""))), used)
        yield from _layer(layer, group, key, prefix, path)


def _layer(layer: Any, group: Any, key: str, prefix: str, path: Path) -> Iterator[SavedLayer]:
    config = layer.get("config", {})
    name = f"{prefix}{layer.get('name') or config.get('name') or key}"
    class_name = str(layer.get("class_name", ""))
    if is_norm(class_name):
        yield _saved(layer, group, key, name, path)
    elif "layers" in config:
        yield from _model(layer, group.get(key, {}), f"{name}/", path)
    elif isinstance(config.get("layer"), Mapping):  # a wrapper, such as TimeDistributed
        yield from _layer(config["layer"], group.get(key, {}), "layer", f"{name}/", path)


def _saved(layer: Any, group: Any, key: str, name: str, path: Path) -> SavedLayer:
    variables = group.get(f"{key}/vars") if group else None
    if variables is None:
        variables = {}
    _check_name(variables, name, path)
    arrays = tuple(_array(variables, str(i), name, path) for i in range(len(variables)))
    shape = layer.get("build_config", {}).get("input_shape")
    config = dict(layer.get("config", {}))
    known = tuple(shape) if isinstance(shape, list) else None
    return SavedLayer(name, str(layer["class_name"]), config, arrays, known)


def _check_name(variables: Any, name: str, path: Path) -> None:
    """Keras notes beside the weights which layer's they are: that has to be this one."""
    said = getattr(variables, "attrs", {}).get("name")
    own = name.rpartition("/")[2]
    if said is not None and str(said) != own:
        raise FileError(
            "The file keeps another layer's weights where these should be",
            received=f"{path}: the weights of {said}",
            expected=f"those of {name}",
            remedy="The version of Keras that wrote it may order layers in another way: load it "
            "with keras.saving.load_model, and port the model in memory.",
        )


def _array(variables: Any, key: str, name: str, path: Path) -> Array:
    """A dataset that lies in this file; links may lead to any other."""
    h5py = needed("h5py")
    link = variables.get(key, getlink=True)
    dataset = variables.get(key) if isinstance(link, h5py.HardLink) else None
    plain = isinstance(dataset, h5py.Dataset) and not dataset.is_virtual and not dataset.external
    if dataset is None or not plain:
        raise damaged(path, "a Keras model", f"variable {key} of {name} is no array of its own")
    shape = dataset.shape  # None for an empty one; what it says need not be in the file
    fits = shape is not None and len(shape) <= 4 and math.prod(shape) <= _LARGEST_WEIGHT
    if not fits or dataset.dtype.kind != "f":
        what = f"variable {key} of {name} of shape {shape} and dtype {dataset.dtype}"
        raise damaged(path, "a Keras model", what)
    return np.asarray(dataset)


def _snake(name: str) -> str:
    """As Keras names groups after classes.

    >>> _snake("BatchNormalization"), _snake("Conv2D")
    ('batch_normalization', 'conv2d')
    """
    name = re.sub(r"\W+", "", name)
    name = re.sub("(.)([A-Z][a-z]+)", r"\1_\2", name)
    return re.sub("([a-z])([A-Z])", r"\1_\2", name).lower()


def _unique(name: str, used: dict[str, int]) -> str:
    if name not in used:
        used[name] = 0
        return name
    used[name] += 1
    return f"{name}_{used[name]}"
