"""Frames to a vector file, batch after batch: no more than two batches are in memory.

One Arrow stream goes into one open file: appending in parts would be up to twenty times slower. What GDAL keeps by
itself is on top: its cache and a part of GeoPackage's index, a box per feature for FlatGeobuf's; for PMTiles it fills a
temporary database beside the file.
"""

from __future__ import annotations

import logging
import struct
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyogrio
import shapely

from rsgeoseg.geo.batches import arrow_schema, to_arrow, to_binary
from rsgeoseg.geo.geoparquet import write_geoparquet
from rsgeoseg.geo.regularize import orient
from rsgeoseg.geo.vector_tiles import LAYER, zoom_range

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    import geopandas as gpd
    import pyproj
    from numpy.typing import NDArray

    from rsgeoseg.geo.batches import Batches
    from rsgeoseg.geo.formats import Format

logger = logging.getLogger(__name__)

SHAPEFILE_NAMES: Mapping[str, str] = {"perimeter_m": "perim_m"}
"""Columns whose names are longer than the ten characters of a Shapefile, and what they are called there."""
_LON_LAT = "EPSG:4326"
_ONE_PART = struct.pack("<BII", 1, 6, 1)
"""Start of a MultiPolygon of one part in well-known binary: the byte order, the type and the number of parts."""


def write_vectors(batches: Batches, path: Path, entry: Format, *, gsd: float | None = None) -> None:
    """Write a table to a vector file.

    GeoPackage, FlatGeobuf and Shapefile have one geometry type per layer: MultiPolygon there, whatever the objects.

    Args:
        batches: the table.
        path: the file.
        entry: its format.
        gsd: metres per pixel of the scene, for the zoom levels of tiles.

    Raises:
        OSError, RuntimeError, pyarrow.ArrowException: the file cannot be written.
        Exception: what making a batch raised, or any of the above in its place.
    """
    if entry.name == "parquet":
        write_geoparquet(batches, path)
        return
    layer = _layer(batches.first, path, entry, gsd)
    schema = arrow_schema(batches.first)
    short = SHAPEFILE_NAMES if entry.name == "shp" else {}
    named = pa.schema([field.with_name(short.get(field.name, field.name)) for field in schema])

    def stream() -> Iterator[pa.RecordBatch]:
        for frame in batches:
            table = to_arrow(frame, layer.encode(frame.geometry.to_numpy()), schema)
            yield from table.rename_columns(named.names).to_batches()

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "'crs' was not provided")  # the scene had none, and the user was told
        pyogrio.write_arrow(
            pa.RecordBatchReader.from_batches(named, stream()),
            path,
            driver=entry.driver,
            geometry_name=batches.first.geometry.name,
            geometry_type=layer.geometry_type,
            crs=_crs_text(batches.first.crs),
            **layer.options,
        )


@dataclass(frozen=True, slots=True)
class _Layer:
    """How a layer is made."""

    options: Mapping[str, Any]
    """Further arguments of pyogrio."""
    geometry_type: str
    encode: Callable[[NDArray[np.object_]], NDArray[np.object_]]
    """Turns geometries into well-known binary."""


def _layer(first: gpd.GeoDataFrame, path: Path, entry: Format, gsd: float | None) -> _Layer:
    """How GDAL makes the layer of a format."""
    if entry.name == "geojson":
        return _geojson(first.crs, path)
    if entry.name == "pmtiles":
        least, most = zoom_range(first, gsd)
        options = {"MINZOOM": str(least), "MAXZOOM": str(most), "NAME": path.stem}
        return _Layer({"layer": LAYER, "dataset_options": options}, "Unknown", to_binary)
    if entry.name == "shp":
        return _Layer({"layer_options": {"ENCODING": "UTF-8", "2GB_LIMIT": "YES"}}, "MultiPolygon", _multi_to_binary)
    return _Layer({"layer_options": {"SPATIAL_INDEX": "YES"}}, "MultiPolygon", _multi_to_binary)


def _geojson(crs: pyproj.CRS | None, path: Path) -> _Layer:
    """Follow RFC 7946: longitude and latitude, right-hand rule, cut at the antimeridian."""
    if crs is None:
        logger.warning(
            "%s: the scene has no CRS, so this GeoJSON is in pixels, not in longitude and latitude", path.name
        )
        return _Layer({"layer_options": {"RFC7946": "NO"}}, "Unknown", to_binary)
    # 9 decimals of a degree are 0.1 mm: the usual 7 (1 cm) would bend the pixels of drone images.
    options = {"layer_options": {"RFC7946": "YES", "COORDINATE_PRECISION": "9"}}
    if not crs.equals(_LON_LAT, ignore_axis_order=True):
        logger.info("%s: GeoJSON is always in EPSG:4326, so the objects are reprojected from %s", path.name, crs.name)
        return _Layer(options, "Unknown", to_binary)  # GDAL reprojects, and cuts at the antimeridian as it does
    return _Layer(options, "Unknown", _cut_to_binary)


def _crs_text(crs: pyproj.CRS | None) -> str | None:
    """A CRS as GDAL takes it."""
    if crs is None:
        return None
    code = crs.to_epsg()
    return f"EPSG:{code}" if code else str(crs.to_wkt("WKT1_GDAL"))


def _multi_to_binary(geometry: NDArray[np.object_]) -> NDArray[np.object_]:
    """Well-known binary with every Polygon as a MultiPolygon of one part."""
    binary = to_binary(geometry)
    single = shapely.get_type_id(geometry) == shapely.GeometryType.POLYGON
    # Several times faster than making the MultiPolygons.
    binary[single] = np.array([_ONE_PART + polygon for polygon in binary[single]], object)
    return binary


def _cut_to_binary(geometry: NDArray[np.object_]) -> NDArray[np.object_]:
    """Well-known binary of what lies within the longitudes."""
    return to_binary(_cut_at_antimeridian(geometry))


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
