"""Programs of torch.export from files, examined before PyTorch is let near them.

``torch.export.load`` unpickles whatever an archive holds (constants and sample inputs with
``weights_only=False``, after trying with), opens shared libraries in it, evaluates its expressions
and builds source code from its names. So each record is examined first, as the reader that PyTorch
itself uses gives it, and nothing is loaded but what was examined.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

from normkit.errors import FileError
from normkit.models.opening.checkpoints import read_weights_only
from normkit.models.opening.detect import damaged
from normkit.models.opening.schema import Fault, faults_of

__all__ = ["read_program"]

_AS_CODE = (
    "Nothing in it was run. If you trust where it comes from, open the model as code: "
    "package.module:function, with a function that returns the model, or the program that "
    "torch.export.load gives."
)
# PyTorch's reader finds a record whatever the case of its name.
_JSON = re.compile(r"models/[\w.-]+\.json", re.IGNORECASE)
_PAYLOADS = re.compile(r"data/(weights|constants)/[\w.-]+_config\.json", re.IGNORECASE)
_PICKLES = re.compile(r"data/(weights|constants|sample_inputs)/[\w.-]+\.pt", re.IGNORECASE)
_RAW = re.compile(r"(weight|tensor)_\d+")


def read_program(path: Path) -> ExportedProgram:
    """The program of a ``.pt2`` file that holds nothing but weights and PyTorch's operators.

    Raises:
        FileError: damaged, of another version of PyTorch, or with something in it that could run.
    """
    try:
        reader = torch._C.PyTorchFileReader(str(path))
        records = reader.get_all_records()
    except RuntimeError:
        reader, records = None, []
    if reader is not None and "archive_format" in records:
        _Examination(path, reader.get_record, records).archive(reader)
        return _loaded(path, lambda: _from_archive(path))
    parts = _old_parts(path)
    _Examination(path, parts.__getitem__, list(parts)).old()
    return _loaded(path, lambda: _from_parts(parts))


class _Examination:
    """Looks at each record that PyTorch would use."""

    def __init__(self, path: Path, read: Callable[[str], bytes], records: list[str]) -> None:
        self.path, self.read, self.records = path, read, records

    def archive(self, reader: Any) -> None:
        """The format since PyTorch 2.8."""
        if len({record.lower() for record in self.records}) < len(self.records):
            raise damaged(self.path, "a program of torch.export", "two records have one name")
        for record in self.records:
            folder = record.lower()
            if folder.startswith("data/aotinductor/"):
                self.refuse(Fault(record, "a compiled library", "it is machine code"))
            elif folder.startswith("models/"):
                if not _JSON.fullmatch(record):
                    self.refuse(Fault(record, "a record", "it is no model's JSON"))
                self.check("ExportedProgram", record)
            elif _PAYLOADS.fullmatch(record):
                self.payloads(record, reader)
            elif _PICKLES.fullmatch(record):
                self.pickle(record)
        if not any(record.startswith("models/") for record in self.records):
            raise damaged(self.path, "a program of torch.export", "no model is in it")

    def old(self) -> None:
        """The format before."""
        self.check("ExportedProgram", "serialized_exported_program.json")
        for record in self.records:
            if record.endswith(".pt"):
                self.pickle(record)

    def payloads(self, record: str, reader: Any) -> None:
        """Where weights or constants lie: as plain bytes, of the size that their shape says."""
        config = self.check("PayloadConfig", record)
        folder = record.rpartition("/")[0]
        for name, meta in config["config"].items():
            file, place = meta["path_name"], f"{record}: {name}"
            if not _RAW.fullmatch(file):
                self.refuse(Fault(place, file, "it is an object of a class of its own"))
            inside = f"{folder}/{file}"
            if inside not in self.records:
                raise damaged(self.path, "a program of torch.export", f"{inside} is missing")
            if meta["use_pickle"]:  # torch.export.save does so for tensors of other classes only
                self.refuse(Fault(place, inside, "PyTorch unpickles it without a check"))
            if not self.size(inside, reader) and _elements(meta["tensor_meta"]):
                raise damaged(self.path, "a program of torch.export", f"{inside} is empty")

    def size(self, record: str, reader: Any) -> int:
        measure = getattr(reader, "get_record_size", None)
        return measure(record) if measure else len(self.read(record))

    def check(self, kind: str, record: str) -> Any:
        """JSON that follows PyTorch's schema, and in which nothing is harmful."""
        try:
            data = json.loads(self.read(record))
            fault = next(faults_of(kind, data), None)
        except (ValueError, KeyError, RuntimeError, RecursionError) as error:
            said = f"{record} is no JSON that can be read ({type(error).__name__})"
            raise damaged(self.path, "a program of torch.export", said) from error
        if fault is not None:
            self.refuse(Fault(f"{record}: {fault.place}", fault.value, fault.why))
        return data

    def pickle(self, record: str) -> None:
        """A pickle that tensors and plain values are enough for."""
        content = self.read(record)
        if not content:
            return
        try:
            # Just as PyTorch will ask, device and all: where that fails, it unpickles everything.
            read_weights_only(self.path, io.BytesIO(content), part=record, device=None)
        except FileError:
            raise
        except Exception as error:  # whatever a broken stream leads the unpickler to
            said = f"a pickle that cannot be read as weights ({' '.join(str(error).split())[:120]})"
            self.refuse(Fault(record, said, "PyTorch would unpickle it without a check"))

    def refuse(self, fault: Fault) -> None:
        raise FileError(
            "The program holds more than weights and PyTorch's operators",
            received=f"{self.path}: at {fault.place} stands {fault.value}; {fault.why}",
            expected="a program that can be read without running anything in it",
            remedy=_AS_CODE,
        )


def _elements(meta: dict[str, Any] | None) -> int:
    """How many elements a tensor has, where its sizes are numbers."""
    count = 1
    for size in (meta or {}).get("sizes", []):
        count *= size.get("as_int", 1)
    return count


def _from_archive(path: Path) -> ExportedProgram:
    """Like ``torch.export.load``, without its way back to the old format."""
    from torch.export.pt2_archive._package import load_pt2

    programs = load_pt2(str(path)).exported_programs
    if "model" not in programs and len(programs) != 1:
        raise damaged(path, "one program", f"it holds {', '.join(sorted(programs)) or 'none'}")
    return programs["model"] if "model" in programs else next(iter(programs.values()))


_OLD = ("exported_program.json", "state_dict.pt", "constants.pt", "example_inputs.pt")


def _old_parts(path: Path) -> dict[str, bytes]:
    try:
        with zipfile.ZipFile(path) as archive:
            parts = {name: archive.read(name) for name in (f"serialized_{part}" for part in _OLD)}
    except (zipfile.BadZipFile, KeyError, OSError, RuntimeError, NotImplementedError) as error:
        said = str(error).strip("'\"") or type(error).__name__
        raise damaged(path, "a program of torch.export", said) from error
    return parts


def _from_parts(parts: dict[str, bytes]) -> ExportedProgram:
    from torch._export.serde.serialize import SerializedArtifact, deserialize

    return deserialize(SerializedArtifact(*(parts[f"serialized_{part}"] for part in _OLD)))


def _loaded(path: Path, load: Callable[[], ExportedProgram]) -> ExportedProgram:
    """What ``load`` gives, and its errors as ours."""
    try:
        return load()
    except FileError:
        raise
    except Exception as error:  # the deserializer asserts, looks up and computes
        said = " ".join(str(error).split())[-300:] or type(error).__name__
        raise FileError(
            "PyTorch cannot load the program",
            received=str(path),
            expected=f"a program that PyTorch {torch.__version__} can load",
            remedy=f"It says: {said}. A program loads best with the version that saved it.",
        ) from error
