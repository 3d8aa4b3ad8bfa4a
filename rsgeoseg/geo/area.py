"""Which part of a scene counts: an area of interest from any vector file, and a bounding box."""

from __future__ import annotations

import logging
import math
import os
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import pyogrio
import pyproj
import shapely
from affine import Affine
from pyogrio.errors import DataLayerError, DataSourceError
from pyproj.exceptions import ProjError
from rasterio.features import rasterize
from shapely.geometry.base import BaseGeometry

from rsgeoseg.errors import SceneError, UsageError
from rsgeoseg.geo.opening import plain_path
from rsgeoseg.geo.windows import Box

if TYPE_CHECKING:
    from collections.abc import Sequence

    from geopandas import GeoDataFrame, GeoSeries
    from numpy.typing import NDArray

    from rsgeoseg.geo.grid import GeoGrid

logger = logging.getLogger(__name__)

MAX_FEATURES = 1_000_000
_EDGE_PIECES = 64
"""An edge is cut into pieces of 1/64 of the area's size before a change of CRS, because straight lines bend."""


class PixelArea:
    """A geometry in pixel coordinates of a grid, asked box by box from any thread. A pixel is inside if its centre is.

    Args:
        geometry: polygons in pixel coordinates.
    """

    def __init__(self, geometry: BaseGeometry) -> None:
        self.geometry = geometry
        self._parts = shapely.get_parts(geometry)
        self._tree = shapely.STRtree(self._parts)
        self._lock = threading.Lock()  # prepared geometries build their index on first use
        shapely.prepare(self._parts)

    def valid(self, box: Box, shape: tuple[int, int] | None = None) -> NDArray[np.bool_] | None:
        """Which pixels of a box are inside.

        Args:
            box: pixels of the grid.
            shape: (rows, columns) to cut the box into; None = one per pixel.

        Returns:
            Bool of that shape, or None where all are inside.
        """
        rows, cols = shape or (box.height, box.width)
        outline = shapely.box(box.x0, box.y0, box.x1, box.y1)
        with self._lock:
            near = self._tree.query(outline, predicate="intersects")
            parts = self._parts[near]
            if bool(shapely.contains(parts, outline).any()):
                return None
        if len(parts) == 0:
            return np.zeros((rows, cols), np.bool_)
        affine = _pixel_affine(box, rows, cols)
        # Clipped with a rim, so that no centre lies on the clipping line.
        pieces = shapely.clip_by_rect(parts, box.x0 - 1, box.y0 - 1, box.x1 + 1, box.y1 + 1)
        pieces = [piece for piece in pieces if not shapely.is_empty(piece)]
        if not pieces:
            return np.zeros((rows, cols), np.bool_)
        inside: NDArray[np.bool_] = rasterize(pieces, (rows, cols), transform=affine, dtype=np.uint8).astype(np.bool_)
        return None if inside.all() else inside


def _pixel_affine(box: Box, rows: int, cols: int) -> Affine:

    return Affine.translation(box.x0, box.y0) * Affine.scale(box.width / cols, box.height / rows)


def load_area(aoi: str | os.PathLike[str] | GeoDataFrame | GeoSeries | BaseGeometry, grid: GeoGrid) -> BaseGeometry:
    """Return an area of interest as valid polygons in the CRS of a grid, cut to about the grid if it comes in another.

    Args:
        aoi: a vector file, a frame or series of geopandas, or a geometry in the grid's CRS.
        grid: the scene's.

    Raises:
        SceneError: the file cannot be read, holds no polygon, or cannot be brought into the scene's CRS.
    """
    if isinstance(aoi, BaseGeometry):
        return _polygons(aoi, "the area of interest")
    name = "the area of interest"
    if isinstance(aoi, str | os.PathLike):
        name, aoi = os.fspath(aoi), _read_vector(aoi)
    shapes, crs = aoi.geometry, aoi.crs
    if crs is None:
        logger.warning("%s has no CRS: taken to be in the scene's", name)
    elif grid.crs is None:
        msg = f"{name} is in {crs.name}, but the scene has no CRS to place it in; give the area in pixel coordinates"
        raise SceneError(msg)
    elif crs != grid.crs.to_wkt():
        shapes = _near(shapes, grid)
        low_x, low_y, high_x, high_y = shapes.total_bounds
        piece = max(high_x - low_x, high_y - low_y) / _EDGE_PIECES
        shapes = (shapes.segmentize(piece) if piece > 0 else shapes).to_crs(grid.crs.to_wkt())
    geometries = shapes[~(shapes.isna() | shapes.is_empty)].to_numpy()
    if not np.isfinite(shapely.get_coordinates(geometries)).all():
        msg = f"{name} reaches where the scene's CRS is not defined; cut it to the scene"
        raise SceneError(msg)
    return _polygons(shapely.union_all(shapely.make_valid(geometries)), name)


def crop(
    grid: GeoGrid, area: BaseGeometry | None, bbox: Sequence[float] | None, name: str
) -> tuple[Box, PixelArea | None]:
    """Return the pixels of a grid that an area and a bounding box leave.

    Args:
        grid: the whole scene's.
        area: polygons in the grid's CRS, or None.
        bbox: X0 Y0 X1 Y1 in the grid's CRS, or None.
        name: the scene's, for messages.

    Returns:
        The smallest box of pixels, and the polygons inside it in pixels *of that box* (None: the whole box counts).

    Raises:
        SceneError: nothing of the scene is left; the message gives both extents.
        UsageError: a bounding box that is none.
    """
    whole = Box(0, 0, grid.width, grid.height)
    shapes: list[BaseGeometry] = []
    box = whole
    if bbox is not None:
        outline = _bbox_polygon(bbox)
        pixels = _to_pixels(grid, outline)
        inside = _centres_inside(pixels.bounds).intersection(whole)
        if (
            inside is None
            or shapely.area(shapely.intersection(pixels, shapely.box(0, 0, grid.width, grid.height))) == 0
        ):
            raise SceneError(_outside("bounding box", outline, grid, name))
        if grid.is_axis_aligned:
            box = inside
        else:
            shapes.append(pixels)
    if area is not None:
        shapes.append(_to_pixels(grid, area))
    if not shapes:
        return box, None
    left = shapely.box(box.x0, box.y0, box.x1, box.y1)
    for shape in shapes:
        left = shapely.intersection(left, shape)
    if shapely.area(left) == 0:
        raise SceneError(_outside("area of interest", area if area is not None else outline, grid, name))
    kept = _covering(left.bounds).intersection(whole)
    assert kept is not None  # it holds some of the scene
    moved = shapely.transform(_polygons(left, "the area of interest"), lambda points: points - (kept.x0, kept.y0))
    return kept, PixelArea(moved)


def _near(shapes: GeoSeries, grid: GeoGrid) -> GeoSeries:
    """Cut shapes to about the scene before a change of CRS: far away, a projection folds or is not defined.

    Shapes that are nowhere near are returned as they are.
    """
    try:
        to_shapes = pyproj.Transformer.from_crs(grid.crs.to_wkt(), shapes.crs, always_xy=True)  # type: ignore[union-attr]
        x0, y0, x1, y1 = to_shapes.transform_bounds(*grid.bounds)
    except ProjError:
        return shapes
    if not (math.isfinite(x0 + y0 + x1 + y1) and x0 < x1 and y0 < y1):  # x0 > x1: across the antimeridian
        return shapes
    margin = max(x1 - x0, y1 - y0)
    near = shapes.make_valid().clip_by_rect(x0 - margin, y0 - margin, x1 + margin, y1 + margin)
    near = near[~near.is_empty]
    return near if len(near) else shapes


def _read_vector(path: str | os.PathLike[str]) -> GeoDataFrame:
    file = plain_path(path, "area of interest")
    try:
        count = int(pyogrio.read_info(file)["features"])
        if count > MAX_FEATURES:
            msg = f"area of interest {path} has {count} features, more than {MAX_FEATURES}: dissolve it first"
            raise SceneError(msg)
        return pyogrio.read_dataframe(file, columns=[])
    except (DataSourceError, DataLayerError) as error:
        msg = f"area of interest {path} cannot be read as a vector file: {error}"
        raise SceneError(msg) from error


def _polygons(shape: BaseGeometry, name: str) -> BaseGeometry:
    parts: Any = shapely.get_parts(shapely.get_parts(shapely.make_valid(shape)))
    kept = [part for part in parts if shapely.get_type_id(part) == shapely.GeometryType.POLYGON and part.area > 0]
    if not kept:
        msg = f"{name} holds no polygon: give an area"
        raise SceneError(msg)
    return shapely.union_all(kept)


def _bbox_polygon(bbox: Sequence[float]) -> BaseGeometry:
    if len(bbox) != 4 or not all(math.isfinite(v) for v in bbox) or bbox[0] >= bbox[2] or bbox[1] >= bbox[3]:
        msg = f"bbox {tuple(bbox)} is not a box: give X0,Y0,X1,Y1 with X0 < X1 and Y0 < Y1 in the scene's CRS"
        raise UsageError(msg)
    return shapely.box(*bbox)


def _to_pixels(grid: GeoGrid, shape: BaseGeometry) -> BaseGeometry:
    pixels = shapely.transform(shape, grid.pixels)
    return pixels if shapely.is_valid(pixels) else shapely.make_valid(pixels)


def _centres_inside(bounds: tuple[float, float, float, float]) -> Box:
    """Pixels whose centre is inside; at least the one that holds the middle."""
    x0, y0, x1, y1 = bounds
    left, top = math.ceil(round(x0 - 0.5, 6)), math.ceil(round(y0 - 0.5, 6))
    right, bottom = math.ceil(round(x1 - 0.5, 6)), math.ceil(round(y1 - 0.5, 6))
    if left >= right:
        left, right = math.floor((x0 + x1) / 2), math.floor((x0 + x1) / 2) + 1
    if top >= bottom:
        top, bottom = math.floor((y0 + y1) / 2), math.floor((y0 + y1) / 2) + 1
    return Box(left, top, right, bottom)


def _covering(bounds: tuple[float, float, float, float]) -> Box:
    """Pixels that the bounds touch; a hair's breadth over an edge does not count."""
    x0, y0, x1, y1 = bounds
    left, top = math.floor(round(x0, 6)), math.floor(round(y0, 6))
    return Box(left, top, max(math.ceil(round(x1, 6)), left + 1), max(math.ceil(round(y1, 6)), top + 1))


def _outside(what: str, shape: BaseGeometry, grid: GeoGrid, name: str) -> str:
    crs = grid.crs.to_string() if grid.crs is not None else "pixel coordinates"
    if len(crs) > 40:
        crs = "the scene's CRS"
    ours = " ".join(f"{value:.10g}" for value in grid.bounds)
    theirs = " ".join(f"{value:.10g}" for value in shape.bounds)
    return f"the {what} ({theirs}) lies outside {name} ({ours}), both as X0 Y0 X1 Y1 in {crs}; check its CRS"
