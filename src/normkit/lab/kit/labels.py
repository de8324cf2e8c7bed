"""Labels that are wrong on purpose: then there is something to overfit."""

from __future__ import annotations

from dataclasses import replace

import torch

from normkit.lab.data import Data

__all__ = ["mislabelled"]


def mislabelled(data: Data, share: float, generator: torch.Generator) -> Data:
    """The data with a share of the training labels redrawn from all classes; the test stays.

    One in as many as there are classes is right again by chance.
    """
    labels = data.train_labels
    chosen = torch.rand(labels.shape, generator=generator) < share
    drawn = torch.randint(data.classes, labels.shape, generator=generator)
    return replace(data, train_labels=torch.where(chosen, drawn, labels))
