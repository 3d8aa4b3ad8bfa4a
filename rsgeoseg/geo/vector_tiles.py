"""Zoom levels of vector tiles: detailed enough for every pixel edge, coarse enough to see all objects at once."""

from __future__ import annotations

import logging
import math
import struct
from typing import TYPE_CHECKING

import numpy as np
import pyogrio
import shapely

from rsgeoseg.errors import OutputError

if TYPE_CHECKING:
    from pathlib import Path

    import geopandas as gpd

logger = logging.getLogger(__name__)

LAYER = "objects"
"""Name of the layer."""
_RADIUS = 6_378_137.0
"""Of Web Mercator's sphere, m."""
_UNITS = 4096
"""Steps that coordinates have along the side of a tile."""
_MOST = 22
"""The most detailed zoom level that GDAL makes."""


def zoom_range(sample: gpd.GeoDataFrame, gsd: float | None) -> tuple[int, int]:
    """Coarsest and most detailed zoom level for objects.

    A tile's coordinates have 4,096 steps. In the coarsest level the typical object of the sample is about two steps
    wide: a quarter of a screen's pixel. In the most detailed one a step is at most half a pixel of the scene, or where
    that is unknown, a 64th of the typical object.

    Args:
        sample: some of the objects, with a CRS, at least one.
        gsd: metres per pixel of the scene.
    """
    shapes = sample.geometry.to_crs("EPSG:3857").to_numpy()
    size = float(np.median(np.sqrt(shapely.area(shapes))))
    # Web Mercator is stretched more the farther from the equator.
    stretch = math.cosh(float(np.median(shapely.bounds(shapes)[:, 1::2])) / _RADIUS)
    finest = size / 64 if gsd is None else min(gsd * stretch / 2, size / 2)
    most = _zoom(finest)
    return min(_zoom(size / 2), most), most


def check_tiles(path: Path, rows: int, *, has_crs: bool) -> None:
    """Check that vector tiles can be made, before the work starts.

    Raises:
        OutputError: GDAL cannot write them, there are no objects or they are nowhere.
    """
    instead = "write .gpkg instead"
    if "w" not in pyogrio.list_drivers().get("PMTiles", ""):
        msg = f"cannot write {path}: this GDAL makes no PMTiles; {instead} and convert it, e.g. with tippecanoe"
        raise OutputError(msg)
    if not has_crs:
        msg = f"cannot write {path}: vector tiles need a CRS, and the scene has none; {instead}"
        raise OutputError(msg)
    if rows == 0:
        msg = f"cannot write {path}: there are no objects, and vector tiles cannot be empty; {instead}"
        raise OutputError(msg)


def count_tiled(path: Path, rows: int) -> int:
    """Count the objects in the most detailed tiles of a PMTiles archive; an object lies in every tile that it touches.

    Tiles are for looking at: some objects may be missing, being too small or too many in one place. That is logged.

    Args:
        path: the archive.
        rows: objects that should be in it.

    Returns:
        ``rows``, where at least one was found.

    Raises:
        OSError, RuntimeError: the archive cannot be read, or is shorter than it says.
    """
    with path.open("rb") as file:
        offset, length = struct.unpack("<QQ", file.read(127)[56:72])  # of the tiles, PMTiles version 3
    if path.stat().st_size < offset + length:
        msg = f"only {path.stat().st_size} of {offset + length} bytes were written"
        raise OSError(msg)
    with pyogrio.open_arrow(path, columns=["id"], read_geometry=False, use_pyarrow=True) as (_, reader):
        ids = [np.unique(batch.column("id").to_numpy(zero_copy_only=False)) for batch in reader]
    found = len(np.unique(np.concatenate(ids))) if ids else 0
    if 0 < found < rows:
        text = "%s: %d of %d objects are too small or too many in one place for vector tiles; other formats have all"
        logger.warning(text, path.name, rows - found, rows)
        return rows
    return found


def _zoom(step: float) -> int:
    """Least zoom level whose coordinates have steps of at most so many metres of Web Mercator."""
    if not (math.isfinite(step) and step > 0):
        return _MOST
    return min(max(math.ceil(math.log2(2 * math.pi * _RADIUS / _UNITS / step)), 0), _MOST)
