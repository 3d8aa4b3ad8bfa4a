"""Windows of an array's values: in memory, in Dask chunks, or behind a file that xarray opened without reading it."""

from __future__ import annotations

import sys
import threading
from bisect import bisect_right
from typing import TYPE_CHECKING, Any

import numpy as np
from rasterio.errors import RasterioIOError

from rsgeoseg.geo.tiles import TILE_SIDE, Tile, TileCache
from rsgeoseg.geo.windows import Box

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from xarray import Variable

_CACHE_BYTES = (64 << 20, 512 << 20)
"""Least and most to keep of loaded blocks that windows share."""


def is_in_memory(values: Variable) -> bool:
    """Whether all values are in memory, so that a window costs nothing but its copy."""
    return values.chunks is None and bool(values._in_memory)  # noqa: SLF001  (xarray has no public word for it)


def stored_as(values: Variable) -> dict[str, Any]:
    """Return the dtype and the fill value (as ``dtype`` and ``_FillValue``) of integers that xarray made floats of.

    xarray makes floats of integers that are stored with a fill value or a scale, be it a scale of 1, as rioxarray
    writes it. Such an array is the same scene as the file its integers came from.

    Args:
        values: of any shape and dtype; nothing is loaded.

    Returns:
        ``dtype`` and, where there is one, ``_FillValue`` as that dtype; empty for all other arrays.
    """
    stored, encoding = np.dtype(values.encoding.get("dtype", values.dtype)), values.encoding
    if values.dtype.kind != "f" or stored.kind not in "iu" or "missing_value" in encoding:
        return {}
    if encoding.get("scale_factor", 1) != 1 or encoding.get("add_offset", 0) != 0:
        return {}
    kind = {"true": "u", "false": "i"}.get(encoding.get("_Unsigned", ""), stored.kind)  # as NetCDF 3 writes them
    meant, fill = np.dtype(f"{kind}{stored.itemsize}"), encoding.get("_FillValue")
    if fill is None:
        return {"dtype": meant}
    try:
        return {"dtype": meant, "_FillValue": int(np.asarray(fill, stored).view(meant))}
    except (ValueError, OverflowError, TypeError):  # one that the integers cannot hold
        return {}


def as_stored(values: NDArray[Any], dtype: np.dtype[Any], fill: float | None) -> NDArray[Any]:
    """Return decoded integers as what they were, NaN as the fill value.

    Args:
        values: floats of any shape.
        dtype: of the integers.
        fill: None where no value stands for NaN.

    Returns:
        The same shape, of ``dtype``.

    Raises:
        ValueError: they are no such integers any more.
    """
    filled = values if fill is None else np.where(np.isnan(values), fill, values)
    with np.errstate(invalid="ignore"):
        whole = filled.astype(dtype)
    if not np.array_equal(whole, filled):
        msg = f"its values are not the {dtype} that its encoding tells of: forget that with data.drop_encoding()"
        raise ValueError(msg)
    return whole


def pixel_dtype(values: Variable) -> np.dtype[Any]:
    """Return the dtype that pixels of an array have: one that raster files know, and in this machine's byte order."""
    dtype = np.dtype(stored_as(values).get("dtype", values.dtype))
    other = {np.dtype(np.bool_): np.uint8, np.dtype(np.float16): np.float32, np.dtype(np.longdouble): np.float64}
    found: np.dtype[Any] = np.dtype(other.get(dtype, dtype)).newbyteorder("=")
    return found


def block_edges(values: Variable) -> tuple[list[int], list[int]] | None:
    """Return the rows and the columns at which blocks begin, and the end of the last; None in memory.

    Args:
        values: (band, y, x).
    """
    if is_in_memory(values):
        return None
    if values.chunks is not None:
        rows, cols = ([0, *np.cumsum(sizes).tolist()] for sizes in values.chunks[1:])
        return rows, cols
    stored = values.encoding.get("preferred_chunks", {})
    sides = [int(stored.get(dim, TILE_SIDE)) for dim in values.dims[1:]]
    rows, cols = ([*range(0, size, side), size] for size, side in zip(values.shape[1:], sides, strict=True))
    return rows, cols


def even_block(edges: tuple[list[int], list[int]] | None) -> tuple[int, int] | None:
    """Return (rows, columns) of a block; None where blocks differ (the last may be smaller) or there are none."""
    if edges is None:
        return None
    sizes = [np.diff(each) for each in edges]
    even = all((each[:-1] == each[0]).all() and each[-1] <= each[0] for each in sizes)
    return (int(sizes[0][0]), int(sizes[1][0])) if even else None


class ArrayValues:
    """Some bands of an array, read by windows from any thread; nothing is loaded that a window does not touch.

    Blocks that a window touches are loaded whole. ``load`` forgets them; ``shared`` keeps those that the next windows
    may need as well.

    Args:
        values: (band, y, x).
        indexes: bands from 0, each once.
    """

    def __init__(self, values: Variable, indexes: Sequence[int]) -> None:
        self._values, self._indexes = values, list(indexes)
        self.dtype = pixel_dtype(values)
        self._stored = stored_as(values)
        self.edges = block_edges(values)
        self._lock = threading.Lock()
        self._graph: tuple[Any, Any] | None = None
        self._elsewhere = values.chunks is not None and _is_on_cluster(values)
        self._blocks = None if self.edges is None else self._cache(*self.edges)

    def load(self, box: Box) -> NDArray[Any]:
        """Load a window, (bands, h, w); the caller's own.

        Raises:
            RasterioIOError: whatever failed on the way, of any type, as its cause.
        """
        image = np.empty((len(self._indexes), box.height, box.width), self.dtype)
        if self.edges is None:
            for band, index in zip(image, self._indexes, strict=True):
                band[...] = self._values.data[index, *box.as_slices()]
            return image
        try:
            if self._values.chunks is None or self._elsewhere:
                part = self._values[self._indexes, *box.as_slices()]
                image[...] = self._pixels(part.data.compute() if self._elsewhere else part.values)
            else:
                self._compute(box, image)
        except MemoryError:
            raise
        except Exception as error:  # a graph may run any code, and storage may be of any kind
            msg = " ".join(str(error).split()) or type(error).__name__
            raise RasterioIOError(msg) from error
        return image

    def shared(self, box: Box) -> NDArray[Any]:
        """Load a window as ``load`` does, by way of the blocks that were loaded before.

        Raises:
            RasterioIOError: as ``load``.
        """
        if self._blocks is None or self.edges is None:
            return self.load(box)
        image = np.empty((len(self._indexes), box.height, box.width), self.dtype)
        for place, tile in self._blocks.tiles(_touched(self.edges, box)):
            block = self._block_box(place)
            both = block.intersection(box)
            assert both is not None  # only blocks that the window touches are asked for
            assert tile.image is not None
            here, there = both.shifted(-box.x0, -box.y0), both.shifted(-block.x0, -block.y0)
            image[:, *here.as_slices()] = tile.image[:, *there.as_slices()]
        return image

    def clear(self) -> None:
        """Forget loaded blocks."""
        if self._blocks is not None:
            self._blocks.clear()

    def _cache(self, rows: list[int], cols: list[int]) -> TileCache:
        """Keep blocks by their row and column among blocks: a block is one pixel of the cache's grid."""
        height, width = int(np.diff(rows).max()), int(np.diff(cols).max())
        pixel = len(self._indexes) * self.dtype.itemsize
        least, most = _CACHE_BYTES
        capacity = max(min(2 * height * cols[-1] * pixel, most), least, 4 * height * width * pixel)
        return TileCache(len(rows) - 1, len(cols) - 1, tile=(1, 1), load=self._load_block, capacity=capacity)

    def _load_block(self, place: Box) -> Tile:
        return Tile(self.load(self._block_box(place)), None)

    def _block_box(self, place: Box) -> Box:
        assert self.edges is not None
        rows, cols = self.edges
        return Box(cols[place.x0], rows[place.y0], cols[place.x1], rows[place.y1])

    def _compute(self, box: Box, image: NDArray[Any]) -> None:
        """Compute the chunks that a window touches, in this thread, since several threads read at once.

        Slicing the Dask array instead would walk over the whole graph for each window: with the 16,000 chunks of a
        scene of 65,536 x 65,536 pixels that takes longer than loading one.
        """
        from dask.local import get_sync  # noqa: PLC0415  (there is Dask where there are chunks)
        from dask.optimization import cull  # noqa: PLC0415

        assert self.edges is not None
        graph, keys = self._low_level_graph()
        touched = _touched(self.edges, box)
        first_band = [0, *np.cumsum(self._values.chunks[0]).tolist()]  # type: ignore[index]
        chunks = sorted({bisect_right(first_band, index) - 1 for index in self._indexes})
        wanted = [
            (band, row, col)
            for band in chunks
            for row in range(touched.y0, touched.y1)
            for col in range(touched.x0, touched.x1)
        ]
        names = [keys[band][row][col] for band, row, col in wanted]
        needed, _ = cull(graph, names)  # type: ignore[no-untyped-call]
        for (band, row, col), values in zip(wanted, get_sync(needed, names), strict=True):
            block = self._block_box(Box(col, row, col + 1, row + 1))
            both = block.intersection(box)
            assert both is not None
            here = both.shifted(-box.x0, -box.y0).as_slices()
            there = both.shifted(-block.x0, -block.y0).as_slices()
            for place, index in enumerate(self._indexes):
                if first_band[band] <= index < first_band[band + 1]:
                    image[place, *here] = self._pixels(values[index - first_band[band], *there])

    def _pixels(self, values: NDArray[Any]) -> NDArray[Any]:
        if not self._stored:
            return values
        return as_stored(values, self.dtype, self._stored.get("_FillValue"))

    def _low_level_graph(self) -> tuple[Any, Any]:
        """Return the optimised tasks by key, and the keys of the chunks by band, row and column."""
        from dask.base import optimize  # noqa: PLC0415

        with self._lock:
            if self._graph is None:
                (array,) = optimize(self._values.data)  # type: ignore[no-untyped-call]
                self._graph = dict(array.__dask_graph__()), array.__dask_keys__()
            return self._graph


def _touched(edges: tuple[list[int], list[int]], box: Box) -> Box:
    """Rows and columns of the blocks that a box touches."""
    rows, cols = edges
    return Box(
        bisect_right(cols, box.x0) - 1,
        bisect_right(rows, box.y0) - 1,
        bisect_right(cols, box.x1 - 1),
        bisect_right(rows, box.y1 - 1),
    )


def _is_on_cluster(values: Variable) -> bool:
    """Whether chunks were persisted on a Dask cluster, from which only its client can bring them."""
    if "distributed" not in sys.modules:
        return False
    from distributed import futures_of  # noqa: PLC0415

    return bool(futures_of(values.data))  # type: ignore[no-untyped-call]
