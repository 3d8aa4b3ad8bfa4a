"""A user's labelled polygons: read from any vector file, checked, repaired, and brought into the pixels of a scene."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import geopandas as gpd
import numpy as np
import pandas as pd
import pyogrio
import pyproj
import shapely
from pyogrio.errors import DataLayerError, DataSourceError
from pyproj.exceptions import ProjError

from rsgeoseg.errors import SceneError, UsageError
from rsgeoseg.geo.opening import plain_path
from rsgeoseg.geo.rasterize import to_pixels

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from rsgeoseg.geo.grid import GeoGrid

logger = logging.getLogger(__name__)

DUPLICATE_IOU = 0.9
"""Two polygons of which more than this is common are taken for one object drawn twice."""
ONE_CLASS = "object"
"""Name of the class where the polygons have none."""
_POLYGON_TYPES = ("Polygon", "MultiPolygon", "GeometryCollection")


@dataclass(frozen=True, slots=True, kw_only=True)
class Polygons:
    """Labelled polygons, all of them usable."""

    geometry: NDArray[np.object_]
    """(N,) valid, non-empty Polygons and MultiPolygons without heights, in ``crs``."""
    labels: NDArray[np.int64]
    """(N,) indices into ``classes``."""
    classes: tuple[str, ...]
    """Class names."""
    crs: pyproj.CRS | None
    """None: the coordinates are those of a scene without CRS."""
    name: str
    """Of the file, for messages."""


def load_polygons(
    source: str | os.PathLike[str] | gpd.GeoDataFrame,
    *,
    class_field: str | None = None,
    classes: Sequence[str] | None = None,
    layer: str | None = None,
) -> Polygons:
    """Read polygons and their classes.

    Rows without a geometry are left out, invalid geometries are repaired (`shapely.make_valid`), and both are counted
    in a warning; so are polygons drawn twice, which are kept.

    Args:
        source: GeoPackage, GeoJSON, Shapefile, FlatGeobuf, GeoParquet or anything else GDAL reads; or a frame.
        class_field: column with the class; None = all polygons are of one class.
        classes: names in the wanted order; polygons of others are left out with a warning. None = all names that
            occur, sorted (numbers by size).
        layer: of a file with several layers.

    Raises:
        UsageError: the file cannot be read, has several layers and none is chosen, holds no polygon, points or lines;
            the column does not exist or is empty in some rows; no polygon is of the wanted classes.
        SceneError: the path is none.
    """
    frame, name = (source, "the polygons") if isinstance(source, gpd.GeoDataFrame) else _read(source, layer)
    frame = frame.reset_index(drop=True)
    frame = _without_empty(frame, name)
    geometry = _repaired(frame, name)
    usable = np.array([shape is not None for shape in geometry], np.bool_)
    names, order = _class_names(frame[usable], class_field, name)
    wanted = tuple(str(value) for value in classes) if classes is not None else order or (ONE_CLASS,)
    if class_field is None and len(wanted) != 1:
        msg = f"{len(wanted)} classes but no class field: give the column of {name} that holds the class"
        raise UsageError(msg)
    if class_field is None:
        names = [wanted[0]] * int(usable.sum())
    index = {value: i for i, value in enumerate(wanted)}
    labels = np.array([index.get(value, -1) for value in names], np.int64)
    if (labels < 0).all():
        msg = f"{name}: no polygon is of class {', '.join(wanted)}; the column {class_field} has {', '.join(order)}"
        raise UsageError(msg)
    if (labels < 0).any():
        logger.warning("%s: %d polygons of other classes are left out", name, int((labels < 0).sum()))
    kept = geometry[usable][labels >= 0]
    twice = count_duplicates(kept)
    if twice:
        logger.warning(
            "%s: %d pairs of polygons cover the same place (IoU above %.1f): remove one of each if it was drawn twice",
            name,
            twice,
            DUPLICATE_IOU,
        )
    return Polygons(geometry=kept, labels=labels[labels >= 0], classes=wanted, crs=frame.crs, name=name)


def in_pixels(polygons: Polygons, grid: GeoGrid, scene: str) -> tuple[NDArray[np.int64], NDArray[np.object_]]:
    """Give the polygons that lie in a scene, in its pixels.

    Args:
        polygons: with a CRS exactly where the scene has one.
        grid: the scene's.
        scene: its name, for messages.

    Returns:
        (M,) indices of the polygons of which some area is in the scene, ascending, and (M,) valid Polygons and
        MultiPolygons in pixels, whole.

    Raises:
        UsageError: only one of scene and polygons has a CRS.
    """
    if (polygons.crs is None) != (grid.crs is None):
        if polygons.crs is None:
            msg = f"{polygons.name} has no CRS, but {scene} has: set the CRS it was drawn in (QGIS: Assign Projection)"
        else:
            msg = f"{scene} has no CRS to place {polygons.name} in: georeference it, or give polygons in its pixels"
        raise UsageError(msg)
    near = _near(polygons, grid)
    frame = gpd.GeoDataFrame(geometry=gpd.GeoSeries(polygons.geometry[near], crs=polygons.crs))
    moved = to_pixels(frame, grid)
    inside = np.isfinite(shapely.bounds(moved)).all(axis=1)
    near, moved = near[inside], moved[inside]
    wrong = np.flatnonzero(~shapely.is_valid(moved))  # a change of CRS can fold thin corners
    moved[wrong] = [polygonal(shape) or shapely.Polygon() for shape in shapely.make_valid(moved[wrong])]
    scene_box = shapely.box(0, 0, grid.width, grid.height)
    touching = shapely.area(shapely.intersection(moved, scene_box)) > 0
    return near[touching], moved[touching]


def polygonal(shape: Any) -> Any:
    """Give the area of any geometry as a Polygon or MultiPolygon; None where it has none."""
    parts = shapely.get_parts(shapely.get_parts(shape))
    kept = [part for part in parts if part.geom_type == "Polygon" and part.area > 0]
    if not kept:
        return None
    return kept[0] if len(kept) == 1 else shapely.MultiPolygon(kept)


def count_duplicates(geometry: NDArray[np.object_]) -> int:
    """Count pairs of polygons whose IoU exceeds `DUPLICATE_IOU`."""
    if len(geometry) < 2:
        return 0
    one, other = shapely.STRtree(geometry).query(geometry, predicate="intersects")
    one, other = one[one < other], other[one < other]
    areas = shapely.area(geometry)
    alike = np.minimum(areas[one], areas[other]) > DUPLICATE_IOU * np.maximum(areas[one], areas[other])
    one, other = one[alike], other[alike]
    common = shapely.area(shapely.intersection(geometry[one], geometry[other]))
    return int((common > DUPLICATE_IOU * (areas[one] + areas[other] - common)).sum())


def _read(path: str | os.PathLike[str], layer: str | None) -> tuple[gpd.GeoDataFrame, str]:
    file = plain_path(path, "polygon file")
    try:
        if file.suffix.lower() in {".parquet", ".geoparquet"}:
            return gpd.read_parquet(file), file.name
        layers = [str(entry[0]) for entry in pyogrio.list_layers(file)]
        if layer is None and len(layers) > 1:
            msg = f"{file.name} has the layers {', '.join(layers)}: say which one holds the polygons"
            raise UsageError(msg)
        if layer is not None and layer not in layers:
            msg = f"{file.name} has no layer {layer}; its layers are {', '.join(layers)}"
            raise UsageError(msg)
        frame = pyogrio.read_dataframe(file, layer=layer)
    except (DataSourceError, DataLayerError, OSError, ValueError) as error:
        if isinstance(error, UsageError):
            raise
        msg = f"{path}: cannot be read as a vector file ({' '.join(str(error).split())[:200]})"
        raise UsageError(msg) from error
    if not isinstance(frame, gpd.GeoDataFrame):
        msg = f"{file.name} is a table without geometries: give a file with polygons"
        raise UsageError(msg)
    if frame.crs == "EPSG:4326" and len(frame) and not _are_degrees(frame.total_bounds):
        frame = frame.set_crs(None, allow_override=True)  # GDAL says so of every GeoJSON that names no CRS
    return frame, file.name


def _are_degrees(bounds: NDArray[np.float64]) -> bool:
    return bool(bounds[0] >= -180 and bounds[1] >= -90 and bounds[2] <= 180 and bounds[3] <= 90)


def _without_empty(frame: gpd.GeoDataFrame, name: str) -> gpd.GeoDataFrame:
    """Leave out rows without geometry; refuse points and lines."""
    empty = (frame.geometry.isna() | frame.geometry.is_empty).to_numpy()
    if empty.any():
        logger.warning("%s: %d rows without a geometry are left out", name, int(empty.sum()))
    frame = frame[~empty]
    if not len(frame):
        msg = f"{name} holds no polygon: draw some, or give another layer"
        raise UsageError(msg)
    kinds = frame.geometry.geom_type
    others = kinds[~kinds.isin(_POLYGON_TYPES)].value_counts()
    if len(others):
        found = ", ".join(f"{count} {kind}" for kind, count in others.items())
        msg = f"{name} holds {found}: outlines of objects are needed; remove them, or buffer them to polygons first"
        raise UsageError(msg)
    return frame


def _repaired(frame: gpd.GeoDataFrame, name: str) -> NDArray[np.object_]:
    """(N,) valid polygons without heights; None where no area is left."""
    shapes: NDArray[np.object_] = shapely.force_2d(frame.geometry.to_numpy())
    wrong = np.flatnonzero(~shapely.is_valid(shapes) | (frame.geometry.geom_type == "GeometryCollection").to_numpy())
    if len(wrong):
        shapes = shapes.copy()
        shapes[wrong] = [polygonal(shape) for shape in shapely.make_valid(shapes[wrong])]
        logger.warning("%s: %d invalid polygons were repaired; check them in QGIS", name, len(wrong))
    lost = sum(shape is None for shape in shapes)
    if lost == len(shapes):
        msg = f"{name}: no polygon has an area; draw the outlines again"
        raise UsageError(msg)
    if lost:
        logger.warning("%s: %d polygons without an area are left out", name, lost)
    return shapes


def _class_names(frame: gpd.GeoDataFrame, field: str | None, name: str) -> tuple[list[str], tuple[str, ...]]:
    """Class name of every row, and all names in order."""
    if field is None:
        return [], ()
    columns = [str(column) for column in frame.columns if column != frame.geometry.name]
    if field not in columns:
        msg = f"{name} has no column {field}; its columns are {', '.join(columns) or 'none'}"
        raise UsageError(msg)
    values = frame[field]
    missing = values.isna() | (values.astype(str).str.strip() == "")
    if missing.any():
        msg = f"{name}: {int(missing.sum())} of {len(frame)} polygons have no {field}; fill the column or remove them"
        raise UsageError(msg)
    numeric = pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values)
    ordered = sorted(values.unique()) if numeric else sorted(values.astype(str).str.strip().unique())
    return [_word(value) for value in values], tuple(_word(value) for value in ordered)


def _word(value: Any) -> str:
    """Write a class as text; a whole number without its decimals."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value).strip()


def _near(polygons: Polygons, grid: GeoGrid) -> NDArray[np.int64]:
    """Indices of polygons that may lie in a scene: far away, a projection folds or is not defined."""
    everything = np.arange(len(polygons.geometry))
    x0, y0, x1, y1 = grid.bounds
    if polygons.crs is not None and grid.crs is not None:
        try:
            there = pyproj.Transformer.from_crs(grid.crs.to_wkt(), polygons.crs, always_xy=True)
            x0, y0, x1, y1 = there.transform_bounds(x0, y0, x1, y1)
        except ProjError:
            return everything
    if not (math.isfinite(x0 + y0 + x1 + y1) and x0 <= x1 and y0 <= y1):  # x0 > x1: across the antimeridian
        return everything
    margin = max(x1 - x0, y1 - y0)
    bounds = shapely.bounds(polygons.geometry)
    near: NDArray[np.int64] = np.flatnonzero(
        (bounds[:, 0] <= x1 + margin)
        & (bounds[:, 2] >= x0 - margin)
        & (bounds[:, 1] <= y1 + margin)
        & (bounds[:, 3] >= y0 - margin)
    )
    return near


def refuse_all_outside(polygons: Polygons, grid: GeoGrid, scene: str) -> SceneError:
    """Make the error for polygons of which none lies in any scene."""
    bounds = shapely.total_bounds(polygons.geometry)
    theirs = " ".join(f"{value:.10g}" for value in bounds)
    ours = " ".join(f"{value:.10g}" for value in grid.bounds)
    systems = (
        "no CRS" if polygons.crs is None else polygons.crs.to_string()[:40],
        "no CRS" if grid.crs is None else grid.crs.to_string()[:40],
    )
    msg = (
        f"none of the {len(polygons.geometry)} polygons of {polygons.name} ({theirs} in {systems[0]}) lies in {scene} "
        f"({ours} in {systems[1]}); check the CRS of both"
    )
    return SceneError(msg)
