"""Vector files of our formats, read back."""

from __future__ import annotations

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
from rsgeoseg.geo.vector_stream import SHAPEFILE_NAMES

if TYPE_CHECKING:
    from collections.abc import Mapping
    from os import PathLike

    from numpy.typing import NDArray

    from rsgeoseg.geo.formats import Format

_MAGIC: Mapping[str, tuple[bytes, ...]] = {
    "gpkg": (b"SQLite format 3\0",),
    "geojson": (b"{", b"\xef\xbb\xbf{"),
    "fgb": (b"fgb\x03",),
    "shp": (b"\x00\x00\x27\x0a",),
    "parquet": (b"PAR1",),
}
"""First bytes: GDAL would otherwise open whatever a file turns out to be, other files by reference included."""
_ROWS = 1000
"""Rows counted at once."""


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
    if entry.name not in _MAGIC:
        msg = f"cannot read {path}: a {entry.title} has no whole polygons; give .gpkg, .geojson, .fgb, .shp or .parquet"
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


def count_rows(path: Path, entry: Format) -> int:
    """Count geometries by reading every one: a file's header may promise more than it holds."""
    if entry.name == "parquet":  # its footer, written last, vouches for what is before it
        about = pq.read_metadata(path)
        column = pq.read_schema(path).names.index("geometry")
        groups = (about.row_group(number) for number in range(about.num_row_groups))
        nulls = sum(group.column(column).statistics.null_count for group in groups if group.num_rows)
        return int(pq.read_table(path, columns=["id"]).num_rows - nulls)
    if entry.name == "geojson" and (lines := _feature_lines(path)):
        return lines
    with pyogrio.open_arrow(path, columns=[], use_pyarrow=True, batch_size=_ROWS) as (meta, reader):
        name = meta["geometry_name"] or "wkb_geometry"
        return sum(batch.num_rows - batch.column(name).null_count for batch in reader)


def _feature_lines(path: Path) -> int:
    """Count the features of a whole GeoJSON that has one per line, as GDAL writes it; 0 where it is not like that.

    Parsing the numbers again would take a third of the time that writing them took.
    """
    rows, line = 0, b""
    with path.open("rb") as file:
        for line in file:
            feature = line.startswith(b'{ "type": "Feature"') and line.rstrip(b",\r\n").endswith(b"}")
            rows += feature and b'"geometry": null' not in line
    return rows if line.strip() == b"}" else 0


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
