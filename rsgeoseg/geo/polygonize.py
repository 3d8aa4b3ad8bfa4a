"""Masks to polygons whose edges are pixel edges, many objects at a time.

The outline of a mask runs along pixel edges and is described by its corners alone. All corners of a sheet of masks are
found at once; along a row of pixel corners they pair up into horizontal edges, along a column into vertical ones, and
following the edges in turn gives the rings. One rule makes every polygon valid: where two object pixels touch only
at a corner, they are joined there if they belong to the same 4-connected part (the ring of the hole that they enclose
then touches the outer ring in one point), and kept apart if they do not (two polygons of one MultiPolygon touch).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import cv2
import numpy as np
import shapely
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import connected_components, depth_first_order

from rsgeoseg.geo.atlas import pack_sheets
from rsgeoseg.geo.regularize import orient, regularize_polygon

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from rsgeoseg.geo.atlas import Sheet
    from rsgeoseg.geo.grid import GeoGrid
    from rsgeoseg.geo.stitch import StitchedObject

# Bits of a pixel corner's code: which of the four pixels around it belong to an object.
_NW, _NE, _SW, _SE = 1, 2, 4, 8
_NODES = np.zeros(16, np.uint8)
"""How many times an outline turns at a corner with this code."""
_NODES[[1, 2, 4, 8, 7, 11, 13, 14]] = 1
_NODES[[_NW | _SE, _NE | _SW]] = 2


def polygonize(
    objects: Sequence[StitchedObject], grid: GeoGrid, *, simplify: float = 0.0, regularize: bool = False
) -> NDArray[np.object_]:
    """Turn objects into polygons in world coordinates.

    Every pixel is covered exactly: before simplification the polygon of an object has the area of its pixels. An
    object of one 4-connected part is a Polygon, one of several parts a MultiPolygon; holes are kept. Outer rings run
    counter-clockwise in world coordinates, holes clockwise, for any affine.

    Args:
        objects: N objects in pixels of ``grid``.
        grid: where those pixels lie; its full affine is applied, its CRS is not looked at.
        simplify: tolerance in pixels of a simplification that keeps each polygon's topology; 0 leaves it exact.
            Neighbours are simplified one by one, so their shared border may open.
        regularize: draw each outline with right angles, where the result still overlaps the exact outline well
            (see `rsgeoseg.geo.regularize`). Right angles are those of the pixel frame.

    Returns:
        (N,) object array of valid shapely Polygons and MultiPolygons; an empty Polygon for a mask without a pixel.

    Raises:
        ValueError: ``simplify`` is negative.
    """
    if simplify < 0:
        msg = f"simplify must be at least 0 pixels, got {simplify}"
        raise ValueError(msg)
    polygons = np.empty(len(objects), object)
    for sheet in pack_sheets([item.mask.shape for item in objects]):
        members = [objects[i] for i in sheet.members]
        shift = np.array([(item.box.x0, item.box.y0) for item in members], np.int64)
        fill = np.zeros((sheet.height, sheet.width), np.uint8)
        for item, x, y in zip(members, sheet.x.tolist(), sheet.y.tolist(), strict=True):
            fill[y : y + item.mask.shape[0], x : x + item.mask.shape[1]] = item.mask
        polygons[sheet.members] = _sheet_polygons(sheet, fill, shift, grid, exact=not (simplify or regularize))
    if simplify:
        polygons = _accepted(shapely.simplify(polygons, simplify, preserve_topology=True), polygons)
    if regularize:
        polygons = np.array([regularize_polygon(polygon) for polygon in polygons] + [None], object)[:-1]
    if simplify or regularize:
        polygons = orient(shapely.transform(polygons, grid.xy))
    return polygons


def _accepted(changed: NDArray[np.object_], original: NDArray[np.object_]) -> NDArray[np.object_]:
    """Keep the original where the changed polygon is empty or invalid."""
    return np.where(shapely.is_valid(changed) & ~shapely.is_empty(changed), changed, original)


def _sheet_polygons(
    sheet: Sheet, fill: NDArray[np.uint8], shift: NDArray[np.int64], grid: GeoGrid, *, exact: bool
) -> NDArray[np.object_]:
    """(K,) polygons of a sheet's crops: in world coordinates if ``exact``, otherwise still in scene pixels."""
    polygons = np.full(len(sheet.members), shapely.Polygon(), object)
    corners, rings, parts = _trace(fill)
    if not len(corners):
        return polygons
    # Rings of one part are neighbours, the outer one first.
    outer = np.flatnonzero(np.diff(parts, prepend=-1))
    first = corners[rings[:-1]]
    ring_owner = sheet.owners(first[:, 0], first[:, 1])
    part_owner = ring_owner[outer]
    lengths = np.diff(rings)
    offset = shift - np.stack([sheet.x, sheet.y], axis=1)
    points = (corners + np.repeat(offset[ring_owner], lengths, axis=0)).astype(np.float64)
    if exact:
        points = grid.xy(points)
    if grid.affine.determinant < 0:
        points = points[_reversed_rings(rings)]
    # Parts in the order of their crops, so that those of one crop are neighbours.
    made = shapely.from_ragged_array(shapely.GeometryType.POLYGON, points, (rings, np.append(outer, len(rings) - 1)))
    order = np.argsort(part_owner, kind="stable")
    made, part_owner = made[order], part_owner[order]
    single = np.bincount(part_owner, minlength=len(polygons)) == 1
    alone = single[part_owner]
    polygons[part_owner[alone]] = made[alone]
    several, index = np.unique(part_owner[~alone], return_inverse=True)
    if len(several):
        polygons[several] = shapely.multipolygons(made[~alone], indices=index)
    return polygons


def _reversed_rings(rings: NDArray[np.int64]) -> NDArray[np.int64]:
    """Order of points that runs each ring backwards from the same first point."""
    position = np.arange(rings[-1])
    ends = np.repeat(rings[1:], np.diff(rings))
    starts = np.repeat(rings[:-1], np.diff(rings))
    return ends - 1 - position + starts


def _trace(fill: NDArray[np.uint8]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Trace the outlines of a 0/1 raster with an empty border.

    Returns:
        Corners (M, 2) x y of closed rings one after the other (the first corner of each is repeated at its end); ring
        offsets (R + 1,); the 4-connected part (R,) of each ring, sorted, its outer ring first. The object lies on the
        right of a ring as seen in an image, so outer rings run counter-clockwise by the numbers x and y.
    """
    around = (fill[:-1, :-1] | fill[:-1, 1:] << 1 | fill[1:, :-1] << 2 | fill[1:, 1:] << 3).astype(np.uint8, copy=False)
    turns = _NODES[around]
    place = np.flatnonzero(turns)
    if not len(place):
        return np.zeros((0, 2), np.int64), np.zeros(1, np.int64), np.zeros(0, np.int64)
    place = np.repeat(place, turns.ravel()[place])
    code = around.ravel()[place]
    y, x = np.divmod(place, fill.shape[1] - 1)
    y, x = y + 1, x + 1
    labels = np.asarray(cv2.connectedComponents(fill, connectivity=4, ltype=cv2.CV_32S)[1], np.int32)
    following = _next_corner(code, _column_rank(x, y, code, labels))
    # The pixel just below or above the horizontal edge that starts at every second corner of a row.
    left, south = slice(0, None, 2), code[::2] & _SE != 0
    part = np.repeat(labels[np.where(south, y[left], y[left] - 1), x[left]].astype(np.int64), 2)
    order, leaders, lengths = _cycles(following)
    # A part's first corner in row order always lies on its outer ring.
    ranking = np.lexsort((leaders, part[leaders]))
    starts = (np.cumsum(lengths) - lengths)[ranking]
    lengths = lengths[ranking]
    rings = np.concatenate([[0], np.cumsum(lengths + 1)])
    within = np.arange(rings[-1]) - np.repeat(rings[:-1], lengths + 1)
    within[rings[1:] - 1] = 0
    chain = order[np.repeat(starts, lengths + 1) + within]
    return np.stack([x[chain], y[chain]], axis=1), rings, part[leaders[ranking]]


def _column_rank(
    x: NDArray[np.int64], y: NDArray[np.int64], code: NDArray[np.uint8], labels: NDArray[np.int32]
) -> NDArray[np.int64]:
    """Order of the corners down the columns.

    A corner where two pixels touch diagonally appears twice: first with the edge to its west, then with the edge to
    its east. Which of the two goes with the edge to the north decides how the outlines pass each other.
    """
    below = np.zeros(len(x), np.int64)
    diagonal = np.flatnonzero(_NODES[code] == 2)[::2]
    falling = code[diagonal] == _NW | _SE
    dx, dy = x[diagonal], y[diagonal]
    upper = labels[dy - 1, np.where(falling, dx - 1, dx)]
    lower = labels[dy, np.where(falling, dx, dx - 1)]
    west_with_north = falling != (upper == lower)
    below[diagonal] = ~west_with_north
    below[diagonal + 1] = west_with_north
    return np.argsort((x * (int(y.max()) + 1) + y) * 2 + below, kind="stable")


def _next_corner(code: NDArray[np.uint8], down: NDArray[np.int64]) -> NDArray[np.int64]:
    """The corner that follows each corner, walking with the object on the right hand."""
    following = np.empty(len(code), np.int64)
    left = np.arange(0, len(code), 2)
    east = code[left] & _SE != 0
    following[np.where(east, left, left + 1)] = np.where(east, left + 1, left)
    top, bottom = down[::2], down[1::2]
    south = code[top] & _SW != 0
    following[np.where(south, top, bottom)] = np.where(south, bottom, top)
    return following


def _cycles(following: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Take a permutation apart into its cycles.

    Returns:
        All items, cycle after cycle, each in order from its smallest item; the smallest item of each cycle; lengths.
    """
    count = len(following)

    def graph(targets: NDArray[np.int64]) -> csr_matrix:
        return csr_matrix((np.ones(count, np.int8), targets, np.arange(count + 1)), shape=(count, count))

    cycles, label = connected_components(graph(following), directed=True, connection="weak")
    leaders = np.empty(cycles, np.int64)
    leaders[label[::-1]] = np.arange(count)[::-1]
    # Each cycle's last item leads on to the next cycle: one path through all items, walked in compiled code.
    before = np.empty(count, np.int64)
    before[following] = np.arange(count)
    path = following.copy()
    path[before[leaders[:-1]]] = leaders[1:]
    order = depth_first_order(graph(path), leaders[0], directed=True, return_predecessors=False)
    return order.astype(np.int64), leaders, np.bincount(label, minlength=cycles)
