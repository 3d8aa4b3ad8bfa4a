"""Label rasters: a Cloud Optimized GeoTIFF whose pixels hold the ids of the objects."""

from __future__ import annotations

import warnings
import zlib
from typing import TYPE_CHECKING

import numpy as np
import rasterio
import rasterio.shutil
import shapely
from rasterio.errors import NotGeoreferencedWarning
from rasterio.windows import Window as RasterWindow

from rsgeoseg.errors import OutputError
from rsgeoseg.geo.rasterize import draw_masks, pixel_boxes, to_pixels
from rsgeoseg.geo.windows import Box

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from rsgeoseg.geo.batches import Batches
    from rsgeoseg.geo.grid import GeoGrid

_BLOCK = 512
_WINDOW = 2 * _BLOCK
_CACHE_BYTES = 64 * 2**20
"""GDAL's own block cache: its default grows with the machine."""
_LARGEST = 2**31 - 1
"""The largest id of an int32 raster."""
_Place = tuple[int, int]
"""Upper row and left column of a window."""


def write_labels(batches: Batches, path: Path, grid: GeoGrid) -> None:
    """Draw the objects on their scene's grid, batch by batch and window by window, into a COG of int32 ids.

    Background is 0 and marked as nodata. Where objects overlap, the one with the larger id is on top. Overviews keep
    ids (nearest neighbour). Memory is that of one batch, one window and GDAL's cache, whatever the size of the scene;
    a draft of the raster lies beside it on the disk meanwhile.

    Raises:
        OutputError: an id is too large for the raster.
        OSError: the file cannot be written, or does not read back as it was drawn.
        Exception: what making a batch raised.
    """
    draft = path.with_name(path.name + ".draft")
    with (
        warnings.catch_warnings(),
        rasterio.Env(GDAL_CACHEMAX=_CACHE_BYTES),
    ):
        warnings.simplefilter("ignore", NotGeoreferencedWarning)  # a scene without a CRS has none to give
        drawn = _draw(batches, draft, grid)
        rasterio.shutil.copy(
            draft,
            path,
            driver="COG",
            COMPRESS="DEFLATE",
            BLOCKSIZE=_BLOCK,
            OVERVIEW_RESAMPLING="NEAREST",
            BIGTIFF="IF_SAFER",
        )
        draft.unlink()
        found = _read(path)
    if drawn != found:
        wrong = sum(drawn.get(place) != found.get(place) for place in drawn | found)
        msg = f"{wrong} of {len(drawn | found)} parts of the raster could not be read back as they were drawn"
        raise OSError(msg)


def _draw(batches: Batches, path: Path, grid: GeoGrid) -> dict[_Place, int]:
    """Draw into a tiled GeoTIFF; checksums of the windows that have objects."""
    drawn: dict[_Place, int] = {}
    profile = {
        "driver": "GTiff",
        "height": grid.height,
        "width": grid.width,
        "count": 1,
        "dtype": "int32",
        "nodata": 0,
        "crs": grid.crs,
        "transform": grid.affine,
        "tiled": True,
        "blockxsize": _BLOCK,
        "blockysize": _BLOCK,
        "compress": "deflate",
        "zlevel": 1,
        "sparse_ok": True,
        "bigtiff": "if_safer",
    }
    with rasterio.open(path, "w+", **profile) as target:
        for frame in batches:
            ids = frame["id"].to_numpy()
            if ids.max(initial=0) > _LARGEST:
                msg = f"cannot write {path.stem}: object {ids.max()} is beyond the largest id of a raster; use .gpkg"
                raise OutputError(msg)
            pixels = to_pixels(frame, grid)
            tree = shapely.STRtree(pixels)
            for window in _windows(grid.height, grid.width):
                inside = tree.query(shapely.box(*_corners(window)))
                if not len(inside):
                    continue
                burnt = _burn(pixels[inside], ids[inside], window)
                place = (window.row_off, window.col_off)
                if place in drawn:
                    np.maximum(burnt, target.read(1, window=window), out=burnt)
                if burnt.any():
                    target.write(burnt, 1, window=window)
                    drawn[place] = zlib.crc32(burnt.data)
    return drawn


def _burn(pixels: NDArray[np.object_], ids: NDArray[np.int64], window: RasterWindow) -> NDArray[np.int32]:
    """(height, width) ids of the objects in a window, the largest on top."""
    order = np.argsort(ids, kind="stable")
    pixels, ids = pixels[order], ids[order]
    burnt = np.zeros((window.height, window.width), np.int32)
    within = Box(*_corners(window))
    boxes = pixel_boxes(pixels, within)
    masks = dict(draw_masks(pixels, boxes))
    for index, box in enumerate(boxes):
        burnt[box.shifted(-within.x0, -within.y0).as_slices()][masks[index]] = ids[index]
    return burnt


def _read(path: Path) -> dict[_Place, int]:
    """Checksums of the windows of a label raster that have objects."""
    found: dict[_Place, int] = {}
    with rasterio.open(path, driver="GTiff") as source:
        for window in _windows(source.height, source.width):
            labels = source.read(1, window=window)
            if labels.any():
                found[window.row_off, window.col_off] = zlib.crc32(labels.data)
    return found


def _corners(window: RasterWindow) -> tuple[int, int, int, int]:
    """x0 y0 x1 y1 of a window, half-open."""
    return window.col_off, window.row_off, window.col_off + window.width, window.row_off + window.height


def _windows(height: int, width: int) -> Iterator[RasterWindow]:
    """Windows of whole blocks, row by row."""
    for y in range(0, height, _WINDOW):
        for x in range(0, width, _WINDOW):
            yield RasterWindow(x, y, min(_WINDOW, width - x), min(_WINDOW, height - y))
