"""Outlines with right angles, for objects that people built.

A polygon is turned until the long side of its smallest enclosing rectangle is level. Its outline is freed of pixel
steps, each edge is called level or upright, edges of one kind in a row become one edge at their mean position (weighted
by length), and the corners are where neighbouring edges now meet. The result is kept only where it is valid and
overlaps the exact outline with an IoU of at least `MIN_IOU`: a square drawn for a circle reaches 0.84, so round objects
stay round. Objects are treated one by one: walls that two objects share may part.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import shapely
from shapely.affinity import rotate

if TYPE_CHECKING:
    from numpy.typing import NDArray

MIN_IOU = 0.88
"""Overlap with the exact outline below which right angles are not drawn."""
STEP_TOLERANCE = 1.0
"""Pixels: steps of a slanting pixel edge leave their line by at most 0.71."""


def regularize_polygon(geometry: shapely.Polygon | shapely.MultiPolygon) -> shapely.Polygon | shapely.MultiPolygon:
    """Draw an outline with right angles.

    Args:
        geometry: valid, in pixels.

    Returns:
        The regular outline, or ``geometry`` itself where that would change the object's shape too much.
    """
    if geometry.is_empty:
        return geometry
    parts = [_right_angled(part) for part in shapely.get_parts(geometry)]
    regular = parts[0] if geometry.geom_type == "Polygon" else shapely.MultiPolygon(parts)
    if not regular.is_valid:
        return geometry
    shared = shapely.intersection(geometry, regular).area
    return regular if shared >= MIN_IOU * (geometry.area + regular.area - shared) else geometry


def orient(geometries: NDArray[np.object_]) -> NDArray[np.object_]:
    """Run outer rings counter-clockwise and holes clockwise (the right-hand rule)."""
    return np.asarray(shapely.orient_polygons(geometries, exterior_cw=False), object)


def _right_angled(polygon: shapely.Polygon) -> shapely.Polygon:
    """One polygon with right angles, or itself where its outline has fewer than four sides of changing kind."""
    angle = _main_direction(polygon)
    level = rotate(shapely.simplify(polygon, STEP_TOLERANCE), -angle, origin=(0, 0), use_radians=True)
    rings = [_square_ring(shapely.get_coordinates(ring)) for ring in (level.exterior, *level.interiors)]
    if any(ring is None for ring in rings):
        return polygon
    squared = shapely.Polygon(rings[0], rings[1:])
    return rotate(squared, angle, origin=(0, 0), use_radians=True)


def _main_direction(polygon: shapely.Polygon) -> float:
    """Angle in radians of the long side of the smallest enclosing rectangle."""
    corners = shapely.get_coordinates(shapely.oriented_envelope(polygon))
    sides = np.diff(corners, axis=0)
    dx, dy = sides[np.argmax(np.hypot(sides[:, 0], sides[:, 1]))]
    return math.atan2(dy, dx)


def _square_ring(ring: NDArray[np.float64]) -> NDArray[np.float64] | None:
    """Corners (C, 2) of a closed ring (M, 2) made of level and upright sides; None where that leaves no area."""
    steps = np.diff(ring, axis=0)
    middles = (ring[:-1] + ring[1:]) / 2
    upright = np.abs(steps[:, 1]) > np.abs(steps[:, 0])
    turns = np.flatnonzero(upright != np.roll(upright, 1))
    if len(turns) < 4:
        return None
    # Start at a change of kind, so that no side is cut by the ring's own start.
    steps, middles = np.roll(steps, -turns[0], axis=0), np.roll(middles, -turns[0], axis=0)
    upright = np.roll(upright, -turns[0])
    starts = turns - turns[0]
    length = np.hypot(steps[:, 0], steps[:, 1])
    across = np.where(upright, middles[:, 0], middles[:, 1])
    position = np.add.reduceat(across * length, starts) / np.add.reduceat(length, starts)
    following = np.roll(position, -1)
    first_upright = upright[starts]
    corners: NDArray[np.float64] = np.where(
        first_upright[:, None], np.stack([position, following], 1), np.stack([following, position], 1)
    )
    return corners
