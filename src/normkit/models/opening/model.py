"""Models of every format behind one value."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram
from torch.nn.parameter import is_lazy

from normkit.errors import ModelError
from normkit.models.graphs.graph import Graph
from normkit.models.graphs.module import trace
from normkit.models.opening.checkpoints import Checkpoint, open_checkpoint, split_part, tensors_of
from normkit.models.opening.code import called, is_reference, resolve
from normkit.models.opening.detect import (
    MODEL_ENDINGS,
    checked_file,
    content_of,
    expect,
    missing,
)
from normkit.models.opening.named import named_sites
from normkit.models.opening.weights import load_weights
from normkit.models.sites import NormSite, find_sites

__all__ = ["Opened", "open_model"]

Tensor = torch.Tensor


@dataclass(frozen=True, eq=False)
class Opened:
    """A model that was opened, whatever it came as.

    Args:
        name: for people: a file's name, a class, or the code that made it.
        format: ``"module"``, ``"program"``, ``"onnx"`` or ``"checkpoint"``.
        tensors: weights and buffers by name; a module's own, not copies.
        module: the torch.nn.Module, of format "module".
        program: the torch.export.ExportedProgram, of format "program".
        proto: the onnx.ModelProto, of format "onnx".
        path: the file that it came from.
        note: which of several weights in a checkpoint were taken; "" where there was no choice.
        left: names of what else the checkpoint holds, such as an optimizer's state.
    """

    name: str
    format: str
    tensors: dict[str, Tensor] = field(repr=False)
    module: nn.Module | None = field(default=None, repr=False)
    program: ExportedProgram | None = field(default=None, repr=False)
    proto: Any = field(default=None, repr=False)
    path: Path | None = None
    note: str = field(default="", repr=False)
    left: tuple[str, ...] = field(default=(), repr=False)

    def sites(self) -> list[NormSite]:
        """The model's norms; of a checkpoint, as far as names and shapes tell."""
        if self.module is not None:
            return find_sites(self.module)
        if self.program is not None:
            from normkit.models.graphs.program import program_sites

            return program_sites(self.program)
        if self.proto is not None:
            from normkit.models.graphs.onnx_model import onnx_sites

            return onnx_sites(self.proto)
        return named_sites(self.tensors)

    def graph(self) -> Graph | None:
        """The model's operations; None for a checkpoint, which has none."""
        if self.module is not None:
            return trace(self.module)
        if self.program is not None:
            from normkit.models.graphs.program import program_graph

            return program_graph(self.program)
        if self.proto is not None:
            from normkit.models.graphs.onnx_model import onnx_graph

            return onnx_graph(self.proto)
        return None


def open_model(what: Any, *, weights: str | os.PathLike[str] | None = None) -> Opened:
    """Open a model: an object, a file, or code that makes one.

    Files are data: nothing in them is run, and they are left as they are. A file that would have to
    be run to be read is refused.

    Args:
        what: a torch.nn.Module, a torch.export.ExportedProgram, an onnx.ModelProto; the path of a
            .safetensors, .pt, .pth, .ckpt, .bin, .pt2 or .onnx file; or code by its name,
            ``package.module:function``: a function without arguments that returns one of the
            objects, or such an object itself.
        weights: a checkpoint to load into the module, in place; all of it must fit. Where a
            checkpoint holds several, a name chooses: ``best.pt:ema``.

    Raises:
        FileError: no such file, damaged, of another kind than its name says, or more than data.
        ModelError: the code fails or gives no model, or the weights do not fit.

    >>> opened = open_model(nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8)))
    >>> opened.name, opened.format, [site.name for site in opened.sites()]
    ('Sequential', 'module', ['1'])
    """
    if isinstance(what, os.PathLike):
        opened = _open_text(str(what)) if split_part(Path(what))[1] else _open_file(Path(what))
    elif isinstance(what, str):
        opened = _open_text(what)
    else:
        opened = _open_object(what, "")
    if weights is None:
        return opened
    if opened.module is None:
        raise ModelError(
            "Weights are loaded into a model that is code",
            received=f"weights for {opened.name}",
            expected="a torch.nn.Module, or package.module:function that returns one",
            remedy=f"{opened.name} has weights of its own: leave weights away.",
        )
    found = load_weights(opened.module, Path(weights))
    held = _held(opened.module)
    return Opened(
        opened.name,
        "module",
        held,
        opened.module,
        path=found.path,
        note=found.note,
        left=found.left,
    )


def _open_text(text: str) -> Opened:
    """A file if there is one or the name ends like one, else code."""
    path = Path(text)
    if split_part(path)[1]:
        return _of_checkpoint(open_checkpoint(path), path.name)
    if path.exists() or path.suffix.lower() in MODEL_ENDINGS or not is_reference(text):
        if not path.exists() and path.suffix.lower() not in MODEL_ENDINGS:
            raise missing(path, "a file, or code as package.module:function")
        return _open_file(path)
    found = resolve(text)
    if not _is_model(found) and callable(found):
        found = called(found, text)
    return _open_object(found, text)


def _open_object(what: Any, reference: str) -> Opened:
    """A model that is in memory already."""
    name = reference or type(what).__name__
    if isinstance(what, nn.Module):
        return Opened(name, "module", _held(what), module=what)
    if isinstance(what, ExportedProgram):
        return _of_program(what, name, None)
    if _is_proto(what):
        return _of_proto(what, name, None)
    raise ModelError(
        "That is no model",
        received=f"{type(what).__name__} from {reference}" if reference else type(what).__name__,
        expected="a torch.nn.Module, a torch.export.ExportedProgram or an onnx.ModelProto",
        remedy="Or the path of a file, or package.module:function.",
    )


def _open_file(path: Path) -> Opened:
    checked_file(path)
    content = content_of(path)
    expect(path, content)
    if content == "program":
        from normkit.models.opening.program_file import read_program

        return _of_program(read_program(path), path.name, path)
    if content == "onnx":
        from normkit.models.opening.onnx_file import read_onnx

        return _of_proto(read_onnx(path), path.name, path)
    return _of_checkpoint(open_checkpoint(path), path.name)


def _of_checkpoint(found: Checkpoint, name: str) -> Opened:
    tensors = tensors_of(found.state)
    return Opened(name, "checkpoint", tensors, path=found.path, note=found.note, left=found.left)


def _of_program(program: ExportedProgram, name: str, path: Path | None) -> Opened:
    tensors = {**tensors_of(program.constants), **tensors_of(program.state_dict)}
    return Opened(name, "program", tensors, program=program, path=path)


def _of_proto(proto: Any, name: str, path: Path | None) -> Opened:
    from normkit.models.opening.onnx_file import tensors_of_proto

    return Opened(name, "onnx", tensors_of_proto(proto, name), proto=proto, path=path)


def _is_model(what: Any) -> bool:
    return isinstance(what, (nn.Module, ExportedProgram)) or _is_proto(what)


def _is_proto(what: Any) -> bool:
    """Without importing onnx: who has a ModelProto has it imported."""
    return type(what).__name__ == "ModelProto" and hasattr(what, "opset_import")


def _held(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers, those too that are not saved; lazy ones have no values yet."""
    own = [
        *module.named_parameters(remove_duplicate=False),
        *module.named_buffers(remove_duplicate=False),
    ]
    return {name: tensor.detach() for name, tensor in own if not is_lazy(tensor)}
