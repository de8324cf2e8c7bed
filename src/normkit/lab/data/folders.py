"""A folder of the user's own: a folder of images for each class."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from normkit.errors import DataError, FileError
from normkit.lab.data.images import Pictures
from normkit.models.opening.batched import Batches
from normkit.models.opening.images import open_images

__all__ = ["read_folder", "stamp"]

FEWEST = 4  # images of a class, so that it can be split


def stamp(folder: Path) -> tuple[object, ...]:
    """Something that is another one when a file in a class's folder has come, gone or changed."""
    if not folder.is_dir():
        return ()
    classes = [one for one in folder.iterdir() if one.is_dir()]
    files = ((file.path, file.stat()) for one in classes for file in os.scandir(one))
    return tuple(sorted((path, found.st_size, found.st_mtime_ns) for path, found in files))


def read_folder(folder: Path, most: int) -> tuple[Pictures, list[str]]:
    """The images, and the names of their classes.

    Args:
        most: images; of more, only those that are kept are decoded. Small classes may add a few.

    Raises:
        FileError: there is no such folder, or an image is damaged.
        DataError: no images, no classes, classes with hardly an image, or sizes that differ.
    """
    if not folder.is_dir():
        raise FileError(
            "There is no such data",
            received=str(folder),
            expected="digits, mnist, cifar10, or a folder",
            remedy="The folder holds a folder of images for each class.",
        )
    opened = open_images(folder, batch_size=1)
    if opened.labels is None or len(opened.classes) < 2:
        raise _refused(f"{folder} with images of {'one class' if opened.classes else 'no class'}")
    labels = opened.labels.numpy()
    counts = np.bincount(labels, minlength=len(opened.classes))
    if counts.min() < FEWEST:
        few = opened.classes[int(counts.argmin())]
        raise _refused(f"{counts.min()} in {folder / few}", f"at least {FEWEST} images of a class")
    chosen = _chosen(labels, counts, most)
    return Pictures(_decoded(opened, chosen), labels[chosen]), list(opened.classes)


def _chosen(labels: np.ndarray, counts: np.ndarray, most: int) -> np.ndarray:
    """Which images are kept: of each class its share, and enough to be split.

    The same for every seed, so that a process decodes them once; the seed splits them.
    """
    if len(labels) <= most:
        return np.arange(len(labels))
    random = np.random.default_rng(0)
    kept = np.maximum(FEWEST, counts * most // len(labels))
    parts = [
        random.permutation(np.flatnonzero(labels == number))[:count]
        for number, count in enumerate(kept)
    ]
    return np.sort(np.concatenate(parts))


def _decoded(opened: Batches, chosen: np.ndarray) -> np.ndarray:
    """(N, C, H, W); one after the other into their place, so that nothing is held twice."""
    try:
        shape = opened.take(0, 1).shape[1:]  # the first one says how large all of them are
        images = np.empty((len(chosen), *shape), np.float32)
        for place, number in enumerate(chosen.tolist()):
            images[place] = opened.take(number, number + 1)[0]
    except DataError as error:  # its remedy is an option that is not taken here
        raise DataError(
            "The images differ in shape",
            received=error.received,
            expected=error.expected,
            remedy="Resize them to one size first.",
        ) from error
    return images


def _refused(received: str, expected: str = "two folders of images or more") -> DataError:
    return DataError(
        "Images need classes to be learned",
        received=received,
        expected=expected,
        remedy="Put the images of each class into a folder of its own, in one folder.",
    )
