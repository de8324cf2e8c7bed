"""Images and their classes, split and scaled."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from normkit.errors import DataError

__all__ = ["Data", "Pictures", "scaled", "split"]

Tensor = torch.Tensor


@dataclass(frozen=True, eq=False)
class Data:
    """Images as (N, C, H, W) float32, labels as (N,) whole numbers from 0.

    Args:
        name: for the reader.
        classes: how many there are.
    """

    name: str
    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    classes: int

    @property
    def channels(self) -> int:
        """Of an image."""
        return int(self.train_images.shape[1])

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of an image."""
        height, width = self.train_images.shape[2:]
        return int(height), int(width)

    @property
    def features(self) -> int:
        """Numbers in an image."""
        return self.train_images[0].numel()


@dataclass(frozen=True, eq=False)
class Pictures:
    """What a loader reads: (N, C, H, W) of any dtype and (N,)."""

    images: np.ndarray
    labels: np.ndarray


def split(pictures: Pictures, test: int, seed: int) -> tuple[Pictures, Pictures]:
    """Training and test images, with every class in proportion."""
    from sklearn.model_selection import train_test_split

    images, labels = pictures.images, pictures.labels
    parts = train_test_split(images, labels, test_size=test, stratify=labels, random_state=seed)
    return Pictures(parts[0], parts[2]), Pictures(parts[1], parts[3])


def scaled(name: str, train: Pictures, test: Pictures, classes: int) -> Data:
    """One mean and one deviation over all training pixels, so that nothing of the test leaks in.

    Raises:
        DataError: all training pixels are the same.
    """
    images, tests = (torch.tensor(p.images, dtype=torch.float32) for p in (train, test))
    if images.min() == images.max():  # their deviation may be a rounding away from 0
        raise DataError(
            "The images are all alike",
            received=f"{name}, where every pixel is {float(images.min()):.3g}",
            expected="pixels that differ",
            remedy="There is nothing to be learned from these; are they damaged?",
        )
    mean, deviation = images.mean(), images.std()
    labels, answers = (torch.tensor(p.labels, dtype=torch.int64) for p in (train, test))
    images, tests = (images - mean) / deviation, (tests - mean) / deviation
    return Data(name, images, labels, tests, answers, classes)
