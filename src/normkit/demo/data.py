"""scikit-learn's handwritten digits: 1797 images of 8 by 8 pixels, ten classes, no download."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

TEST_SIZE = 500


@dataclass(frozen=True)
class Digits:
    """Images as (N, 1, 8, 8) float32, labels as (N,)."""

    train_images: torch.Tensor
    train_labels: torch.Tensor
    test_images: torch.Tensor
    test_labels: torch.Tensor


def digits(seed: int) -> Digits:
    """The digits, split by `seed` with every class in proportion, and scaled.

    The scale is one mean and one deviation over all pixels of the training images: networks without
    batch norm get well-scaled inputs too, and nothing of the test images leaks into training.
    """
    images, labels = load_digits(return_X_y=True)
    split = train_test_split(
        images, labels, test_size=TEST_SIZE, stratify=labels, random_state=seed
    )
    train, test = (torch.tensor(part, dtype=torch.float32).view(-1, 1, 8, 8) for part in split[:2])
    train_labels, test_labels = (torch.tensor(part) for part in split[2:])
    mean, deviation = train.mean(), train.std()
    return Digits(
        train_images=(train - mean) / deviation,
        train_labels=train_labels,
        test_images=(test - mean) / deviation,
        test_labels=test_labels,
    )
