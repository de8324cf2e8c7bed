"""The set S of a norm as a picture: a box in the cube of samples, channels and positions.

What belongs to the box is asked of the norm itself, by the layout that its kernels use; nothing
here knows any norm by name but the list of those shown.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

import normkit as nk
from normkit.layout import ALL, layout_of

__all__ = ["MEMBERS", "SIZE", "Axes", "Member", "drawing", "numbered", "statistics"]

SIZE = (4, 6, 5)  # samples, channels, positions: all different, so that shapes tell them apart


@dataclass(frozen=True)
class Axes:
    """What the sides of the cube are called: in words, and by a letter each."""

    words: tuple[str, str, str]
    letters: tuple[str, str, str]


DATA = Axes(("samples", "channels", "positions"), ("N", "C", "L"))
WEIGHTS = Axes(("filters", "input channels", "kernel positions"), ("O", "I", "K"))


@dataclass(frozen=True)
class Member:
    """One of the family: its name, the call that makes it, the norm, and a sentence about it."""

    name: str
    code: str
    norm: nk.Norm
    sentence: str
    axes: Axes = DATA


MEMBERS = (
    Member(
        "Batch norm", "nk.BatchNorm()", nk.BatchNorm(),
        "One channel of the whole batch; what a sample becomes depends on its company, so "
        "inference needs statistics from elsewhere.",
    ),
    Member(
        "Ghost batch norm", "nk.GhostBatchNorm(2)", nk.GhostBatchNorm(2),
        "The same over a few samples at a time: the noise of small batches within a large one.",
    ),
    Member(
        "Layer norm of a feature map", "nk.LayerNorm()", nk.LayerNorm(),
        "All of one sample; no other sample matters, so training and inference are the same.",
    ),
    Member(
        "Layer norm of tokens", "nk.TokenLayerNorm()", nk.TokenLayerNorm(),
        "All channels at one position of one sample: each token by itself, as in transformers.",
    ),
    Member(
        "RMS norm", "nk.RMSNorm()", nk.RMSNorm(),
        "A token's box too, without a mean: x is divided by the root of its mean square.",
    ),
    Member(
        "Instance norm", "nk.InstanceNorm()", nk.InstanceNorm(),
        "One channel of one sample, which takes the contrast out of each image.",
    ),
    Member(
        "Group norm", "nk.GroupNorm(3)", nk.GroupNorm(3),
        "A group of channels of one sample: one group would be layer norm, as many groups as "
        "channels instance norm.",
    ),
    Member(
        "Batch-group norm", "nk.BatchGroupNorm(2, 3)", nk.BatchGroupNorm(2, 3),
        "A group of channels of a few samples: ghost batch norm and group norm at once.",
    ),
    Member(
        "Weight standardization", "nk.LayerNorm()", nk.LayerNorm(),
        "Not of data but of a layer's weights: one filter, with all its inputs.",
        WEIGHTS,
    ),
)  # fmt: skip


# --- which elements ------------------------------------------------------------------------------


def numbered(norm: nk.Norm, size: tuple[int, int, int] = SIZE) -> Any:
    """The cube (samples, channels, positions), each element with the number of its set.

    >>> import normkit as nk
    >>> numbered(nk.InstanceNorm(), (1, 2, 3)).tolist()
    [[[0, 0, 0], [1, 1, 1]]]
    """
    layout = layout_of(norm, size, 1)
    numbers = np.arange(np.prod(layout.grid)).reshape(layout.grid)
    return np.broadcast_to(layout.spread(np, numbers), size)


def box(member: Member, size: tuple[int, int, int] = SIZE) -> str:
    """The set in words: how much of each side it has."""
    inside = np.argwhere(numbered(member.norm, size) == 0)
    lengths = inside.max(axis=0) + 1
    parts = []
    for words, length, full in zip(member.axes.words, lengths, size, strict=True):
        parts.append(f"all {words}" if length == full else f"{length} {_noun(words, length)}")
    return " × ".join(parts)


def _noun(plural: str, number: int) -> str:
    return plural.removesuffix("s") if number == 1 else plural


def statistics(member: Member, size: tuple[int, int, int] = SIZE) -> str:
    """The shape of the mean and variance, in letters and for a cube of this size."""
    norm, layout = member.norm, layout_of(member.norm, size, 1)
    letters = tuple(_letters(norm, member.axes.letters))
    taken = "mean and variance" if norm.center else "mean square"
    here, elements = _shape(layout.statistics_shape), layout.set_counts()[0]
    return f"{taken} {_shape(letters)}, here {here}, each of {elements} elements"


def _letters(norm: nk.Norm, letters: tuple[str, str, str]) -> Iterator[str]:
    samples, channels, positions = letters
    if norm.samples != ALL:
        yield samples if norm.samples == 1 else f"{samples}/{norm.samples}"
    if isinstance(norm.channels, nk.Split):
        yield str(norm.channels.parts)
    elif norm.channels != ALL:
        yield channels if norm.channels == 1 else f"{channels}/{norm.channels}"
    if norm.positions != ALL:
        yield positions


def _shape(parts: Sequence[object]) -> str:
    """As Python writes it, on one line wherever it stands."""
    shown = [str(part) for part in parts]
    comma = "," if len(shown) == 1 else ""
    return "(" + ",\u00a0".join(shown) + comma + ")"


# --- the picture ---------------------------------------------------------------------------------

EDGE = 20  # pixels of an element
ACROSS, DOWN = EDGE * 3**0.5 / 2, EDGE / 2  # of a step along samples or channels
MARGIN_X, MARGIN_TOP, MARGIN_BOTTOM = 22, 6, 26

Corner = tuple[int, int, int]


@dataclass(frozen=True)
class _Face:
    """One of the three sides that can be seen.

    Args:
        name: of its class in the style sheet.
        size: elements along its two directions.
        corner: where the grid point (i, j) lies: (along channels, along samples, up).
        element: which element the field (i, j) belongs to.
    """

    name: str
    size: tuple[int, int]
    corner: Callable[[int, int], Corner]
    element: Callable[[int, int], tuple[int, int, int]]

    def fields(self) -> Iterator[tuple[int, int]]:
        for i in range(self.size[0]):
            for j in range(self.size[1]):
                yield i, j


def _faces(size: tuple[int, int, int]) -> tuple[_Face, _Face, _Face]:
    """The first sample and the first channel are nearest to the eye, the first position on top."""
    n, c, l = size  # noqa: E741 - the cube's letters
    return (
        _Face("top", (c, n), lambda i, j: (i, j, l), lambda i, j: (n - 1 - j, c - 1 - i, 0)),
        _Face("left", (c, l), lambda i, j: (i, n, j), lambda i, j: (0, c - 1 - i, l - 1 - j)),
        _Face("right", (n, l), lambda i, j: (c, i, j), lambda i, j: (n - 1 - i, 0, l - 1 - j)),
    )


def drawing(member: Member, size: tuple[int, int, int] = SIZE) -> str:
    """The cube as SVG: the first set filled, the borders of the others drawn, axes named."""
    sets = numbered(member.norm, size)
    n, c, l = size  # noqa: E741
    width = round((n + c) * ACROSS) + 2 * MARGIN_X
    height = round((n + c) * DOWN + l * EDGE) + MARGIN_TOP + MARGIN_BOTTOM
    faces = "".join(_face(face, sets, size) for face in _faces(size))
    kind = "cube" if member.norm.center else "cube uncentred"
    return (
        f'<svg class="{kind}" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="The cube with one set of {member.name}: {box(member, size)}">'
        f"{faces}{_names(member.axes, size)}</svg>"
    )


def _place(corner: Corner, size: tuple[int, int, int]) -> tuple[float, float]:
    """On the screen, in isometric view."""
    (u, v, w), (n, _, l) = corner, size  # noqa: E741
    x = MARGIN_X + (n + u - v) * ACROSS
    y = MARGIN_TOP + (u + v) * DOWN + (l - w) * EDGE
    return round(x, 1), round(y, 1)


def _face(face: _Face, sets: Any, size: tuple[int, int, int]) -> str:
    def number(i: int, j: int) -> int:
        inside = 0 <= i < face.size[0] and 0 <= j < face.size[1]
        return int(sets[face.element(i, j)]) if inside else -1

    def point(i: int, j: int) -> str:
        return "{:g} {:g}".format(*_place(face.corner(i, j), size))

    chosen: list[str] = []
    rest: list[str] = []
    inner: set[str] = set()
    border: set[str] = set()
    for i, j in face.fields():
        corners = ((i, j), (i + 1, j), (i + 1, j + 1), (i, j + 1))
        path = "M" + "L".join(point(*corner) for corner in corners) + "Z"
        (chosen if number(i, j) == 0 else rest).append(path)
        around = ((i - 1, j), (i, j - 1), (i + 1, j), (i, j + 1))
        sides = ((0, 3), (0, 1), (1, 2), (3, 2))
        for neighbour, (a, b) in zip(around, sides, strict=True):
            line = f"M{point(*corners[a])}L{point(*corners[b])}"
            (inner if number(*neighbour) == number(i, j) else border).add(line)
    parts = (("rest", rest), ("chosen", chosen), ("inner", sorted(inner)),
             ("border", sorted(border)))  # fmt: skip
    paths = "".join(f'<path class="{kind}" d="{"".join(d)}"/>' for kind, d in parts if d)
    return f'<g class="{face.name}">{paths}</g>'


def _names(axes: Axes, size: tuple[int, int, int]) -> str:
    """The sides' names along the lower edges and the left one."""
    n, c, l = size  # noqa: E741
    samples, channels, positions = axes.words
    below = 15
    left, nearest, right = (_place(at, size) for at in ((0, n, 0), (c, n, 0), (c, 0, 0)))
    x, y = (left[0] + nearest[0]) / 2, (left[1] + nearest[1]) / 2
    texts = [(channels, x - below / 2, y + below * 0.87, 30)]
    x, y = (nearest[0] + right[0]) / 2, (nearest[1] + right[1]) / 2
    texts.append((samples, x + below / 2, y + below * 0.87, -30))
    texts.append((positions, left[0] - 7, left[1] - l * EDGE / 2, -90))
    return "".join(
        f'<text transform="translate({x:.1f} {y:.1f}) rotate({turn})">{words}</text>'
        for words, x, y, turn in texts
    )
