"""Where on a map chips met: the strips that more than one chip saw, and the objects in them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import geopandas
import numpy as np
import shapely

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, NDArray
    from pyproj import CRS


def seam_strips(read_boxes: ArrayLike) -> NDArray[np.object_]:
    """Find the strips where chips overlap.

    Args:
        read_boxes: (N, 4) half-open x0 y0 x1 y1 that each chip saw, scene pixels.

    Returns:
        (S,) shapely rectangles in scene pixels, one for each pair of chips that share pixels.
    """
    boxes = np.asarray(read_boxes, np.float64).reshape(-1, 4)
    chips = shapely.box(*boxes.T)
    one, other = shapely.STRtree(chips).query(chips, predicate="intersects")
    low = np.maximum(boxes[one, :2], boxes[other, :2])
    high = np.minimum(boxes[one, 2:], boxes[other, 2:])
    shared = (one < other) & (low < high).all(axis=1)
    return np.asarray(shapely.box(*low[shared].T, *high[shared].T), object)


def place(
    shapes: NDArray[np.object_], affine: Sequence[float], crs: CRS | None, target: CRS | None
) -> NDArray[np.object_]:
    """Carry shapes from scene pixels to the world.

    Args:
        shapes: (S,) shapely geometries in scene pixels.
        affine: a b c d e f: X = a x + b y + c, Y = d x + e y + f.
        crs: of the scene; None = unknown.
        target: CRS wanted; None = unknown, then the scene's is kept.
    """
    a, b, c, d, e, f = affine
    matrix, origin = np.array([[a, d], [b, e]]), np.array([c, f])
    world = shapely.transform(shapes, lambda points: points @ matrix + origin)
    if crs is None or target is None or crs == target or not len(shapes):
        return np.asarray(world, object)
    # reprojection bends straight edges: points along them keep a long strip where it is
    longest = float(np.max(shapely.length(world))) / 100
    dense = shapely.segmentize(world, longest)
    return np.asarray(geopandas.GeoSeries(dense, crs=crs).to_crs(target).to_numpy(), object)


def touches_strip(shapes: NDArray[np.object_], strips: NDArray[np.object_]) -> NDArray[np.bool_]:
    """Tell which shapes (N,) share area with a strip, as (N,) bool."""
    out = np.zeros(len(shapes), np.bool_)
    if len(shapes) and len(strips):
        which, strip = shapely.STRtree(strips).query(shapes, predicate="intersects")
        shared = shapely.area(shapely.intersection(shapes[which], strips[strip])) > 0
        out[which[shared]] = True
    return out
