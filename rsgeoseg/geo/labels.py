"""Label rasters: a Cloud Optimized GeoTIFF whose pixels hold the ids of the objects."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import numpy as np
import rasterio
import rasterio.shutil
import shapely
from rasterio.errors import NotGeoreferencedWarning
from rasterio.windows import Window as RasterWindow

from rsgeoseg.geo.rasterize import draw_masks, pixel_boxes, to_pixels
from rsgeoseg.geo.windows import Box

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import geopandas as gpd
    from numpy.typing import NDArray

    from rsgeoseg.geo.grid import GeoGrid

_BLOCK = 512
_WINDOW = 2 * _BLOCK
_CACHE_BYTES = 64 * 2**20
"""GDAL's own block cache: its default grows with the machine."""


def write_labels(frame: gpd.GeoDataFrame, path: Path, grid: GeoGrid) -> None:
    """Draw the objects on their scene's grid, window by window, into a COG of int32 ids.

    Background is 0 and marked as nodata. Where objects overlap, the one with the larger id is on top. Overviews keep
    ids (nearest neighbour). Memory is that of one window and GDAL's cache, whatever the size of the scene.

    Raises:
        OSError: the file cannot be written, or the objects drawn cannot all be read back.
    """
    working = path.with_name(path.name + ".draft")
    with (
        warnings.catch_warnings(),
        rasterio.Env(GDAL_CACHEMAX=_CACHE_BYTES),
    ):
        warnings.simplefilter("ignore", NotGeoreferencedWarning)  # a scene without a CRS has none to give
        drawn = _draw(frame, working, grid)
        rasterio.shutil.copy(
            working,
            path,
            driver="COG",
            COMPRESS="DEFLATE",
            BLOCKSIZE=_BLOCK,
            OVERVIEW_RESAMPLING="NEAREST",
            BIGTIFF="IF_SAFER",
        )
        working.unlink()
        found = _ids(path, len(drawn))
    if not np.array_equal(drawn, found):
        msg = f"only {np.count_nonzero(drawn & found)} of {np.count_nonzero(drawn)} objects could be read back"
        raise OSError(msg)


def _draw(frame: gpd.GeoDataFrame, path: Path, grid: GeoGrid) -> NDArray[np.bool_]:
    """Draw into a tiled GeoTIFF; which ids (index) have a pixel."""
    pixels = to_pixels(frame, grid)
    ids = frame["id"].to_numpy()
    tree = shapely.STRtree(pixels)
    drawn = np.zeros(int(ids.max(initial=0)) + 1, bool)
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
    with rasterio.open(path, "w", **profile) as target:
        for window in _windows(grid.height, grid.width):
            x0, y0, width, height = window.col_off, window.row_off, window.width, window.height
            inside = tree.query(shapely.box(x0, y0, x0 + width, y0 + height))
            if not len(inside):
                continue
            inside = inside[np.argsort(ids[inside], kind="stable")]
            boxes = pixel_boxes(pixels[inside], Box(x0, y0, x0 + width, y0 + height))
            masks = dict(draw_masks(pixels[inside], boxes))
            burnt = np.zeros((height, width), np.int32)
            for index, box in enumerate(boxes):
                burnt[box.shifted(-x0, -y0).as_slices()][masks[index]] = ids[inside[index]]
            drawn[np.unique(burnt)] = True
            target.write(burnt, 1, window=window)
    drawn[0] = False
    return drawn


def _ids(path: Path, count: int) -> NDArray[np.bool_]:
    """Read a label raster; which of the ids below ``count`` have a pixel."""
    found = np.zeros(count, bool)
    with rasterio.open(path, driver="GTiff") as source:
        for window in _windows(source.height, source.width):
            present = np.unique(source.read(1, window=window))
            found[present[(present > 0) & (present < count)]] = True
    return found


def _windows(height: int, width: int) -> Iterator[RasterWindow]:
    """Windows of whole blocks, row by row."""
    for y in range(0, height, _WINDOW):
        for x in range(0, width, _WINDOW):
            yield RasterWindow(x, y, min(_WINDOW, width - x), min(_WINDOW, height - y))
