"""Tiles of images that are too large to train on, cut and named as the devkit of iSAID does."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from rsgeoseg.datasets.labelled import ImageFile
from rsgeoseg.errors import UsageError
from rsgeoseg.geo.windows import Box

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

SIZE = 800
"""Side of iSAID's tiles, pixels."""
OVERLAP = 200
"""Pixels that neighbouring tiles of iSAID share."""
_KEPT_IMAGES = 2
"""Decoded images that a process keeps: the tiles of one image are mostly read one after the other."""
_NAME = re.compile(r"(?P<stem>.+)_(?P<y0>\d+)_(?P<y1>\d+)_(?P<x0>\d+)_(?P<x1>\d+)")


@dataclass(frozen=True, slots=True)
class Tile:
    """A part of an image, or all of it."""

    name: str
    """The image's stem, followed by ``_y0_y1_x0_x1`` where the tile is a part of it."""
    box: Box
    """Which part, pixels of the whole image."""


def plan_tiles(stem: str, height: int, width: int, *, size: int = SIZE, overlap: int = OVERLAP) -> tuple[Tile, ...]:
    """Plan the tiles of an image.

    Tiles start every ``size - overlap`` pixels; those that would leave the image are shifted back to its edge, and no
    tile comes twice. As in the devkit, an image is cut only where both of its sides are longer than a tile: a long and
    low image stays whole.

    Args:
        stem: the image's name without extension.
        height: rows of the image.
        width: columns of the image.
        size: side of a tile, pixels.
        overlap: pixels that neighbouring tiles share at least, 0 to ``size - 1``.

    Returns:
        The tiles, from the top down and then from left to right.

    Raises:
        UsageError: size or overlap out of range.
    """
    if size < 1 or not 0 <= overlap < size:
        msg = f"tiles of {size} pixels cannot overlap by {overlap}: give a size of 1 or more and less overlap than size"
        raise UsageError(msg)
    if min(height, width) <= size:
        return (Tile(stem, Box(0, 0, width, height)),)
    boxes = (
        Box(x, y, x + size, y + size)
        for y in _starts(height, size, size - overlap)
        for x in _starts(width, size, size - overlap)
    )
    return tuple(Tile(f"{stem}_{box.y0}_{box.y1}_{box.x0}_{box.x1}", box) for box in boxes)


def parse_tile(name: str) -> tuple[str, Box] | None:
    """Read a tile's name: the stem of its image and its place in it; None where the name is that of a whole image."""
    match = _NAME.fullmatch(name)
    if match is None:
        return None
    x0, y0, x1, y1 = (int(match[key]) for key in ("x0", "y0", "x1", "y1"))
    return (match["stem"], Box(x0, y0, x1, y1)) if x0 < x1 and y0 < y1 else None


@dataclass(frozen=True, slots=True)
class TileReader:
    """Reads a part of an 8-bit image file as RGB; each process keeps the last images it decoded."""

    path: Path
    box: Box

    def __call__(self) -> NDArray[np.uint8]:
        """Read the part; smaller than the box where the file is smaller.

        Raises:
            UsageError: the file cannot be read as an image.
        """
        return _decode(self.path)[self.box.as_slices()].copy()


@lru_cache(maxsize=_KEPT_IMAGES)
def _decode(path: Path) -> NDArray[np.uint8]:
    return ImageFile(path)()


def _starts(length: int, size: int, step: int) -> list[int]:
    return list(dict.fromkeys(min(start, length - size) for start in range(0, length, step)))
