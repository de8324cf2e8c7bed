"""MNIST and CIFAR-10 as they are published, fetched once and kept; their files are only read."""

from __future__ import annotations

import gzip
import hashlib
import http.client
import io
import os
import sys
import tarfile
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from normkit.errors import FileError
from normkit.lab.data.images import Pictures
from normkit.writing import write_whole

__all__ = ["Archive", "cifar10", "folder", "mnist", "read_cifar", "read_idx"]

T = TypeVar("T")
PATIENCE = 60  # seconds without a byte
_IMAGES, _LABELS = 0x0803, 0x0801  # of an IDX file: unsigned bytes in three dimensions, in one
_PLANE = 32 * 32  # pixels of a CIFAR image


@dataclass(frozen=True)
class Archive:
    """A file of a data set: where it is, and what it must be.

    Args:
        address: to fetch it from.
        digest: MD5, as its publishers give it: against damage, not against forgery.
    """

    address: str
    digest: str

    @property
    def name(self) -> str:
        """Of the file."""
        return self.address.rpartition("/")[2]


_MNIST = "https://ossci-datasets.s3.amazonaws.com/mnist/"
MNIST = (
    Archive(_MNIST + "train-images-idx3-ubyte.gz", "f68b3c2dcbeaaa9fbdd348bbdeb94873"),
    Archive(_MNIST + "train-labels-idx1-ubyte.gz", "d53e105ee54ea40749a09fcbcd1e9432"),
    Archive(_MNIST + "t10k-images-idx3-ubyte.gz", "9fb629c4189551a2d022fa330f9573f3"),
    Archive(_MNIST + "t10k-labels-idx1-ubyte.gz", "ec29112dd5afa0611ce80d1b7f02629c"),
)
#: The binary version: the other one for Python is made of pickles, which run what they hold.
CIFAR10 = Archive(
    "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz", "c32a1d4ab5d03f1284b67883e8d87530"
)


def folder() -> Path:
    """Where data sets are kept: ``NORMKIT_DATA``, or a folder in the user's cache."""
    named = os.environ.get("NORMKIT_DATA")
    return Path(named) if named else Path.home() / ".cache" / "normkit" / "data"


def mnist() -> tuple[Pictures, Pictures]:
    """MNIST: 28 by 28 pixels, 60,000 images to train on and 10,000 to test with.

    Raises:
        FileError: a file cannot be fetched, or is damaged.
    """
    parts = [_parsed(one, lambda content: read_idx(gzip.decompress(content))) for one in MNIST]
    images, labels, test_images, test_labels = parts
    return Pictures(images[:, None], labels), Pictures(test_images[:, None], test_labels)


def cifar10() -> tuple[Pictures, Pictures]:
    """CIFAR-10: 32 by 32 pixels in colour, 50,000 images to train on and 10,000 to test with.

    Raises:
        FileError: the file cannot be fetched, or is damaged.
    """
    return _parsed(CIFAR10, read_cifar)


def read_idx(content: bytes) -> np.ndarray:
    """The array in an IDX file of bytes.

    Raises:
        ValueError: it is none, or cut off.
    """
    magic = int.from_bytes(content[:4], "big")
    if magic not in (_IMAGES, _LABELS):
        raise ValueError(f"it begins with {content[:4].hex()}, not as an IDX file of bytes does")
    dimensions = magic & 0xFF
    start = 4 + 4 * dimensions
    if len(content) < start:
        raise ValueError(f"it is cut off: {len(content)} bytes")
    shape = np.frombuffer(content[4:start], ">u4").astype(np.int64)
    values = np.frombuffer(content[start:], np.uint8)
    if len(values) != shape.prod():
        raise ValueError(f"it holds {len(values)} bytes of data and announces {shape.tolist()}")
    return values.reshape(shape)


def read_cifar(content: bytes) -> tuple[Pictures, Pictures]:
    """Training and test images of CIFAR-10's binary archive; nothing is unpacked to the disk.

    Raises:
        ValueError: a file of it is missing, or is no whole number of images.
    """
    found = {}
    with tarfile.open(fileobj=io.BytesIO(content), mode="r:gz") as archive:
        for member in archive:
            name = member.name.rpartition("/")[2]
            file = archive.extractfile(member) if name.endswith(".bin") else None
            if file is not None:
                found[name] = _images(file.read(), name)
    wanted = [f"data_batch_{number}.bin" for number in range(1, 6)]
    missing = [name for name in (*wanted, "test_batch.bin") if name not in found]
    if missing:
        raise ValueError(f"it lacks {', '.join(missing)}")
    parts = [found[name] for name in wanted]
    images, labels = (np.concatenate([getattr(p, n) for p in parts]) for n in ("images", "labels"))
    return Pictures(images, labels), found["test_batch.bin"]


def _images(content: bytes, name: str) -> Pictures:
    size = 1 + 3 * _PLANE  # the class, then red, green and blue
    if not content or len(content) % size:
        raise ValueError(f"{name} has {len(content)} bytes, no multiple of {size}")
    rows = np.frombuffer(content, np.uint8).reshape(-1, size)
    return Pictures(rows[:, 1:].reshape(-1, 3, 32, 32), rows[:, 0])


def _parsed(archive: Archive, read: Callable[[bytes], T]) -> T:
    """What is in an archive that is here, or is fetched."""
    path = folder() / archive.name
    stored = _stored(path)
    content = _fetched(archive) if stored is None else stored
    try:
        digest = hashlib.md5(content, usedforsecurity=False).hexdigest()
        if digest != archive.digest:
            raise ValueError(f"its MD5 is {digest}, not {archive.digest}")
        found = read(content)
    except (ValueError, OSError, EOFError, tarfile.TarError) as error:
        raise FileError(
            "A file of the data set is damaged",
            received=archive.address if stored is None else str(path),
            expected="the file as it was published",
            remedy=f"{str(error)[:1].upper()}{str(error)[1:]}. Delete it, and it is fetched anew.",
        ) from error
    if stored is None:
        _keep(path, content)
    return found


def _stored(path: Path) -> bytes | None:
    """The file's content; None where there is no file."""
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise _unreadable(str(path), error) from error


def _keep(path: Path, content: bytes) -> None:
    """For the next time; data that are here are used all the same where that cannot be."""
    try:
        write_whole(path, content)
    except OSError as error:
        sys.stderr.write(
            f"{path} is not kept, and will be fetched again: {error.strerror or error}; "
            "NORMKIT_DATA names another folder\n"
        )


def _fetched(archive: Archive) -> bytes:
    sys.stderr.write(f"fetching {archive.address}\n")
    try:
        with urllib.request.urlopen(archive.address, timeout=PATIENCE) as answer:
            return bytes(answer.read())
    except (OSError, http.client.HTTPException) as error:  # the latter: cut in the middle
        raise _unreadable(archive.address, error) from error


def _unreadable(where: str, error: Exception) -> FileError:
    return FileError(
        "A file of the data set cannot be had",
        received=where,
        expected="a connection, or the file where data sets are kept",
        remedy=f"{error}. Put the file into {folder()}, or use --data digits, which needs no "
        "network.",
    )
