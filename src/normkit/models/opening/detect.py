"""What a file holds, read from its first bytes rather than from its name."""

from __future__ import annotations

import difflib
import zipfile
from pathlib import Path
from typing import BinaryIO

from normkit.errors import FileError

__all__ = ["MODEL_ENDINGS", "WORDS", "checked_file", "content_of", "damaged", "expect", "missing"]

#: What a model file's ending promises.
MODEL_ENDINGS = {
    ".safetensors": "safetensors",
    ".pt": "checkpoint",
    ".pth": "checkpoint",
    ".ckpt": "checkpoint",
    ".bin": "checkpoint",
    ".pt2": "program",
    ".onnx": "onnx",
}

#: Each content in words.
WORDS = {
    "safetensors": "weights in the safetensors format",
    "checkpoint": "a PyTorch checkpoint",
    "program": "a program of torch.export",
    "onnx": "an ONNX model",
    "torchscript": "a TorchScript archive, which is code",
    "pickle": "a pickle, as old PyTorch checkpoints are",
    "npz": "NumPy arrays (.npz)",
    "npy": "a NumPy array (.npy)",
    "keras": "a Keras model",
    "hdf5": "an HDF5 file, as Keras writes",
    "gguf": "a GGUF model",
    "image": "an image",
    "lfs": "a Git LFS pointer instead of the file itself; `git lfs pull` fetches it",
    "html": "a web page, as a failed download leaves behind",
    "tar": "a tar archive",
    "zip": "a zip archive of none of the known kinds",
    "broken zip": "the beginning of a zip archive whose end is missing",
    "unknown": "bytes of no known format",
}

_MAGIC = (
    (b"\x93NUMPY", "npy"),
    (b"\x89HDF\r\n\x1a\n", "hdf5"),
    (b"GGUF", "gguf"),
    (b"\x89PNG", "image"),
    (b"\xff\xd8\xff", "image"),
    (b"version https://git-lfs", "lfs"),
    (b"<!DOCTYPE", "html"),
    (b"<!doctype", "html"),
    (b"<html", "html"),
)


def checked_file(path: Path, endings: tuple[str, ...] = tuple(MODEL_ENDINGS)) -> Path:
    """The path, if an ordinary file with something in it is there.

    Args:
        endings: of the files to name when ``path`` is a folder.

    Raises:
        FileError: nothing is there (with the nearest names), a folder, a device, or no byte.
    """
    if not path.exists():
        raise missing(path)
    if path.is_dir():
        inside = sorted(p.name for p in path.iterdir() if p.suffix.lower() in endings)
        raise FileError(
            "That is a folder",
            received=str(path),
            expected="a file",
            remedy=f"In it are {_listed(inside)}." if inside else "Nothing in it can be opened.",
        )
    if not path.is_file():
        raise FileError(
            "That is no ordinary file",
            received=str(path),
            expected="a file on a disk",
            remedy="Copy what it gives into a file first.",
        )
    if path.stat().st_size == 0:
        raise FileError(
            "The file is empty",
            received=f"{path}, 0 bytes",
            expected="a file with something in it",
            remedy="What wrote it was probably interrupted: write or download it again.",
        )
    return path


def missing(path: Path, form: str = "a file that exists") -> FileError:
    """The error for a file that is not there, with the names that come close."""
    folder = path.parent
    names = sorted(p.name for p in folder.iterdir()) if folder.is_dir() else []
    near = difflib.get_close_matches(path.name, names, n=3, cutoff=0.5)
    if near:
        remedy = f"Did you mean {_listed([str(folder / name) for name in near], 'or')}?"
    elif not folder.is_dir():
        remedy = f"The folder {folder} does not exist either."
    else:
        remedy = f"Nothing in {folder.absolute()} has a name like it."
    return FileError("No such file", received=str(path), expected=form, remedy=remedy)


def damaged(path: Path, what: str, why: str) -> FileError:
    """The error for a file that is cut short or otherwise not whole."""
    return FileError(
        "The file is damaged or cut short",
        received=f"{path}, {path.stat().st_size:,} bytes: {why}",
        expected=f"{what}, whole",
        remedy="Write or download it again, and compare its size with the original's.",
    )


def expect(path: Path, content: str) -> None:
    """Refuse a file whose name promises something else than it holds.

    Raises:
        FileError: saying what it holds.
    """
    promised = MODEL_ENDINGS.get(path.suffix.lower())
    held = "checkpoint" if content == "pickle" else content
    if held == promised or (promised is None and held in MODEL_ENDINGS.values()):
        return
    if content == "broken zip" and promised in ("checkpoint", "program"):
        raise damaged(path, WORDS[promised], "a zip archive without its end")
    if content == "unknown" and promised is not None:
        raise damaged(path, WORDS[promised], "its first bytes are not such a file's")
    raise FileError(
        "The file does not hold what its name says" if promised else "The file cannot be opened",
        received=f"{path}, which is {WORDS[content]}",
        expected=WORDS[promised] if promised else f"one of {', '.join(MODEL_ENDINGS)}",
        remedy=_remedy(content),
    )


def _remedy(content: str) -> str:
    endings = [ending for ending, held in MODEL_ENDINGS.items() if held == content]
    if endings:
        return f"Rename it to end in {_listed(endings, 'or')} if that is what you meant."
    if content == "torchscript":
        return (
            "Open the model as code, package.module:function, or save its weights: "
            "torch.save(model.state_dict(), path)."
        )
    if content in ("npz", "npy", "image"):
        return (
            "That is data rather than a model: it is given as data (--data; open_data() in Python)."
        )
    return "Save the model's weights, or export the model with torch.export or torch.onnx."


def content_of(path: Path) -> str:
    """What a file holds: one of :data:`WORDS`.

    >>> import tempfile, torch
    >>> path = Path(tempfile.mkdtemp()) / "weights.pt"
    >>> torch.save({"weight": torch.ones(3)}, path)
    >>> content_of(path)
    'checkpoint'
    """
    with path.open("rb") as file:
        start = file.read(512)
        if start.startswith(b"PK\x03\x04"):
            return _zip_content(path)
        for magic, content in _MAGIC:
            if start.startswith(magic):
                return content
        if start[257:262] == b"ustar":
            return "tar"
        if start[8:9] == b"{":
            return "safetensors"
        if start[:1] == b"\x80" and start[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
            return "pickle"
        return "onnx" if _is_onnx(file, path.stat().st_size) else "unknown"


def _zip_content(path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            starts = [entry.header_offset for entry in archive.infolist()]
    except (zipfile.BadZipFile, ValueError, NotImplementedError, OSError):
        return "broken zip"
    if starts and min(starts) > 0:  # what was found is an archive within this one
        return "broken zip"
    inner = {name.partition("/")[2] for name in names}
    if "archive_format" in inner or "serialized_exported_program.json" in names:
        return "program"
    if "constants.pkl" in inner:
        return "torchscript"
    if "data.pkl" in inner:
        return "checkpoint"
    if names and all(name.endswith(".npy") for name in names):
        return "npz"
    return "keras" if "model.weights.h5" in names else "zip"


# Fields of onnx.ModelProto with their wire types: 0 is a number, 2 is bytes with a length.
_ONNX_FIELDS = {1: 0, 2: 2, 3: 2, 4: 2, 5: 0, 6: 2, 7: 2, 8: 2, 14: 2, 20: 2, 25: 2, 26: 2}
_ONNX_GRAPH = 7


def _is_onnx(file: BinaryIO, size: int) -> bool:
    """Whether the outermost fields are a ModelProto's; a last one that is cut short may be."""
    seen: set[int] = set()
    file.seek(0)
    while file.tell() < size:
        tag = _number(file)
        number, wire = (tag >> 3, tag & 7) if tag is not None else (0, -1)
        value = _number(file)
        if _ONNX_FIELDS.get(number) != wire or value is None:
            return False
        seen.add(number)
        if wire == 2:
            file.seek(value, 1)
    return _ONNX_GRAPH in seen


def _number(file: BinaryIO) -> int | None:
    """A protobuf varint; None where there is none."""
    value = 0
    for shift in range(0, 64, 7):
        byte = file.read(1)
        if not byte:
            return None
        value |= (byte[0] & 0x7F) << shift
        if byte[0] < 0x80:
            return value if value < 2**62 else None
    return None


def _listed(names: list[str], word: str = "and") -> str:
    """Names as people write them; at most five."""
    shown = names[:5] + ([f"{len(names) - 5} more"] if len(names) > 5 else [])
    return f" {word} ".join(filter(None, (", ".join(shown[:-1]), shown[-1])))
