"""GeoParquet 1.1 in batches: the file that geopandas writes of the whole table, in row groups."""

from __future__ import annotations

import base64
import io
import json
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import shapely

from rsgeoseg.geo.batches import arrow_schema, to_arrow, to_binary

if TYPE_CHECKING:
    from pathlib import Path

    import geopandas as gpd
    from numpy.typing import NDArray

    from rsgeoseg.geo.batches import Batches

_BOX = pa.struct([(side, pa.float64()) for side in ("xmin", "ymin", "xmax", "ymax")])


def write_geoparquet(batches: Batches, path: Path) -> None:
    """Write a GeoParquet file with a covering box per row and a row group per batch.

    Raises:
        OSError, pyarrow.ArrowException: the file cannot be written.
        Exception: what making a batch raised.
    """
    template = _template(batches.first)
    columns = arrow_schema(batches.first)
    types = columns.append(pa.field("bbox", _BOX))
    total = np.full(4, np.nan)
    kinds: set[str] = set()
    # The schema goes in by hand, at the end: it tells the bounds of the whole table.
    with pq.ParquetWriter(path, types, compression="zstd", store_schema=False) as writer:
        for frame in batches:
            geometry = frame.geometry.to_numpy()
            boxes = shapely.bounds(geometry)
            sides = pa.StructArray.from_arrays([pa.array(side) for side in boxes.T], fields=list(_BOX))
            writer.write_table(to_arrow(frame, to_binary(geometry), columns).append_column("bbox", sides))
            total = _union(total, boxes)
            kinds |= set(frame.geom_type.dropna())
        schema = template.with_metadata(_metadata(template, total, kinds))
        arrow = base64.b64encode(schema.serialize().to_pybytes())
        writer.add_key_value_metadata({**schema.metadata, b"ARROW:schema": arrow})


def _template(frame: gpd.GeoDataFrame) -> pa.Schema:
    """Let geopandas write down what a file of such a frame says of itself."""
    buffer = io.BytesIO()
    frame.iloc[:1].to_parquet(buffer, write_covering_bbox=True, schema_version="1.1.0", index=False)
    return pq.read_schema(pa.BufferReader(buffer.getvalue()))


def _union(total: NDArray[np.float64], boxes: NDArray[np.float64]) -> NDArray[np.float64]:
    """(4,) bounds around bounds and (N, 4) boxes, some of which may be NaN."""
    every = np.vstack([total, boxes])
    return np.concatenate([np.fmin.reduce(every[:, :2]), np.fmax.reduce(every[:, 2:])])


def _metadata(template: pa.Schema, total: NDArray[np.float64], kinds: set[str]) -> dict[bytes, bytes]:
    """What the file says of itself, with the bounds and geometry types of the whole table."""
    geo = json.loads(template.metadata[b"geo"])
    column = geo["columns"][geo["primary_column"]]
    column["geometry_types"] = sorted(kinds)
    if np.isfinite(total).all():
        column["bbox"] = total.tolist()
    return {**template.metadata, b"geo": json.dumps(geo).encode()}
