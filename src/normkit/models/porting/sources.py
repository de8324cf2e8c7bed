"""What weights are read from: a layer, a model, a pytree, a state_dict, a file, or code."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

from normkit.errors import FileError, ModelError, OptionError, is_explained
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
from normkit.models.porting.frameworks.keras_file import SavedLayer, read_keras_file, readable
from normkit.models.porting.frameworks.keras_layers import layer_of_config
from normkit.models.porting.frameworks.torch_nn import weights_of_site
from normkit.models.porting.stored import read_stored
from normkit.models.porting.weights import KINDS, NormWeights
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
        not_run: why there is no layer.
    """

    name: str
    framework: Framework
    weights: NormWeights | None = None
    layer: Any = None
    why_not: str = ""
    not_run: str = "the source has its weights, and no layer that could be run"


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


@dataclass(frozen=True)
class Said:
    """What weights alone do not say, from the user.

    Args:
        eps: of all, or by name, pattern or kind.
        kinds: by name or pattern.
    """

    eps: float | Mapping[str, float] | None = None
    kinds: Mapping[str, str] = field(default_factory=dict)

    def completed(self, site: NormSite) -> NormSite:
        """The site with its kind and eps.

        Raises:
            ModelError: names and shapes leave the kind open.
            OptionError: there is no such kind.
        """
        if site.eps is not None:
            return site
        given = _looked_up(self.kinds, site.name)
        if given is not None:
            site = replace(site, **_kind(given, site.name))
        elif site.kind == "layer" and not _SURELY_LAYER.search(_own_name(site.name)):
            raise ModelError(
                "Weights alone do not say which norm they are of",
                received=f"{site.name}, a {site.type_name}, which a layer, group or instance norm "
                "may have",
                expected="kinds= for a name that leaves it open",
                remedy=f'kinds={{"{site.name}": "layer"}}, or "group:32" with the number of '
                "groups; patterns serve too.",
            )
        if not isinstance(self.eps, Mapping):
            return replace(site, eps=self.eps)
        eps = _looked_up(self.eps, site.name)
        return replace(site, eps=self.eps.get(site.kind) if eps is None else eps)


_SURELY_LAYER = re.compile(r"layer_?norm|^ln(_|\d*$)", re.IGNORECASE)


def _own_name(path: str) -> str:
    """The last part that is no number."""
    return next((part for part in reversed(re.split(r"[./]", path)) if not part.isdigit()), "")


def _looked_up(given: Mapping[str, Any], name: str) -> Any:
    return next((value for own, value in given.items() if fnmatchcase(name, own)), None)


def _kind(given: str, name: str) -> dict[str, Any]:
    kind, colon, groups = str(given).partition(":")
    fits = groups.isdecimal() if kind == "group" else not colon
    if kind not in KINDS or not fits:
        raise OptionError(
            f"No such kind of norm ({name})",
            received=repr(given),
            expected=", ".join(k if k != "group" else "group:NUMBER" for k in KINDS),
            remedy="For instance group:32.",
        )
    return {"kind": kind, "groups": int(groups) if groups else None}


def open_source(
    what: Any,
    eps: float | Mapping[str, float] | None = None,
    kinds: Mapping[str, str] | None = None,
) -> Source:
    """Read the norms of a layer, a model, a pytree of variables, a file, or code.

    Args:
        what: see :func:`normkit.models.port`.
        eps, kinds: for weights that do not say it; see :func:`normkit.models.port`.

    Raises:
        FileError: no such file, or not one that is read as data.
        ModelError: nothing with norms, or a single layer that has no counterpart.
    """
    if isinstance(what, (str, os.PathLike)):
        return _of_text(os.fspath(what), Said(eps, kinds or {}))
    return _of_object(what, type(what).__name__, Said(eps, kinds or {}))


def _of_object(what: Any, title: str, said: Said) -> Source:
    if isinstance(what, Mapping) and tensors_of(what):
        return Source(title, tuple(_of_sites(named_sites(tensors_of(what)), "torch", said)))
    if isinstance(what, ExportedProgram):
        return Source(title, tuple(_of_sites(open_model(what).sites(), "torch", said)))
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
        return Source(title, tuple(_of_sites(named_sites(arrays), "linen", said)))
    return Source(title, tuple(_read(found, layer, name) for name, layer in found.layers(what)))


def _read(framework: Framework, layer: Any, name: str) -> Found:
    try:
        return Found(name, framework, framework.read(layer, name), layer)
    except ValueError as error:
        if not is_explained(error):
            raise
        return Found(name, framework, why_not=first_line(error))


def _of_sites(sites: list[NormSite], framework: str, said: Said) -> Iterator[Found]:
    """Norms of which only names, shapes and perhaps options are known."""
    for site in sites:
        try:
            known = said.completed(site)
            weights = _completed(weights_of_site(known, framework), site)
            yield Found(site.name, FRAMEWORKS[framework], weights)
        except OptionError:
            raise
        except ValueError as error:
            if not is_explained(error) or (site.eps is None and said.eps is None):
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


def _of_text(text: str, said: Said) -> Source:
    path, part = split_part(Path(text))
    known = path.suffix.lower() in ENDINGS
    if not part and not path.exists() and is_reference(text) and not known:
        found = resolve(text)
        made = called(found, text) if owner(found) is None and callable(found) else found
        return _of_object(made, text, said)
    if not path.exists():
        raise missing(path, "a file, or code as package.module:function")
    source = _of_file(path, text, said)
    return replace(source, path=path, single=False)


def _of_file(path: Path, text: str, said: Said) -> Source:
    checked_file(path, ENDINGS)
    content = content_of(path)
    if content == "keras" or (path.suffix.lower() == ".keras" and content != "hdf5"):
        layers, note = read_keras_file(path)
        with readable(path):
            norms = tuple(map(_of_saved, layers))
        return Source(path.name, norms, note=note)
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
        return Source(path.name, tuple(_of_sites(sites, "torch", said)), note=checkpoint.note)
    opened = open_model(text)
    if opened.proto is not None:
        return _of_object(opened.proto, path.name, said)
    return Source(path.name, tuple(_of_sites(opened.sites(), "torch", said)))


def _of_saved(saved: SavedLayer) -> Found:
    keras = FRAMEWORKS["keras"]
    shape, config = saved.input_shape, saved.config
    try:
        weights = weights_of_config(saved.class_name, config, saved.arrays, shape, saved.name)
    except ValueError as error:
        if not is_explained(error):
            raise
        return Found(saved.name, keras, why_not=first_line(error))
    if shape is None:
        return Found(saved.name, keras, weights, not_run="the file does not say its input's shape")
    try:
        made = layer_of_config(saved.class_name, config, shape, saved.arrays)
    except ModuleNotFoundError as error:
        return Found(saved.name, keras, weights, not_run=first_line(error))
    return Found(saved.name, keras, weights, made)
