"""Vector files: GeoPackage, GeoJSON, FlatGeobuf, Shapefile and GeoParquet, written and read back."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import geopandas as gpd
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pyogrio
import shapely

from rsgeoseg.errors import OutputError, UsageError
from rsgeoseg.geo.commit import WRITE_ERRORS
from rsgeoseg.geo.formats import find_format
from rsgeoseg.geo.frame import SCHEMA
from rsgeoseg.geo.regularize import orient

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from os import PathLike

    from numpy.typing import NDArray

    from rsgeoseg.geo.formats import Format

logger = logging.getLogger(__name__)

SHAPEFILE_NAMES: Mapping[str, str] = {"perimeter_m": "perim_m"}
"""Columns whose names are longer than the ten characters of a Shapefile, and what they are called there."""
_LAYER_OPTIONS: Mapping[str, Mapping[str, str]] = {
    "gpkg": {"SPATIAL_INDEX": "YES"},
    # 9 decimals of a degree are 0.1 mm: the usual 7 (1 cm) would bend the pixels of drone images.
    "geojson": {"RFC7946": "YES", "COORDINATE_PRECISION": "9"},
    "fgb": {"SPATIAL_INDEX": "YES"},
    "shp": {"ENCODING": "UTF-8", "2GB_LIMIT": "YES"},
}
_MAGIC: Mapping[str, tuple[bytes, ...]] = {
    "gpkg": (b"SQLite format 3\0",),
    "geojson": (b"{", b"\xef\xbb\xbf{"),
    "fgb": (b"fgb\x03",),
    "shp": (b"\x00\x00\x27\x0a",),
    "parquet": (b"PAR1",),
}
"""First bytes: GDAL would otherwise open whatever a file turns out to be, other files by reference included."""
_ROWS = 1000
"""Rows written or counted at once."""
_LON_LAT = "EPSG:4326"


def write_vector(frame: gpd.GeoDataFrame, path: Path, entry: Format) -> None:
    """Write a frame to a vector file and count what can be read back.

    GeoPackage, FlatGeobuf and Shapefile have one geometry type per layer: MultiPolygon there, whatever the objects.

    Raises:
        OSError, RuntimeError: the file cannot be written, or not all rows can be read back.
    """
    frame = frame.reset_index(drop=True)
    frame.attrs = {}
    if entry.name == "parquet":
        frame.to_parquet(path, compression="zstd", write_covering_bbox=True, schema_version="1.1.0")
    else:
        options = dict(_LAYER_OPTIONS[entry.name])
        kind = "MultiPolygon"
        if entry.name == "geojson":
            kind = "Unknown"
            frame, options = _for_geojson(frame, path, options)
        if entry.name == "shp":
            frame = frame.rename(columns=dict(SHAPEFILE_NAMES))
        # A part at a time: the copies that writing makes would otherwise be the largest thing in memory.
        rows_at_once = _ROWS if entry.name == "gpkg" else max(len(frame), 1)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "'crs' was not provided")  # the scene had none, and the user was told
            for start in range(0, max(len(frame), 1), rows_at_once):
                part = frame.iloc[start : start + rows_at_once]
                if kind == "MultiPolygon":
                    part = part.set_geometry(_multi(part.geometry))
                pyogrio.write_dataframe(
                    part,
                    path,
                    driver=entry.driver,
                    use_arrow=True,
                    geometry_type=kind,
                    layer_options=options if start == 0 else None,
                    append=start > 0,
                )
    rows = _count(path, entry)
    if rows != len(frame):
        msg = f"only {rows} of {len(frame)} objects could be read back"
        raise OSError(msg)


def load_frame(path: str | PathLike[str]) -> gpd.GeoDataFrame:
    """Read a vector result of any of our formats.

    Columns of `SCHEMA` get their dtypes back and a Shapefile's short names their long ones; objects come in the order
    of their ids. GeoJSON is in EPSG:4326, unless its coordinates cannot be degrees: then it has no CRS.

    Args:
        path: .gpkg, .geojson, .json, .fgb, .shp, .parquet or .geoparquet.

    Raises:
        UsageError: the file is missing, of another kind than its extension says, or broken.
    """
    path = Path(path)
    try:
        entry = find_format(path)
    except OutputError as error:
        msg = f"cannot read {path}: not a vector format; give .gpkg, .geojson, .fgb, .shp or .parquet"
        raise UsageError(msg) from error
    if entry.on_grid:
        msg = f"cannot read {path}: a {entry.title} holds no polygons; give .gpkg, .geojson, .fgb, .shp or .parquet"
        raise UsageError(msg)
    try:
        _check_magic(path, entry)
        frame = gpd.read_parquet(path) if entry.name == "parquet" else pyogrio.read_dataframe(path)
    except (*WRITE_ERRORS, ValueError) as error:
        msg = f"cannot read {path}: {' '.join(str(error).split())[:300]}"
        raise UsageError(msg) from error
    if not isinstance(frame, gpd.GeoDataFrame):
        frame = gpd.GeoDataFrame(frame, geometry=gpd.GeoSeries([None] * len(frame)))
    if entry.name == "geojson" and len(frame) and not _are_degrees(frame.total_bounds):
        frame = frame.set_crs(None, allow_override=True)
    return _conform(frame.rename(columns={short: long for long, short in SHAPEFILE_NAMES.items()}))


def _for_geojson(
    frame: gpd.GeoDataFrame, path: Path, options: dict[str, str]
) -> tuple[gpd.GeoDataFrame, dict[str, str]]:
    """Follow RFC 7946: longitude and latitude, right-hand rule, cut at the antimeridian."""
    if frame.crs is None:
        logger.warning(
            "%s: the scene has no CRS, so this GeoJSON is in pixels, not in longitude and latitude", path.name
        )
        return frame, {"RFC7946": "NO"}
    if not frame.crs.equals(_LON_LAT, ignore_axis_order=True):
        logger.info(
            "%s: GeoJSON is always in EPSG:4326, so the objects are reprojected from %s", path.name, frame.crs.name
        )
        return frame, options  # GDAL reprojects, and cuts at the antimeridian as it does
    geometry = _cut_at_antimeridian(frame.geometry.to_numpy())
    return frame.set_geometry(gpd.GeoSeries(geometry, crs=frame.crs, index=frame.index)), options


def _cut_at_antimeridian(geometry: NDArray[np.object_]) -> NDArray[np.object_]:
    """Bring longitudes beyond 180 degrees back to -180 to 180, in two parts where a polygon lies on both sides."""
    bounds = shapely.bounds(geometry)
    geometry = geometry.copy()
    for index in np.flatnonzero((bounds[:, 0] < -180) | (bounds[:, 2] > 180)):
        parts: list[shapely.Polygon] = []
        for turn in (-360, 0, 360):
            strip = shapely.box(turn - 180, -90, turn + 180, 90)
            piece = shapely.transform(shapely.intersection(geometry[index], strip), _turned(turn))
            parts += [part for part in shapely.get_parts(piece) if part.geom_type == "Polygon"]
        geometry[index] = shapely.MultiPolygon(parts) if len(parts) != 1 else parts[0]
    return orient(geometry)


def _turned(degrees: float) -> Callable[[NDArray[np.float64]], NDArray[np.float64]]:
    """Take an angle off longitudes."""
    return lambda xy: xy - np.array([degrees, 0.0])


def _multi(series: gpd.GeoSeries) -> gpd.GeoSeries:
    """Make every Polygon a MultiPolygon of one part."""
    geometry = series.to_numpy().copy()
    single = np.flatnonzero(shapely.get_type_id(geometry) == shapely.GeometryType.POLYGON)
    if len(single):
        geometry[single] = shapely.multipolygons(geometry[single], indices=np.arange(len(single)))
    return gpd.GeoSeries(geometry, crs=series.crs, index=series.index)


def _count(path: Path, entry: Format) -> int:
    """Count geometries by reading every one: a file's header may promise more than it holds."""
    if entry.name == "parquet":
        batches = pq.ParquetFile(path).iter_batches(columns=["geometry"])
        return sum(batch.num_rows - batch.column(0).null_count for batch in batches)
    with pyogrio.open_arrow(path, columns=[], use_pyarrow=True, batch_size=_ROWS) as (meta, reader):
        name = meta["geometry_name"] or "wkb_geometry"
        return sum(batch.num_rows - batch.column(name).null_count for batch in reader)


def _check_magic(path: Path, entry: Format) -> None:
    """Refuse a file that is not what its extension says."""
    with path.open("rb") as file:
        start = file.read(64)
    if entry.name == "geojson":
        start = start.removeprefix(b"\xef\xbb\xbf").lstrip()
    if not start.startswith(_MAGIC[entry.name]):
        msg = f"it is not a {entry.title}"
        raise ValueError(msg)


def _are_degrees(bounds: NDArray[np.float64]) -> bool:
    """Whether bounds (X min, Y min, X max, Y max) can be longitudes and latitudes."""
    return bool(bounds[0] >= -180 and bounds[1] >= -90 and bounds[2] <= 180 and bounds[3] <= 90)


def _conform(frame: gpd.GeoDataFrame) -> gpd.GeoDataFrame:
    """Give columns of the schema their dtypes, polygons of one part their own type, and rows the order of their ids."""
    geometry = frame.geometry.to_numpy()
    several = shapely.get_num_geometries(geometry) != 1
    parts = np.where(several, geometry, shapely.get_geometry(geometry, 0))
    columns: dict[str, Any] = {}
    for name, dtype in SCHEMA.items():
        if name in frame and (dtype.startswith("float") or not frame[name].isna().any()):
            columns[name] = frame[name].astype(dtype)
        elif name in frame:
            columns[name] = frame[name]
        elif not len(frame):  # GeoJSON has no columns where it has no rows
            columns[name] = pd.Series([], dtype=dtype)
    columns |= {name: frame[name] for name in frame.columns if name not in columns and name != frame.geometry.name}
    made = gpd.GeoDataFrame(pd.DataFrame(columns), geometry=gpd.GeoSeries(parts, crs=frame.crs, index=frame.index))
    return made.sort_values("id", kind="stable", ignore_index=True) if "id" in made else made
