"""Frames to a vector file, batch after batch: no more than two batches are in memory.

One Arrow stream goes into one open file: appending in parts would be up to twenty times slower. What a format keeps by
itself until the end (boxes for FlatGeobuf's index, a temporary database for PMTiles) is on top.
"""

from __future__ import annotations

import io
import json
import logging
import warnings
from typing import TYPE_CHECKING, Any

import geopandas as gpd
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pyogrio
import shapely

from rsgeoseg.errors import OutputError
from rsgeoseg.geo.regularize import orient

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from pathlib import Path

    import pyproj
    from numpy.typing import NDArray

    from rsgeoseg.geo.formats import Format

logger = logging.getLogger(__name__)

SHAPEFILE_NAMES: Mapping[str, str] = {"perimeter_m": "perim_m"}
"""Columns whose names are longer than the ten characters of a Shapefile, and what they are called there."""
LAYER = "objects"
"""Name of the layer in vector tiles."""
_LAYER_OPTIONS: Mapping[str, Mapping[str, str]] = {
    "gpkg": {"SPATIAL_INDEX": "YES"},
    # 9 decimals of a degree are 0.1 mm: the usual 7 (1 cm) would bend the pixels of drone images.
    "geojson": {"RFC7946": "YES", "COORDINATE_PRECISION": "9"},
    "fgb": {"SPATIAL_INDEX": "YES"},
    "shp": {"ENCODING": "UTF-8", "2GB_LIMIT": "YES"},
    "pmtiles": {},
}
_TILE_ZOOM = (8, 16)
"""Least and most detailed level of vector tiles: 600 m to 2.4 m per pixel at the equator, drawn to a 4096th of a tile."""
_ROW_GROUP = 20_000
_LON_LAT = "EPSG:4326"


def write_vectors(batches: Iterable[gpd.GeoDataFrame], path: Path, entry: Format) -> int:
    """Write batches of one table, at least one, to a vector file.

    GeoPackage, FlatGeobuf and Shapefile have one geometry type per layer: MultiPolygon there, whatever the objects.

    Returns:
        Rows written.

    Raises:
        OSError, RuntimeError: the file cannot be written.
        Exception: what making a batch raised.
    """
    stream = iter(batches)
    first = next(stream)
    counted = _Counted(first, stream)
    if entry.name == "parquet":
        _write_parquet(counted, path)
    else:
        _write_ogr(counted, path, entry, first.crs)
    if counted.failed is not None:
        raise counted.failed
    return counted.rows


class _Counted:
    """Batches with their number of rows; an error on the way is kept, for GDAL and Arrow would lose it."""

    def __init__(self, first: gpd.GeoDataFrame, others: Iterator[gpd.GeoDataFrame]) -> None:
        self._first, self._others = first, others
        self.rows = 0
        self.failed: BaseException | None = None

    def __iter__(self) -> Iterator[gpd.GeoDataFrame]:
        try:
            frame: gpd.GeoDataFrame | None = self._first
            while frame is not None:
                frame.attrs = {}
                self.rows += len(frame)
                yield frame
                frame = next(self._others, None)
        except GeneratorExit:
            raise
        except BaseException as error:
            self.failed = error
            raise


def _write_ogr(batches: _Counted, path: Path, entry: Format, crs: pyproj.CRS | None) -> None:
    options = dict(_LAYER_OPTIONS[entry.name])
    prepare, kind = _multi, "MultiPolygon"
    if entry.name == "geojson":
        kind, (prepare, options) = "Unknown", _for_geojson(crs, path, options)
    if entry.name == "pmtiles":
        kind = "Unknown"
        prepare, crs = _for_tiles(crs, path)

    def tables() -> Iterator[pa.Table]:
        for frame in batches:
            renamed = frame.rename(columns=dict(SHAPEFILE_NAMES)) if entry.name == "shp" else frame
            yield _arrow(renamed, prepare(frame.geometry.to_numpy()))

    made = tables()
    first = next(made)

    def record_batches() -> Iterator[pa.RecordBatch]:
        yield from first.to_batches()
        for table in made:
            yield from table.cast(first.schema).to_batches()

    how: dict[str, Any] = {"layer": LAYER} if entry.name == "pmtiles" else {}
    if entry.name == "pmtiles":
        how["dataset_options"] = {"MINZOOM": str(_TILE_ZOOM[0]), "MAXZOOM": str(_TILE_ZOOM[1]), "NAME": path.stem}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "'crs' was not provided")  # the scene had none, and the user was told
        try:
            pyogrio.write_arrow(
                pa.RecordBatchReader.from_batches(first.schema, record_batches()),
                path,
                driver=entry.driver,
                geometry_name="geometry",
                geometry_type=kind,
                crs=_crs_text(crs),
                layer_options=options,
                **how,
            )
        except Exception:
            if batches.failed is not None:
                raise batches.failed from None
            raise


def _arrow(frame: gpd.GeoDataFrame, geometry: NDArray[np.object_]) -> pa.Table:
    """Return a frame with its geometry as WKB in the last column."""
    plain = pd.DataFrame(frame.drop(columns=frame.geometry.name))
    table = pa.Table.from_pandas(plain, preserve_index=False).replace_schema_metadata(None)
    return table.append_column("geometry", pa.array(shapely.to_wkb(geometry), pa.large_binary()))


def _crs_text(crs: pyproj.CRS | None) -> str | None:
    if crs is None:
        return None
    code = crs.to_epsg()
    return f"EPSG:{code}" if code else str(crs.to_wkt("WKT1_GDAL"))


def _write_parquet(batches: _Counted, path: Path) -> None:
    """Write GeoParquet 1.1 with a covering box, as geopandas does, in row groups."""
    template: pa.Schema | None = None
    writer: pq.ParquetWriter | None = None
    bounds = np.array([np.inf, np.inf, -np.inf, -np.inf])
    kinds: set[str] = set()
    try:
        for frame in batches:
            if template is None:
                template = _parquet_schema(frame)
                bare = template.remove_metadata()
                writer = pq.ParquetWriter(path, bare, compression="zstd")
            geometry = frame.geometry.to_numpy()
            assert writer is not None
            writer.write_table(_with_boxes(frame, geometry).cast(bare), row_group_size=_ROW_GROUP)
            if len(frame):
                low, high = np.split(shapely.bounds(geometry), 2, axis=1)
                bounds = np.concatenate([np.minimum(bounds[:2], low.min(0)), np.maximum(bounds[2:], high.max(0))])
                kinds |= set(frame.geom_type.unique())
        if writer is not None and template is not None:
            writer.add_key_value_metadata(_parquet_metadata(template, bounds, kinds))
    finally:
        if writer is not None:
            writer.close()


def _parquet_schema(frame: gpd.GeoDataFrame) -> pa.Schema:
    """Let geopandas write down what a file of such a frame says of itself."""
    buffer = io.BytesIO()
    frame.iloc[:1].to_parquet(buffer, write_covering_bbox=True, schema_version="1.1.0", index=False)
    return pq.read_schema(pa.BufferReader(buffer.getvalue()))


def _with_boxes(frame: gpd.GeoDataFrame, geometry: NDArray[np.object_]) -> pa.Table:
    names = ["xmin", "ymin", "xmax", "ymax"]
    boxes = pa.StructArray.from_arrays([pa.array(column) for column in shapely.bounds(geometry).T], names=names)
    return _arrow(frame, geometry).append_column("bbox", boxes)


def _parquet_metadata(template: pa.Schema, bounds: NDArray[np.float64], kinds: set[str]) -> dict[bytes, bytes]:
    metadata = dict(template.metadata)
    geo = json.loads(metadata[b"geo"])
    column = geo["columns"][geo["primary_column"]]
    column["geometry_types"] = sorted(kinds)
    column.pop("bbox", None)
    if np.isfinite(bounds).all():
        column["bbox"] = bounds.tolist()
    metadata[b"geo"] = json.dumps(geo).encode()
    metadata.pop(b"ARROW:schema", None)
    if b"pandas" in metadata:
        pandas = json.loads(metadata[b"pandas"])
        pandas["index_columns"] = []  # a range would claim the rows of the first batch
        metadata[b"pandas"] = json.dumps(pandas).encode()
    return metadata


def _for_geojson(
    crs: pyproj.CRS | None, path: Path, options: dict[str, str]
) -> tuple[Callable[[NDArray[np.object_]], NDArray[np.object_]], dict[str, str]]:
    """Follow RFC 7946: longitude and latitude, right-hand rule, cut at the antimeridian."""
    if crs is None:
        logger.warning(
            "%s: the scene has no CRS, so this GeoJSON is in pixels, not in longitude and latitude", path.name
        )
        return _as_they_are, {"RFC7946": "NO"}
    if not crs.equals(_LON_LAT, ignore_axis_order=True):
        logger.info("%s: GeoJSON is always in EPSG:4326, so the objects are reprojected from %s", path.name, crs.name)
        return _as_they_are, options  # GDAL reprojects, and cuts at the antimeridian as it does
    return _cut_at_antimeridian, options


def _for_tiles(
    crs: pyproj.CRS | None, path: Path
) -> tuple[Callable[[NDArray[np.object_]], NDArray[np.object_]], pyproj.CRS]:
    """Vector tiles are in Web Mercator; GDAL takes longitude and latitude."""
    if crs is None:
        msg = f"cannot write {path}: vector tiles need a CRS, and the scene has none; choose another format"
        raise OutputError(msg)

    def moved(geometry: NDArray[np.object_]) -> NDArray[np.object_]:
        return gpd.GeoSeries(geometry, crs=crs).to_crs(_LON_LAT).to_numpy()

    return moved, gpd.GeoSeries([], crs=_LON_LAT).crs


def _as_they_are(geometry: NDArray[np.object_]) -> NDArray[np.object_]:
    return geometry


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


def _multi(geometry: NDArray[np.object_]) -> NDArray[np.object_]:
    """Make every Polygon a MultiPolygon of one part."""
    geometry = geometry.copy()
    single = np.flatnonzero(shapely.get_type_id(geometry) == shapely.GeometryType.POLYGON)
    if len(single):
        geometry[single] = shapely.multipolygons(geometry[single], indices=np.arange(len(single)))
    return geometry
