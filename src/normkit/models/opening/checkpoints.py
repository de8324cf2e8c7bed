"""Weights from files, read as data: safetensors, and PyTorch's pickles of weights only."""

from __future__ import annotations

import json
import pickle
import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from normkit.errors import FileError
from normkit.extras import needed
from normkit.models.opening.detect import checked_file, content_of, damaged, expect
from normkit.models.opening.pickled import asked_for, is_saved_by_torch
from normkit.words import first_line, listed

__all__ = ["Checkpoint", "open_checkpoint", "read_weights_only", "split_part", "tensors_of"]

Tensor = torch.Tensor

# Where training loops keep the weights in what they save, the likeliest first.
_NESTS = (
    "state_dict", "model_state_dict", "model", "model_state", "module", "network", "net",
    "weights", "params",
)  # fmt: skip
_WRAPPERS = ("module.", "_orig_mod.")  # DataParallel, DistributedDataParallel; torch.compile
_LARGEST_HEADER = 100_000_000  # safetensors' own limit


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds.

    Args:
        path: the file.
        state: the state_dict, without the wrappers' prefixes: tensors, and the plain values that
            some layers keep.
        part: the name under which it was; "" where it is all there is.
        others: names of other weights beside it.
        left: names of all that is beside it.
    """

    path: Path
    state: dict[str, Any]
    part: str = ""
    others: tuple[str, ...] = ()
    left: tuple[str, ...] = ()

    @property
    def note(self) -> str:
        """Which weights were taken, where there are several; else ""."""
        if not self.others:
            return ""
        return (
            f'{self.path.name}: its weights "{self.part}" were taken, not {listed(self.others)}; '
            f"another name can follow the file's: {self.path.name}:{self.others[0]}"
        )


def split_part(path: Path) -> tuple[Path, str]:
    """A file, and the part of it that is named behind a colon: ``best.pt:ema``.

    >>> split_part(Path("best.pt"))
    (...Path('best.pt'), '')
    """
    text, _, part = str(path).rpartition(":")
    return (Path(text), part) if text and not path.exists() and Path(text).is_file() else (path, "")


def open_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint; large ones are mapped rather than read.

    The state_dict is looked for under "model", "state_dict" and the like, or under the name that
    follows the file's: ``best.pt:ema``.

    Raises:
        FileError: no such file, damaged, another kind of file, no weights in it, or a pickle that
            asks for more than weights.
    """
    path, part = split_part(path)
    checked_file(path)
    content = content_of(path)
    expect(path, content)
    if content == "safetensors":
        loaded: Any = _read_safetensors(path)
    elif content in ("checkpoint", "pickle"):
        loaded = _read_torch(path, content)
    else:
        raise FileError(
            "That file holds a whole model rather than weights",
            received=str(path),
            expected="a .safetensors, .pt, .pth, .ckpt or .bin file",
            remedy="Open it by itself.",
        )
    return _chosen(loaded, part, path)


def tensors_of(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of a state_dict."""
    return {name: value for name, value in state.items() if isinstance(value, Tensor)}


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > size - 8:  # before anything of that length is asked for
            said = f"its header should be {length:,} bytes long"
            raise damaged(path, "a safetensors file", said)
        if length > _LARGEST_HEADER:
            raise damaged(path, "a safetensors file", f"a header of {length:,} bytes")
        try:
            json.loads(file.read(length))
        except (ValueError, RecursionError) as error:
            raise damaged(path, "a safetensors file", f"its header is no JSON ({error})") from None
    safetensors = needed("safetensors")
    try:
        with safetensors.safe_open(str(path), framework="pt") as opened:
            return {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except Exception as error:  # its own class, and PyTorch's for dtypes it does not know
        raise damaged(path, "a safetensors file", _said(error)) from error


def _read_torch(path: Path, content: str) -> Any:
    if content == "pickle" and not is_saved_by_torch(path):
        raise _more_than_weights(path, asked_for(path))
    try:
        return read_weights_only(path, str(path), mmap=content == "checkpoint")
    except FileError:
        raise
    except Exception as error:  # whatever a broken stream leads the unpickler to
        raise damaged(path, "a PyTorch checkpoint", _said(error)) from error


def read_weights_only(
    path: Path, source: Any, *, mmap: bool = False, part: str = "", device: str | None = "cpu"
) -> Any:
    """``torch.load`` that can build nothing but tensors and plain values.

    Args:
        path: the file, for the error.
        source: what is read.
        part: of the file, where it is not the whole.
        device: where the tensors go; None for where they were saved.

    Raises:
        FileError: the pickle asks for something else; the message names it.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of protocols, which what follows says better
            return torch.load(source, map_location=device, weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        asked = sorted(set(re.findall(r"GLOBAL ([\w.]+)", str(error))))
        if not asked and "operand" in str(error):  # a protocol that is not read as data
            asked = asked_for(path)
        if not asked:
            raise
        raise _more_than_weights(path, asked, part) from None


def _more_than_weights(path: Path, asked: list[str], part: str = "") -> FileError:
    """The error for a pickle that is not to be trusted, or that torch.save has not written."""
    received = f"{path} ({part})" if part else str(path)
    if not asked:
        return FileError(
            "The file is a pickle, but no checkpoint",
            received=f"{received}, a plain pickle of Python values",
            expected="what torch.save writes",
            remedy="Save the weights with torch.save(model.state_dict(), path), or safetensors.",
        )
    return FileError(
        "The file holds a pickle of more than weights, which could run any code; none was run",
        received=f"{received}, which asks for {listed(asked)}",
        expected="tensors and plain values, as torch.save writes them by default",
        remedy="Where the model is at home, save its weights alone: "
        "torch.save(model.state_dict(), path), or safetensors. A model can also be opened as "
        "code: package.module:function.",
    )


def _chosen(loaded: Any, part: str, path: Path) -> Checkpoint:
    """The state_dict within what was saved, the likeliest where there are several."""
    named = {name: state for name, state in _parts(loaded) if state is not None}
    if part:
        return _part_of(loaded, named, part, path)
    taken = next((name for name in _NESTS if name in named), "")
    state = named.get(taken) if taken else _search(loaded)
    if state is None:
        others = f"; it can be named: {path.name}:{next(iter(named))}" if named else ""
        raise FileError(
            "The file holds no state_dict",
            received=f"{path}: {_described(loaded)}",
            expected="a dictionary of names and tensors, or one under "
            + ", ".join(f'"{name}"' for name in _NESTS[:3]) + others,
            remedy="Save it with torch.save(model.state_dict(), path).",
        )  # fmt: skip
    return _checkpoint(loaded, named, state, taken, path)


def _part_of(
    loaded: Any, named: Mapping[str, Mapping[str, Any]], part: str, path: Path
) -> Checkpoint:
    if part not in named:
        raise FileError(
            "The file holds no such weights",
            received=f"{path}:{part}",
            expected=f"one of {listed(list(named))}" if named else "a file name alone",
            remedy=f"{path.name} is {_described(loaded)}.",
        )
    return _checkpoint(loaded, {}, named[part], part, path)


def _checkpoint(
    loaded: Any,
    named: Mapping[str, Mapping[str, Any]],
    state: Mapping[str, Any],
    taken: str,
    path: Path,
) -> Checkpoint:
    beside = tuple(str(name) for name in loaded if name != taken) if taken else ()
    others = tuple(name for name in named if name != taken) if taken else ()
    return Checkpoint(path, _unwrapped(state), taken, others, beside)


def _parts(loaded: Any) -> Iterator[tuple[str, Mapping[str, Any] | None]]:
    """What a saved dictionary holds under its names, and the state_dict in each."""
    if isinstance(loaded, Mapping):
        for name, value in loaded.items():
            if isinstance(name, str) and isinstance(value, Mapping):
                yield name, _search(value)


def _search(loaded: Any) -> Mapping[str, Any] | None:
    if not isinstance(loaded, Mapping):
        return None
    for name in _NESTS:
        found = _search(loaded.get(name))
        if found is not None:
            return found
    named = all(isinstance(name, str) for name in loaded)
    return loaded if named and tensors_of(loaded) else None


def _described(loaded: Any) -> str:
    if isinstance(loaded, Tensor):
        return f"one tensor of shape {tuple(loaded.shape)}"
    if isinstance(loaded, Mapping):
        return f"a dictionary of {', '.join(map(repr, list(loaded)[:8])) or 'nothing'}"
    return type(loaded).__name__


def _unwrapped(state: Mapping[str, Any]) -> dict[str, Any]:
    """Names without "module." and "_orig_mod.", where all of them have it."""
    result = dict(state)
    while True:
        counted = [name for name in result if name != "n_averaged"]  # AveragedModel's own
        prefix = next((w for w in _WRAPPERS if all(n.startswith(w) for n in counted)), "")
        if not counted or not prefix:
            return result
        result = {name.removeprefix(prefix): value for name, value in result.items()}


def _said(error: Exception) -> str:
    """The first line; of what PyTorch says of a pickle, the reason rather than its advice."""
    reason = re.search(r"WeightsUnpickler error: (.*)", str(error))
    if isinstance(error, pickle.UnpicklingError):
        return reason[1].rstrip(".") if reason else "its pickle cannot be read"
    return first_line(error).rstrip(".")
