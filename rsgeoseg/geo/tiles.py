"""A cache of decoded tiles that reader threads share, so that overlapping windows decode each block once.

GDAL keeps its blocks per data set. With a handle per thread, two threads that read neighbouring windows would each
decode what the windows share. Here a tile is a few whole blocks: decoded by one thread, used by all.
"""

from __future__ import annotations

import math
import threading
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rsgeoseg.geo.windows import Box

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import numpy as np
    from numpy.typing import NDArray

TILE_SIDE = 512
"""Tiles are whole blocks, about this large."""
CACHE_BYTES = 128 << 20
"""Holds the row of tiles that two rows of windows share, up to a width of 65,536 RGB pixels."""
STRIP_CACHE_BYTES = 1 << 30
"""At most this where blocks are as wide as the scene: with less than a row of windows, each is decoded many times."""
STRIP_ROWS = 1536
"""Rows of such a scene to hold: those that a window of 1,024 pixels and its neighbour below touch."""
_STRIP_TILE_ROWS = 128


def cache_layout(width: int, *, block: tuple[int, int] | None, pixel_bytes: int) -> tuple[tuple[int, int], int]:
    """Choose tiles that suit a raster's blocks, and how much memory to hold them.

    Args:
        width: columns of the raster.
        block: (rows, columns) of its blocks; None = it has none to respect.
        pixel_bytes: bytes that one decoded pixel takes, all bands and validity.

    Returns:
        (rows, columns) of a tile, and the capacity in bytes.
    """
    block_rows, block_cols = block or (TILE_SIDE, TILE_SIDE)
    if block_cols < width:
        rows = block_rows * max(1, TILE_SIDE // block_rows)
        cols = block_cols * max(1, TILE_SIDE // block_cols)
        return (rows, cols), max(CACHE_BYTES, 4 * rows * cols * pixel_bytes)
    rows = block_rows * max(1, _STRIP_TILE_ROWS // block_rows)
    need = min(STRIP_CACHE_BYTES, (STRIP_ROWS + rows) * width * pixel_bytes)
    return (rows, width), max(CACHE_BYTES, need)


@dataclass(frozen=True, slots=True)
class Tile:
    """Decoded pixels of one tile."""

    image: NDArray[Any] | None
    """(bands, h, w); None where no pixel is valid."""
    valid: NDArray[np.bool_] | None
    """(h, w); None where all are valid (or none, then ``image`` is None)."""

    @property
    def nbytes(self) -> int:
        """Memory held."""
        return (0 if self.image is None else self.image.nbytes) + (0 if self.valid is None else self.valid.nbytes)


class TileCache:
    """Tiles of a raster by row and column of the tile grid.

    When full, the upper and then leftmost tile goes first: scenes are read row by row, and what lies below is still
    needed. The cache never evicts to make room before a tile is handed out, so it always works, only slower when small.
    Neither does it hold more rows of tiles than boxes as tall as those asked for can share, since their memory is
    better used again (see `rsgeoseg.geo.buffers`).

    Args:
        height: rows of the raster, pixels.
        width: columns, pixels.
        tile: (rows, columns) of a tile, pixels.
        load: decodes one box; called by one thread per tile, by several for different tiles.
        capacity: bytes of decoded tiles to keep.
    """

    def __init__(
        self, height: int, width: int, *, tile: tuple[int, int], load: Callable[[Box], Tile], capacity: int
    ) -> None:
        self._shape, self._tile, self._load, self._capacity = (height, width), tile, load, capacity
        self._lock = threading.Lock()
        self._slots: dict[tuple[int, int], Future[Tile]] = {}
        self._sizes: dict[tuple[int, int], int] = {}
        self._held = self._tallest = 0
        self.loads = 0
        """Tiles decoded so far, repeats included."""

    @property
    def count(self) -> int:
        """Tiles of the whole raster."""
        return math.prod(-(-side // step) for side, step in zip(self._shape, self._tile, strict=True))

    @property
    def nbytes(self) -> int:
        """Bytes of decoded tiles held now."""
        return self._held

    def tiles(self, box: Box) -> Iterator[tuple[Box, Tile]]:
        """Yield the tiles that a box touches, with their places; those that other threads are decoding come last.

        Raises:
            Exception: what ``load`` raised, in every thread that waited for the tile; the next call tries again.
        """
        rows, cols = self._tile
        self._tallest = max(self._tallest, box.height)
        others = []
        for row in range(box.y0 // rows, -(-box.y1 // rows)):
            for col in range(box.x0 // cols, -(-box.x1 // cols)):
                place = Box(
                    col * cols,
                    row * rows,
                    min((col + 1) * cols, self._shape[1]),
                    min((row + 1) * rows, self._shape[0]),
                )
                slot, mine = self._claim((row, col))
                if mine:
                    yield place, self._fill((row, col), place, slot)
                elif slot.done():
                    yield place, slot.result()
                else:
                    others.append((place, slot))
        for place, slot in others:
            yield place, slot.result()

    def limit(self, capacity: int) -> None:
        """Keep at most so many bytes from now on; never more than before."""
        with self._lock:
            self._capacity = min(self._capacity, capacity)
            self._evict()

    def clear(self) -> None:
        """Forget all tiles."""
        with self._lock:
            self._slots.clear()
            self._sizes.clear()
            self._held = 0

    def _claim(self, key: tuple[int, int]) -> tuple[Future[Tile], bool]:
        """Return a tile's slot, and whether the caller must fill it."""
        with self._lock:
            slot = self._slots.get(key)
            if slot is not None:
                return slot, False
            slot = self._slots[key] = Future()
            return slot, True

    def _fill(self, key: tuple[int, int], place: Box, slot: Future[Tile]) -> Tile:
        try:
            tile = self._load(place)
        except BaseException as error:
            with self._lock:
                if self._slots.get(key) is slot:
                    del self._slots[key]
            slot.set_exception(error)
            raise
        with self._lock:
            self.loads += 1
            if self._slots.get(key) is slot:
                self._sizes[key] = tile.nbytes
                self._held += tile.nbytes
                self._evict()
        slot.set_result(tile)
        return tile

    def _evict(self) -> None:
        (rows, cols), (_, width) = self._tile, self._shape
        useful = (-(-self._tallest // rows) + 1) * -(-width // cols)  # a box need not begin where a tile does
        while self._sizes and (self._held > self._capacity or len(self._sizes) > useful):
            key = min(self._sizes)
            self._held -= self._sizes.pop(key)
            del self._slots[key]
