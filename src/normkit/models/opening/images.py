"""A folder of images as batches, read when they are asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from normkit.errors import DataError, FileError, OptionError
from normkit.extras import needed
from normkit.models.opening.batched import Batches
from normkit.words import counted

__all__ = ["open_images"]

Tensor = torch.Tensor

_ENDINGS = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
_GREY = ("1", "L", "I;16", "I")


def open_images(
    folder: Path, batch_size: int, size: int | None = None, *, mean: Any = None, std: Any = None
) -> Batches:
    """The images of a folder in order of their names; in sub-folders, each with its class.

    Raises:
        DataError: no image, or images both beside and in sub-folders.
        OptionError: ``size`` is no number of pixels.
        ModuleNotFoundError: Pillow is not installed.
    """
    needed("PIL.Image")
    if size is not None and (isinstance(size, bool) or not isinstance(size, int) or size < 1):
        raise OptionError(
            "size counts pixels",
            received=repr(size),
            expected="a whole number from 1",
            remedy="For instance size=224.",
        )
    files, labels, classes = _files(folder)
    reader = _Reader(files, size)
    parts = [counted(len(files), "image")] + [counted(len(classes), "class")] * bool(classes)
    return Batches(
        reader.take, len(files), batch_size, labels=labels, classes=classes,
        words=", ".join([*parts, "scaled to [0, 1]"]), mean=mean, std=std,
    )  # fmt: skip


def _files(folder: Path) -> tuple[list[Path], Tensor | None, list[str]]:
    """The images, and for those in sub-folders their classes."""
    direct = _images(folder)
    inside = {sub.name: _images(sub) for sub in sorted(folder.iterdir()) if sub.is_dir()}
    inside = {name: files for name, files in inside.items() if files}
    if direct and inside:
        raise DataError(
            "Some images have a class and some have none",
            received=f"{len(direct)} images in {folder}, more in {', '.join(list(inside)[:3])}",
            expected="all in the folder, or all in sub-folders, one a class",
            remedy="Move those of one sort elsewhere.",
        )
    if not direct and not inside:
        raise DataError(
            "The folder holds no image",
            received=str(folder),
            expected=f"files ending in {', '.join(_ENDINGS)}, there or in sub-folders",
            remedy="An .npz file or package.module:function can give data of other kinds.",
        )
    if direct:
        return direct, None, []
    counts = torch.tensor([len(files) for files in inside.values()])
    labels = torch.arange(len(inside)).repeat_interleave(counts)
    return [file for files in inside.values() for file in files], labels, list(inside)


def _images(folder: Path) -> list[Path]:
    found = (p for p in folder.iterdir() if p.suffix.lower() in _ENDINGS and p.is_file())
    return sorted(p for p in found if not p.name.startswith("."))


class _Reader:
    """Reads images that must be alike: the first says how large, and whether in colour."""

    def __init__(self, files: list[Path], size: int | None) -> None:
        self.files, self.size = files, size
        self.shape: tuple[int, ...] | None = None

    def take(self, start: int, stop: int) -> Tensor:
        return torch.stack([self.image(file) for file in self.files[start:stop]])

    def image(self, file: Path) -> Tensor:
        """(C, H, W) from 0 to 1."""
        pixels = torch.from_numpy(self.pixels(file)).movedim(-1, 0)
        if self.shape is None:
            self.shape = tuple(pixels.shape)
        if self.shape[0] == 3 and len(pixels) == 1:  # a grey photograph among colours
            pixels = pixels.expand(3, -1, -1)
        if tuple(pixels.shape) != self.shape:
            raise DataError(
                "The images differ in shape",
                received=f"{file}, (C, H, W) = {tuple(pixels.shape)}",
                expected=f"{self.shape}, as {self.files[0]} is",
                remedy="Resize them to one size first, or say size=224 (pixels): each is then "
                "scaled and cropped. package.module:function can give batches of any kind.",
            )
        return pixels

    def pixels(self, file: Path) -> np.ndarray:
        """(H, W, C) as float32 from 0 to 1."""
        from PIL import Image

        try:
            with Image.open(file) as opened:
                grey = opened.mode in _GREY
                deep = opened.mode in ("I", "I;16")
                image = opened if deep else opened.convert("L" if grey else "RGB")
                if self.size is not None:
                    image = _cropped(image, self.size)
                array = np.asarray(image, dtype=np.float32)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise FileError(
                "The image cannot be read",
                received=str(file),
                expected="a whole image",
                remedy=f"Pillow says: {error}. Remove it or write it again.",
            ) from error
        return (array / (65535 if deep else 255)).reshape(*array.shape[:2], -1)


def _cropped(image: Any, size: int) -> Any:
    """The shorter side scaled to ``size``, then the middle."""
    from PIL import Image

    width, height = image.size
    scale = size / min(width, height)
    width, height = max(size, round(width * scale)), max(size, round(height * scale))
    image = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = (width - size) // 2, (height - size) // 2
    return image.crop((left, top, left + size, top + size))
