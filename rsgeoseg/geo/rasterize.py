"""Polygons to masks, many objects at a time: the way back from `rsgeoseg.geo.polygonize`.

A pixel belongs to a polygon when its centre lies inside. Each edge flips, in every row of pixel centres that it
crosses, all pixels to its right; what is flipped an odd number of times is inside. GDAL's rasterize gives the same
masks, but takes milliseconds for an object of many parts.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import shapely

from rsgeoseg.geo.atlas import pack_sheets
from rsgeoseg.geo.windows import Box

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import geopandas as gpd
    from numpy.typing import NDArray

    from rsgeoseg.geo.atlas import Sheet
    from rsgeoseg.geo.grid import GeoGrid

_DECIMALS = 6
"""Of pixel coordinates: world coordinates are large numbers, and a pixel edge must come back as one."""


def to_pixels(frame: gpd.GeoDataFrame, grid: GeoGrid) -> NDArray[np.object_]:
    """(N,) geometries of a frame in pixels of a grid, through the grid's CRS where both have one."""
    if frame.crs is not None and grid.crs is not None:
        frame = frame.to_crs(grid.crs.to_wkt())
    moved: NDArray[np.object_] = shapely.transform(
        frame.geometry.to_numpy(), lambda xy: np.round(grid.pixels(xy), _DECIMALS)
    )
    return moved


def pixel_boxes(geometries: NDArray[np.object_], within: Box) -> list[Box]:
    """Boxes of pixels around (N,) geometries, cut to ``within``; one pixel at its edge for what lies outside."""
    return [_pixel_box(bounds, within) for bounds in shapely.bounds(geometries).tolist()]


def draw_masks(geometries: NDArray[np.object_], boxes: Sequence[Box]) -> Iterator[tuple[int, NDArray[np.bool_]]]:
    """Draw polygons, each on its own box.

    Args:
        geometries: (N,) valid Polygons and MultiPolygons in pixels.
        boxes: N boxes; what lies outside its box is cut off.

    Yields:
        The index of a geometry and its mask (box.height, box.width), every index once, in no particular order.
    """
    for sheet in pack_sheets([(box.height, box.width) for box in boxes]):
        corners = np.array([(box.x0, box.y0, box.x1, box.y1) for box in (boxes[i] for i in sheet.members)], np.int64)
        filled = _fill(geometries[sheet.members], corners, sheet)
        for index, x, y in zip(sheet.members.tolist(), sheet.x.tolist(), sheet.y.tolist(), strict=True):
            yield index, filled[y : y + boxes[index].height, x : x + boxes[index].width]


def _fill(geometries: NDArray[np.object_], boxes: NDArray[np.int64], sheet: Sheet) -> NDArray[np.bool_]:
    """Draw K geometries into their crops on a sheet; ``boxes`` (K, 4) are x0 y0 x1 y1."""
    parts, part_owner = shapely.get_parts(geometries, return_index=True)
    rings, ring_part = shapely.get_rings(parts, return_index=True)
    points, ring = shapely.get_coordinates(rings, return_index=True)
    edges = np.flatnonzero(ring[:-1] == ring[1:])
    owner = part_owner[ring_part[ring[edges]]]
    (xa, ya), (xb, yb) = points[edges].T, points[edges + 1].T
    first = np.clip(np.ceil(np.minimum(ya, yb) - 0.5), boxes[owner, 1], boxes[owner, 3]).astype(np.int64)
    last = np.clip(np.ceil(np.maximum(ya, yb) - 0.5), boxes[owner, 1], boxes[owner, 3]).astype(np.int64)
    count = last - first
    # One entry per edge and row that it crosses.
    edge = np.repeat(np.arange(len(edges)), count)
    row = np.arange(len(edge)) - np.repeat(np.cumsum(count) - count, count) + first[edge]
    owner = owner[edge]
    slope = (xb[edge] - xa[edge]) / (yb[edge] - ya[edge])
    column = np.ceil(xa[edge] + (row + 0.5 - ya[edge]) * slope - 0.5)
    # Right of its box an edge flips the empty column behind the crop, so that the next crop starts afresh.
    column = np.clip(column, boxes[owner, 0], boxes[owner, 2]).astype(np.int64)
    flips = np.zeros((sheet.height, sheet.width), np.uint8)
    np.add.at(flips, (row - boxes[owner, 1] + sheet.y[owner], column - boxes[owner, 0] + sheet.x[owner]), 1)
    inside: NDArray[np.bool_] = np.cumsum(flips, axis=1, dtype=np.uint8) % 2 == 1
    return inside


def _pixel_box(bounds: list[float], within: Box) -> Box:
    """Pixels around bounds (x min, y min, x max, y max), cut to a box and never empty."""
    x0, y0, x1, y1 = bounds if all(math.isfinite(value) for value in bounds) else (0.0, 0.0, 0.0, 0.0)
    left = min(max(math.floor(x0), within.x0), within.x1 - 1)
    upper = min(max(math.floor(y0), within.y0), within.y1 - 1)
    right, lower = min(math.ceil(x1), within.x1), min(math.ceil(y1), within.y1)
    return Box(left, upper, max(right, left + 1), max(lower, upper + 1))
