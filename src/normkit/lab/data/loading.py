"""Data by its name."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from normkit.extras import needed
from normkit.lab.data.images import Data, Pictures, scaled, split

__all__ = ["NAMES", "digits", "load"]

#: What is known by name; anything else is a folder.
NAMES = ("digits", "mnist", "cifar10")
DIGITS_TEST = 500
#: Images at most: a claim is about normalization, and not about the last percent.
MOST_TRAIN, MOST_TEST = 10_000, 2_000


def load(name: str, seed: int) -> Data:
    """The data, split by the seed where it does not come split.

    Args:
        name: one of :data:`NAMES`, or the path of a folder with a folder of images for each class.

    Raises:
        DataError: a folder holds no such images.
        FileError: there is no such folder, or a file of a known set is damaged or cannot be had.
    """
    if name == "digits":
        return digits(seed)
    if name in NAMES:
        from normkit.lab.data import archives

        reader = archives.mnist if name == "mnist" else archives.cifar10
        train, test = reader()
        return scaled(name, _some(train, MOST_TRAIN, seed), _some(test, MOST_TEST, seed), 10)
    from normkit.lab.data.folders import read_folder

    pictures, names = read_folder(Path(name))
    tests = min(MOST_TEST, max(len(names), len(pictures.labels) // 4))
    train, test = split(_some(pictures, MOST_TRAIN + MOST_TEST, seed), tests, seed)
    return scaled(Path(name).name, train, test, len(names))


def digits(seed: int) -> Data:
    """scikit-learn's handwritten digits: 1797 images of 8 by 8 pixels, ten classes."""
    found = needed("sklearn.datasets").load_digits()
    pictures = Pictures(found.images[:, None].astype(np.float32), found.target)
    return scaled("digits", *split(pictures, DIGITS_TEST, seed), 10)


def _some(pictures: Pictures, most: int, seed: int) -> Pictures:
    if len(pictures.labels) <= most:
        return pictures
    chosen = np.random.default_rng(seed).permutation(len(pictures.labels))[:most]
    return Pictures(pictures.images[chosen], pictures.labels[chosen])
