"""Objects to a GeoDataFrame with a schema that never changes, and their size on the ground."""

from __future__ import annotations

import math
import re
import zlib
from typing import TYPE_CHECKING, Literal

import geopandas as gpd
import numpy as np
import pandas as pd
import pyproj
import shapely
from pyproj.exceptions import CRSError, ProjError

from rsgeoseg.errors import OutputError, UsageError
from rsgeoseg.geo.polygonize import polygonize
from rsgeoseg.geo.regularize import orient

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import rasterio.crs
    from numpy.typing import NDArray

    from rsgeoseg.geo.grid import GeoGrid
    from rsgeoseg.geo.stitch import StitchedObject

SCHEMA: Mapping[str, str] = {
    "id": "int64",
    "class_id": "int32",
    "class_name": "str",
    "score": "float32",
    "area_m2": "float64",
    "perimeter_m": "float64",
    "n_chips": "int16",
    "seam": "bool",
    "truncated": "bool",
    "model": "str",
}
"""Columns in order and their dtypes; the geometry column follows them. Referring runs add ``text`` before it.

- ``id``: 1, 2, ... in the order of the objects' boxes from top to bottom
- ``class_id``: index into the model's classes, from 0
- ``area_m2`` and ``perimeter_m``: of the geometry as written; holes are taken off the area and their outline is added
  to the perimeter; NaN where the scene has no CRS
- ``n_chips``: chips that saw the object
- ``seam``: joined across chips
- ``truncated``: cut by the edge of the scene or of the area of interest
"""

Area = tuple[float, Literal["m2", "px"]]

_AREA = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*(m2|m²|px)\s*", re.IGNORECASE)
_MOST_CHIPS = int(np.iinfo(np.int16).max)
_DISTORTION = 0.01
"""Linear scale error of a projection from which sizes are measured on the ellipsoid instead of in its plane."""


def parse_area(text: str) -> Area:
    """Read a smallest area such as ``20m2`` or ``50px``.

    Raises:
        UsageError: anything else; the unit is required.
    """
    match = _AREA.fullmatch(text)
    if match is None:
        msg = f"an area needs a number and a unit, such as 20m2 or 50px, got {text!r}"
        raise UsageError(msg)
    return float(match[1]), "px" if match[2].lower() == "px" else "m2"


def objects_to_frame(
    objects: Sequence[StitchedObject],
    *,
    grid: GeoGrid,
    classes: Sequence[str],
    model: str,
    min_area: Area | None = None,
    simplify: float = 0.0,
    regularize: bool = False,
    dst_crs: str | int | pyproj.CRS | None = None,
    text: str | None = None,
) -> gpd.GeoDataFrame:
    """Turn objects into a GeoDataFrame with the columns of `SCHEMA`, also where there are none.

    Ids depend on the objects alone, not on the order in which they come.

    Args:
        objects: in pixels of ``grid``; ``label`` indexes ``classes``.
        grid: where the pixels lie.
        classes: class names, as in ``ModelSpec.classes``.
        model: name of the model, for the ``model`` column.
        min_area: smallest area to keep, in pixels of the mask or in square metres on the ground.
        simplify: tolerance in pixels, see `polygonize`.
        regularize: right angles, see `polygonize`.
        dst_crs: CRS of the result; None keeps the scene's. Sizes are measured before the change.
        text: referring expression; adds a ``text`` column.

    Raises:
        UsageError: ``min_area`` in m2 or ``dst_crs`` for a scene without a CRS, or an unknown ``dst_crs``.
        OutputError: the objects cannot be expressed in ``dst_crs``.
    """
    crs = frame_crs(grid.crs)
    target = None if dst_crs is None else _target_crs(dst_crs, crs)
    if min_area is not None and min_area[1] == "m2" and crs is None:
        msg = f"a smallest area of {min_area[0]:g} m2 needs a scene with a CRS: give it in pixels, e.g. 50px"
        raise UsageError(msg)
    least = min_area[0] if min_area is not None and min_area[1] == "px" else 1
    kept = sorted((item for item in objects if np.count_nonzero(item.mask) >= max(least, 1)), key=sort_key)
    polygons = polygonize(kept, grid, simplify=simplify, regularize=regularize)
    area, perimeter = measure(polygons, grid)
    if min_area is not None and min_area[1] == "m2":
        large = np.flatnonzero(area >= min_area[0])
        kept, polygons = [kept[i] for i in large], polygons[large]
        area, perimeter = area[large], perimeter[large]
    frame = gpd.GeoDataFrame(
        _columns(kept, classes, model, area, perimeter, text), geometry=gpd.GeoSeries(polygons, crs=crs)
    )
    return frame if target is None or target == crs else _reprojected(frame, target)


def frame_crs(crs: rasterio.crs.CRS | None) -> pyproj.CRS | None:
    """Express a raster's CRS as a pyproj CRS: the EPSG entry where it is exactly that, its own definition otherwise."""
    if crs is None:
        return None
    found = pyproj.CRS.from_wkt(crs.to_wkt())
    code = found.to_epsg(min_confidence=100)
    if code is not None:
        entry = pyproj.CRS.from_epsg(code)
        if entry.equals(found, ignore_axis_order=True):
            return entry
    return found


def measure(polygons: NDArray[np.object_], grid: GeoGrid) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Areas (m2) and perimeters (m) of polygons in the world coordinates of a grid, both (N,).

    On the ellipsoid where the CRS is geographic, or where its projection is off by more than 1 % in the middle of the
    grid (Web Mercator); otherwise in the plane, times the CRS's unit. NaN where there is no CRS or its unit is unknown.
    """
    size = grid.gsd
    if grid.crs is None or size is None:
        return np.full(len(polygons), np.nan), np.full(len(polygons), np.nan)
    if not grid.is_geographic:
        unit = float(grid.crs.linear_units_factor[1])
        planar_size = math.sqrt(abs(grid.affine.determinant)) * unit
        if abs(size / planar_size - 1) <= _DISTORTION:
            return shapely.area(polygons) * unit**2, shapely.length(polygons) * unit
    return _geodesic(polygons, frame_crs(grid.crs))


def _geodesic(polygons: NDArray[np.object_], crs: pyproj.CRS | None) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Areas and perimeters on the ellipsoid of a CRS."""
    geod = (crs.get_geod() if crs is not None else None) or pyproj.Geod(ellps="WGS84")
    if crs is not None and crs.is_geographic:
        factor = math.degrees(crs.axis_info[0].unit_conversion_factor) if crs.axis_info else 1.0
        if not math.isclose(factor, 1.0):  # grads
            polygons = shapely.transform(polygons, lambda xy: xy * factor)
    elif crs is not None and crs.geodetic_crs is not None:
        to_degrees = pyproj.Transformer.from_crs(crs, crs.geodetic_crs, always_xy=True)
        polygons = shapely.transform(polygons, lambda xy: np.stack(to_degrees.transform(xy[:, 0], xy[:, 1]), 1))
    parts, part_owner = shapely.get_parts(polygons, return_index=True)
    rings, part = shapely.get_rings(parts, return_index=True)
    owner = part_owner[part]
    coordinates, offsets = shapely.get_coordinates(rings), np.cumsum(shapely.get_num_coordinates(rings))[:-1]
    # Holes run the other way round, so their areas come with the other sign.
    sizes = [
        geod.polygon_area_perimeter(ring[:, 0], ring[:, 1]) for ring in np.split(coordinates, offsets)[: len(rings)]
    ]
    areas, lengths = np.array(sizes, np.float64).reshape(-1, 2).T
    total_area, total_length = np.zeros(len(polygons)), np.zeros(len(polygons))
    np.add.at(total_area, owner, areas)
    np.add.at(total_length, owner, lengths)
    return np.abs(total_area), total_length


def sort_key(item: StitchedObject) -> tuple[float, float, float, float, float, float, float]:
    """Give the place of an object in a table: its box from top to bottom, then class, score and a hash of its mask.

    Equal for no two objects but twins, whose order cannot matter.
    """
    box = item.box
    return (box.y0, box.x0, box.y1, box.x1, item.label, -item.score, zlib.crc32(item.mask.tobytes()))


def _columns(
    objects: Sequence[StitchedObject],
    classes: Sequence[str],
    model: str,
    area: NDArray[np.float64],
    perimeter: NDArray[np.float64],
    text: str | None,
) -> pd.DataFrame:
    """All columns but the geometry."""
    labels = [int(item.label) for item in objects]
    data = {
        "id": np.arange(1, len(objects) + 1),
        "class_id": labels,
        "class_name": [classes[label] for label in labels],
        "score": [item.score for item in objects],
        "area_m2": area,
        "perimeter_m": perimeter,
        "n_chips": [min(item.n_chips, _MOST_CHIPS) for item in objects],
        "seam": [item.seam for item in objects],
        "truncated": [item.truncated for item in objects],
        "model": [model] * len(objects),
    }
    columns = {name: pd.Series(data[name], dtype=dtype) for name, dtype in SCHEMA.items()}
    if text is not None:
        columns["text"] = pd.Series([text] * len(objects), dtype="str")
    return pd.DataFrame(columns)


def _target_crs(dst_crs: str | int | pyproj.CRS, source: pyproj.CRS | None) -> pyproj.CRS:
    """Parse the CRS a user asks for."""
    if source is None:
        msg = f"cannot reproject to {dst_crs}: the scene has no CRS; leave out --dst-crs or give the scene one"
        raise UsageError(msg)
    try:
        return pyproj.CRS.from_user_input(dst_crs)
    except CRSError as error:
        msg = f"unknown CRS {str(dst_crs)[:80]!r}; give one such as EPSG:4326"
        raise UsageError(msg) from error


def _reprojected(frame: gpd.GeoDataFrame, target: pyproj.CRS) -> gpd.GeoDataFrame:
    """Change the CRS, keeping outer rings counter-clockwise."""
    try:
        moved = frame.to_crs(target)
    except ProjError as error:
        msg = f"cannot express the objects in {target.name}: {error}; choose a CRS that covers the scene"
        raise OutputError(msg) from error
    if not np.isfinite(moved.total_bounds).all() and len(moved):
        msg = f"cannot express the objects in {target.name}: they lie outside it; choose a CRS that covers the scene"
        raise OutputError(msg)
    return moved.set_geometry(gpd.GeoSeries(orient(moved.geometry.to_numpy()), index=moved.index, crs=target))
