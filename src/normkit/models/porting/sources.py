"""What weights are read from: a layer, a model, a pytree, a state_dict, a file, or code."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

from normkit.errors import FileError, ModelError, is_explained
from normkit.models.opening.checkpoints import open_checkpoint, split_part, tensors_of
from normkit.models.opening.code import called, is_reference, resolve
from normkit.models.opening.detect import MODEL_ENDINGS, WORDS, checked_file, content_of, missing
from normkit.models.opening.model import open_model
from normkit.models.opening.named import named_sites
from normkit.models.porting.conventions import CONVENTIONS
from normkit.models.porting.frameworks import FRAMEWORKS, owner
from normkit.models.porting.frameworks.base import Framework
from normkit.models.porting.frameworks.flax_linen import flat_variables
from normkit.models.porting.frameworks.keras_config import weights_of_config
from normkit.models.porting.frameworks.keras_file import SavedLayer, read_keras_file
from normkit.models.porting.frameworks.keras_layers import layer_of_config
from normkit.models.porting.frameworks.torch_nn import weights_of_site
from normkit.models.porting.stored import read_stored
from normkit.models.porting.weights import NormWeights
from normkit.models.sites import NormSite
from normkit.words import first_line

__all__ = ["Found", "Source", "open_source"]

ENDINGS = (*MODEL_ENDINGS, ".keras")


@dataclass(frozen=True, eq=False)
class Found:
    """One norm of a source.

    Args:
        name: its path.
        framework: whose it is.
        weights: what it holds; None where it cannot be ported.
        layer: what its framework can run; None where there are weights only.
        why_not: why it cannot be ported.
    """

    name: str
    framework: Framework
    weights: NormWeights | None = None
    layer: Any = None
    why_not: str = ""


@dataclass(frozen=True, eq=False)
class Source:
    """A source that was read.

    Args:
        title: for people.
        norms: in the order of its layers.
        single: whether it is one layer.
        note: on the file.
        path: of the file.
    """

    title: str
    norms: tuple[Found, ...]
    single: bool = False
    note: str = ""
    path: Path | None = None


def open_source(what: Any, eps: float | None = None) -> Source:
    """Read the norms of a layer, a model, a pytree of variables, a file, or code.

    Args:
        what: see :func:`normkit.models.port`.
        eps: for weights that do not say it.

    Raises:
        FileError: no such file, or not one that is read as data.
        ModelError: nothing with norms, or a single layer that has no counterpart.
    """
    if isinstance(what, (str, os.PathLike)):
        return _of_text(os.fspath(what), eps)
    return _of_object(what, type(what).__name__, eps)


def _of_object(what: Any, title: str, eps: float | None) -> Source:
    if isinstance(what, Mapping) and tensors_of(what):
        return Source(title, tuple(_of_sites(named_sites(tensors_of(what)), "torch", eps)))
    if isinstance(what, ExportedProgram):
        return Source(title, tuple(_of_sites(open_model(what).sites(), "torch", eps)))
    found = owner(what)
    if found is None:
        raise ModelError(
            "That is neither a layer nor a model",
            received=title,
            expected="a layer or model of PyTorch, Keras, Flax, Equinox (with its state) or ONNX",
            remedy="Or the path of a file, or package.module:function.",
        )
    if found.is_layer(what):
        weights = found.read(what)
        return Source(title, (Found(weights.name, found, weights, what),), single=True)
    if found.name == "linen":
        arrays = {name: torch.from_numpy(v.copy()) for name, v in flat_variables(what).items()}
        return Source(title, tuple(_of_sites(named_sites(arrays), "linen", eps)))
    return Source(title, tuple(_read(found, layer, name) for name, layer in found.layers(what)))


def _read(framework: Framework, layer: Any, name: str) -> Found:
    try:
        return Found(name, framework, framework.read(layer, name), layer)
    except ValueError as error:
        if not is_explained(error):
            raise
        return Found(name, framework, why_not=first_line(error))


def _of_sites(sites: list[NormSite], framework: str, eps: float | None) -> Iterator[Found]:
    """Norms of which only names, shapes and perhaps options are known."""
    for site in sites:
        known = site if site.eps is not None else replace(site, eps=eps)
        try:
            weights = _completed(weights_of_site(known, framework), site)
            yield Found(site.name, FRAMEWORKS[framework], weights)
        except ValueError as error:
            if not is_explained(error) or known.eps is None:
                raise
            yield Found(site.name, FRAMEWORKS[framework], why_not=first_line(error))


def _completed(weights: NormWeights, site: NormSite) -> NormWeights:
    """Notes on what weights alone do not say."""
    notes = []
    if site.eps is None:
        notes.append(f"taken for a {weights.kind} norm by its {site.type_name} and name")
    if weights.kind == "batch" and weights.keep is None:
        notes.append("momentum is not in the weights: the target keeps its own")
    there = CONVENTIONS[weights.framework]
    variance = there.variance if weights.kind == "batch" else None
    channels = there.channels if weights.channels is not None else None
    return replace(weights, variance=variance, channels=channels).noted(*notes)


def _of_text(text: str, eps: float | None) -> Source:
    path, part = split_part(Path(text))
    known = path.suffix.lower() in ENDINGS
    if not part and not path.exists() and is_reference(text) and not known:
        found = resolve(text)
        made = called(found, text) if owner(found) is None and callable(found) else found
        return _of_object(made, text, eps)
    if not path.exists():
        raise missing(path, "a file, or code as package.module:function")
    source = _of_file(path, text, eps)
    return replace(source, path=path, single=False)


def _of_file(path: Path, text: str, eps: float | None) -> Source:
    checked_file(path, ENDINGS)
    content = content_of(path)
    if content == "keras" or (path.suffix.lower() == ".keras" and content != "hdf5"):
        layers, note = read_keras_file(path)
        return Source(path.name, tuple(map(_of_saved, layers)), note=note)
    if content in ("hdf5", "zip"):
        raise FileError(
            "The file does not say what its layers compute",
            received=f"{path}, which is {WORDS[content]}",
            expected="a .keras file of Keras 3, whose configuration says eps, axes and momentum",
            remedy="Load the weights into their model, and save that: model.save('model.keras').",
        )
    stored = read_stored(path) if content == "safetensors" else None
    if stored is not None:
        norms = tuple(Found(w.name, FRAMEWORKS[w.framework], w) for w in stored)
        return Source(path.name, norms)
    if content in ("safetensors", "checkpoint", "pickle"):
        checkpoint = open_checkpoint(Path(text))
        sites = named_sites(tensors_of(checkpoint.state))
        return Source(path.name, tuple(_of_sites(sites, "torch", eps)), note=checkpoint.note)
    opened = open_model(text)
    if opened.proto is not None:
        return _of_object(opened.proto, path.name, eps)
    return Source(path.name, tuple(_of_sites(opened.sites(), "torch", eps)))


def _of_saved(saved: SavedLayer) -> Found:
    keras = FRAMEWORKS["keras"]
    shape, config = saved.input_shape, saved.config
    try:
        weights = weights_of_config(saved.class_name, config, saved.arrays, shape, saved.name)
    except ValueError as error:
        if not is_explained(error):
            raise
        return Found(saved.name, keras, why_not=first_line(error))
    return Found(saved.name, keras, weights, _made(saved))


def _made(saved: SavedLayer) -> Any:
    """Keras' own layer, to compare with; None without Keras."""
    shape = saved.input_shape
    if shape is None:
        return None
    try:
        return layer_of_config(saved.class_name, saved.config, shape, saved.arrays)
    except ModuleNotFoundError:
        return None
