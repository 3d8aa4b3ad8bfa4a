"""Blocks of a TIFF that hold nodata alone, told apart without decoding them.

A block that was never written is not stored at all. One that was is compressed on its own, so that blocks with the
same bytes have the same pixels. What the first nodata blocks look like in the file is remembered.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rasterio.windows import Window as RasterWindow

from rsgeoseg.geo.windows import Box

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

MOST_BYTES = 64 << 10
"""Nodata compresses to less; larger blocks are not compared."""
_MOST_KINDS = 64
_NOT_STORED = b""

Span = tuple[int, int]
"""Offset and number of bytes of a block in its file; (0, 0) = not stored."""


class BlankBlocks:
    """What is known of the blocks of one file; safe from any thread.

    Args:
        path: a TIFF on this machine.
        block: (rows, columns) of its blocks.
        bands: numbers from 1 of the bands that are read.
    """

    def __init__(self, path: Path, block: tuple[int, int], bands: Sequence[int]) -> None:
        self._path, self._block, self._bands = path, block, tuple(bands)
        self._known: frozenset[bytes] = frozenset()
        self._sizes: frozenset[int] = frozenset()
        self._sound: set[int] = set()

    def cover(self, dataset: Any, box: Box) -> bool:
        """Whether all blocks that a box of the open file touches are known to be nodata.

        Raises:
            opening.READ_ERRORS: the file's table of blocks is damaged.
        """
        spans: set[Span] = set()
        for place in self._places(box):
            for span in self._spans(dataset, place):
                if span[1] not in self._sizes:
                    return False
                if not span[1]:
                    self._check(dataset, place)
                spans.add(span)
        return all(content in self._known for content in self._contents(spans))

    def learn(self, dataset: Any, box: Box) -> None:
        """Remember the blocks that lie inside a box without a valid pixel."""
        inside = {span for place in self._places(box) if box.contains(place) for span in self._spans(dataset, place)}
        found = self._known.union(self._contents({span for span in inside if span[1] <= MOST_BYTES}))
        if len(found) <= _MOST_KINDS:
            self._known, self._sizes = found, frozenset(map(len, found))

    def _check(self, dataset: Any, place: Box) -> None:
        """Read a pixel of a row of blocks, once: a damaged table looks empty too, but only until it is used."""
        if place.y0 not in self._sound:
            dataset.read(self._bands[0], window=RasterWindow(place.x0, place.y0, 1, 1))
            self._sound.add(place.y0)

    def _places(self, box: Box) -> Iterator[Box]:
        rows, cols = self._block
        for row in range(box.y0 // rows, -(-box.y1 // rows)):
            for col in range(box.x0 // cols, -(-box.x1 // cols)):
                yield Box(col * cols, row * rows, (col + 1) * cols, (row + 1) * rows)

    def _spans(self, dataset: Any, place: Box) -> Iterator[Span]:
        name = f"{place.x0 // self._block[1]}_{place.y0 // self._block[0]}"
        for band in self._bands:
            offset = dataset.get_tag_item(f"BLOCK_OFFSET_{name}", "TIFF", bidx=band)
            if offset is None:
                yield (0, 0)
            else:
                yield int(offset), int(dataset.get_tag_item(f"BLOCK_SIZE_{name}", "TIFF", bidx=band))

    def _contents(self, spans: set[Span]) -> Iterator[bytes]:
        if not any(size for _, size in spans):
            yield from [_NOT_STORED] * len(spans)
            return
        with self._path.open("rb") as file:
            for offset, size in sorted(spans):
                file.seek(offset)
                yield file.read(size)
