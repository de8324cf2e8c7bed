"""Data by its name."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np

from normkit.extras import needed
from normkit.lab.data.images import Data, Pictures, scaled, split

__all__ = ["NAMES", "digits", "forget", "load"]

#: What is known by name; anything else is a folder.
NAMES = ("digits", "mnist", "cifar10")
DIGITS_TEST = 500
#: Images at most: a claim is about normalization, and not about the last percent.
MOST_TRAIN, MOST_TEST = 10_000, 2_000


def load(name: str, seed: int) -> Data:
    """The data, split by the seed where it does not come split.

    A process keeps what it read last: a run has many tasks, and one data set.

    Args:
        name: one of :data:`NAMES`, or the path of a folder with a folder of images for each class.

    Raises:
        DataError: a folder holds no such images, or images that are all alike.
        FileError: there is no such folder, or a file of a known set is damaged or cannot be had.
    """
    if name == "digits":
        return digits(seed)
    if name in NAMES:
        (train, test), classes = _read(name)
        return scaled(name, _some(train, MOST_TRAIN, seed), _some(test, MOST_TEST, seed), classes)
    from normkit.lab.data.folders import stamp

    (pictures,), classes = _read(name, stamp(Path(name)))
    tests = max(classes, min(MOST_TEST, len(pictures.labels) // 4))
    return scaled(Path(name).name, *split(pictures, tests, seed), classes)


def digits(seed: int) -> Data:
    """scikit-learn's handwritten digits: 1797 images of 8 by 8 pixels, ten classes."""
    (pictures,), classes = _read("digits")
    return scaled("digits", *split(pictures, DIGITS_TEST, seed), classes)


@lru_cache(maxsize=1)  # more would be memory that no run has a use for
def _read(name: str, _stamp: tuple[object, ...] = ()) -> tuple[tuple[Pictures, ...], int]:
    """The pictures as they come, and how many classes they have; nobody may change them.

    Args:
        _stamp: of a folder, whose images may be others the next time.
    """
    parts, classes = _fresh(name)
    for part in parts:
        part.images.flags.writeable = part.labels.flags.writeable = False
    return parts, classes


def forget() -> None:
    """Keep no data any longer."""
    _read.cache_clear()


def _fresh(name: str) -> tuple[tuple[Pictures, ...], int]:
    if name == "digits":
        found = needed("sklearn.datasets").load_digits()
        return (Pictures(found.images[:, None].astype(np.float32), found.target),), 10
    if name in NAMES:
        from normkit.lab.data import archives

        return (archives.mnist if name == "mnist" else archives.cifar10)(), 10
    from normkit.lab.data.folders import read_folder

    pictures, names = read_folder(Path(name), MOST_TRAIN + MOST_TEST)
    return (pictures,), len(names)


def _some(pictures: Pictures, most: int, seed: int) -> Pictures:
    if len(pictures.labels) <= most:
        return pictures
    chosen = np.random.default_rng(seed).permutation(len(pictures.labels))[:most]
    return Pictures(pictures.images[chosen], pictures.labels[chosen])
