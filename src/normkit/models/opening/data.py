"""Data for a model: arrays in NumPy's files, folders of images, or code that gives batches."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from normkit.errors import DataError, FileError, OptionError
from normkit.models.opening.batched import Batches
from normkit.models.opening.code import is_reference, resolve
from normkit.models.opening.detect import WORDS, checked_file, content_of, damaged, missing

__all__ = ["open_data"]

Tensor = torch.Tensor

_INPUTS = ("x", "inputs", "input", "images", "data")
_LABELS = ("y", "labels", "label", "targets", "target")


def open_data(
    what: Any, *, batch_size: int = 64, mean: Any = None, std: Any = None, size: int | None = None
) -> Any:
    """Open data for :func:`normkit.models.batches.batches_of`, which can go through it repeatedly.

    Floating-point arrays become float32, bytes float32 from 0 to 1 (as images), other whole numbers
    stay as they are. Pickled objects in NumPy's files are refused.

    Args:
        what: an ``.npy`` file (mapped, not read whole); an ``.npz`` file with one array, or with
            ``x`` (or ``inputs``, ``images``) and ``y`` (or ``labels``); a folder of images, in
            order of their names, whose sub-folders are classes, as float32 from 0 to 1 in NCHW;
            ``package.module:function``, which is called for batches each time; anything else
            is given back as it is.
        batch_size: samples a batch, of files and folders.
        mean, std: a number or one for each channel: (x − mean) / std, of files and folders.
        size: images are scaled and cropped at the centre to this many pixels on each side.

    Raises:
        FileError: no such file, damaged, of another kind, or it holds pickled objects.
        DataError: empty, without a dimension of samples, labels that do not fit, nothing finite.
        OptionError: an option that does not fit the data.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "inputs.npy"
    >>> np.save(path, np.ones((10, 3)))
    >>> [tuple(batch.shape) for batch in open_data(path, batch_size=4)]
    [(4, 3), (4, 3), (2, 3)]
    """
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise OptionError(
            "batch_size counts samples",
            received=repr(batch_size),
            expected="a whole number from 1",
            remedy="For instance batch_size=64.",
        )
    options = {"mean": mean, "std": _nonzero(std)}
    if isinstance(what, str) and not Path(what).exists() and is_reference(what):
        _refuse_options("code", **options, size=size)
        return _of_code(what)
    if not isinstance(what, (str, os.PathLike)):
        _refuse_options("objects", **options, size=size)
        return what
    path = Path(what)
    if path.is_dir():
        from normkit.models.opening.images import open_images

        return _checked(open_images(path, batch_size, size, **options), path)
    if not path.exists():
        raise missing(path, "a file, a folder of images, or code as package.module:function")
    _refuse_options("arrays", size=size)
    x, y = _arrays(checked_file(path, (".npz", ".npy")))
    labels = None if y is None else torch.from_numpy(np.array(y))

    def take(start: int, stop: int) -> Tensor:
        return _as_input(x[start:stop])

    words = f"{len(x):,} samples of bytes, scaled to [0, 1]" if x.dtype == np.uint8 else ""
    return _checked(Batches(take, len(x), batch_size, labels=labels, words=words, **options), path)


def _nonzero(std: Any) -> Any:
    if std is not None and not (torch.as_tensor(std, dtype=torch.float64) > 0).all():
        raise OptionError(
            "Inputs are divided by std",
            received=repr(std),
            expected="numbers above 0",
            remedy="Leave std away where the data has none.",
        )
    return std


def _refuse_options(what: str, **options: Any) -> None:
    given = [name for name, value in options.items() if value is not None]
    if given:
        raise OptionError(
            f"{', '.join(given)} does not apply to {what}",
            received=", ".join(f"{name}={options[name]!r}" for name in given),
            expected="it for files that need it",
            remedy="Do it where the data is made.",
        )


def _of_code(reference: str) -> Any:
    """What is named, if it can be gone through more than once."""
    found = resolve(reference)
    once = isinstance(found, Iterator)
    if once or not (callable(found) or isinstance(found, (Iterable, torch.utils.data.Dataset))):
        raise DataError(
            "That gives its batches only once" if once else "That gives no batches",
            received=f"{reference}, a {type(found).__name__}",
            expected="a function without arguments that returns batches, or a DataLoader",
            remedy="Name the function that makes it.",
        )
    return found


def _arrays(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    """Inputs, and labels where there are some."""
    content = content_of(path)
    if content not in ("npy", "npz"):
        promised = path.suffix.lower() in (".npy", ".npz")
        if promised and content in ("unknown", "broken zip"):
            raise damaged(path, WORDS[path.suffix.lower()[1:]], "its bytes are not such a file's")
        raise FileError(
            "That is no data that can be opened",
            received=f"{path}, which is {WORDS[content]}",
            expected="an .npz or .npy file, a folder of images, or code that gives batches",
            remedy="Save the inputs with numpy.savez(path, x=inputs, y=labels).",
        )
    named = {"": _read_npy(path)} if content == "npy" else _read_npz(path)
    name, label = _chosen(named, path)
    x, y = named[name], named.get(label) if label else None
    for array, which in ((x, name), *([(y, label)] if y is not None else ())):
        _check_array(array, f"{path}{': ' + which if which else ''}")
    if y is not None and len(y) != len(x):
        raise DataError(
            "There is not one label for each input",
            received=f"{len(x)} inputs and {len(y)} labels in {path}",
            expected="as many of one as of the other",
            remedy=f"Are {name} and {label} cut from the same data?",
        )
    return x, y


def _read_npy(path: Path) -> np.ndarray:
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # of the header's parser and the file system, none of the user's
        if _holds_objects(path.open("rb")):
            raise _objects(str(path)) from None
        raise damaged(path, WORDS["npy"], str(error)) from error


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    result = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for entry in archive.infolist():
                name = entry.filename.removesuffix(".npy")
                with archive.open(entry) as member:
                    _check_length(path, name, member, entry.file_size)
                with archive.open(entry) as member:
                    result[name] = np.lib.format.read_array(member, allow_pickle=False)
    except FileError:
        raise
    except Exception as error:  # of zip, deflate and the headers' parser: a password, a wrong bit
        raise damaged(path, WORDS["npz"], str(error)) from error
    return result


def _header(file: Any) -> tuple[tuple[int, ...], np.dtype]:
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else (
        np.lib.format.read_array_header_2_0
    )  # fmt: skip
    shape, _, dtype = read(file)
    return shape, dtype


def _check_length(path: Path, name: str, file: Any, size: int) -> None:
    """Before memory is asked for: the bytes are there that the header tells of."""
    shape, dtype = _header(file)
    if dtype.hasobject:
        raise _objects(f"{path}: {name}")
    elements = 1
    for extent in shape:  # Python's numbers, which do not overflow
        elements *= extent
    if elements * dtype.itemsize > size:
        raise damaged(path, WORDS["npz"], f"{name} should have shape {shape}")


def _holds_objects(file: Any) -> bool:
    with file:
        try:
            return _header(file)[1].hasobject
        except Exception:  # as above
            return False


def _objects(where: str) -> FileError:
    return FileError(
        "The array holds pickled Python objects, which could run any code; none was run",
        received=where,
        expected="an array of numbers",
        remedy="Save it as numbers of one shape: numpy.save(path, numpy.stack(samples)).",
    )


def _chosen(named: dict[str, np.ndarray], path: Path) -> tuple[str, str]:
    """The names of the inputs and, or "", of the labels."""
    if len(named) == 1:
        return next(iter(named)), ""
    for x in (*_INPUTS, "arr_0"):
        labels = ("arr_1",) if x == "arr_0" else _LABELS
        found = [label for label in labels if label in named]
        if x in named and len(found) <= 1 and set(named) == {x, *found}:
            return x, "".join(found)
    raise DataError(
        "Which array is the input?",
        received=f"{path} with {', '.join(sorted(named)) or 'no array'}",
        expected="one array, or x (inputs, images) and y (labels)",
        remedy="Save it with numpy.savez(path, x=inputs, y=labels).",
    )


def _check_array(array: np.ndarray, where: str) -> None:
    numbers = array.dtype.kind in "biuf"
    if not numbers or array.ndim == 0 or array.size == 0:
        raise DataError(
            "The array is no data for a model",
            received=f"{where}: {array.dtype} of shape {array.shape}",
            expected="numbers, with samples along the first dimension",
            remedy="Save a batch: numpy.stack(samples), one sample or more."
            if numbers
            else "Save real numbers, such as float32.",
        )


def _as_input(array: np.ndarray) -> Tensor:
    """Floating-point numbers and bytes as float32; other whole numbers as PyTorch has them."""
    if array.dtype == np.uint8:
        return torch.from_numpy(array.astype(np.float32)) / 255
    if array.dtype.kind == "f":
        return torch.from_numpy(array.astype(np.float32))
    kept = np.bool_ if array.dtype.kind == "b" else np.int64
    return torch.from_numpy(array.astype(kept))


def _checked(batches: Batches, path: Path) -> Batches:
    """The first batch can be made, and has a finite number in it."""
    first = next(iter(batches))
    x = first[0] if isinstance(first, tuple) else first
    if x.is_floating_point() and not x.isfinite().any():
        raise DataError(
            "The data has no finite number",
            received=f"{path}: the first {len(x)} samples are NaN or infinite",
            expected="numbers",
            remedy="Look at how it was made or saved.",
        )
    return batches
