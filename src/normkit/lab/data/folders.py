"""A folder of the user's own: a folder of images for each class."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from normkit.errors import DataError, FileError
from normkit.lab.data.images import Pictures
from normkit.models.opening.images import open_images

__all__ = ["read_folder"]

FEWEST = 4  # images of a class, so that it can be split


def read_folder(folder: Path) -> tuple[Pictures, list[str]]:
    """All the images, and the names of their classes.

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
    opened = open_images(folder, batch_size=256)
    if len(opened.classes) < 2:
        raise _refused(f"{folder} with images of {'one class' if opened.classes else 'no class'}")
    try:
        parts = [(x.numpy(), y.numpy()) for x, y in opened]
    except DataError as error:  # its remedy is an option that is not taken here
        raise DataError(
            "The images differ in shape",
            received=error.received,
            expected=error.expected,
            remedy="Resize them to one size first.",
        ) from error
    pictures = Pictures(*(np.concatenate(column) for column in zip(*parts, strict=True)))
    counts = np.bincount(pictures.labels, minlength=len(opened.classes))
    if counts.min() < FEWEST:
        few = opened.classes[int(counts.argmin())]
        raise _refused(f"{counts.min()} in {folder / few}", f"at least {FEWEST} images of a class")
    return pictures, list(opened.classes)


def _refused(received: str, expected: str = "two folders of images or more") -> DataError:
    return DataError(
        "Images need classes to be learned",
        received=received,
        expected=expected,
        remedy="Put the images of each class into a folder of its own, in one folder.",
    )
