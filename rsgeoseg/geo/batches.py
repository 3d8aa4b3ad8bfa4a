"""A table on its way into a file: frames that come one after another, evenly cut, so that few are held at once."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import geopandas as gpd
import pandas as pd
import pyarrow as pa
import shapely

from rsgeoseg.errors import UsageError
from rsgeoseg.geo.frame import SCHEMA

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import numpy as np
    from numpy.typing import NDArray


class Batches:
    """Frames of one table, cut and joined to ``size`` rows: what is written does not depend on how its rows came.

    Can be gone through once.

    Args:
        frames: with the same columns and CRS, in order. Those without rows count only where none has any; without any
            frame, the table has the columns of `SCHEMA`, no rows and no CRS.
        size: rows of each batch but the last.

    Raises:
        Exception: what making the first batch raised.
    """

    first: gpd.GeoDataFrame
    """The first batch, to see columns, CRS and a sample; its first row once it was taken."""
    rows: int
    """Rows that were taken so far."""
    failure: BaseException | None
    """What making a batch raised: GDAL and Arrow would put an error of theirs in its place."""

    def __init__(self, frames: Iterable[gpd.GeoDataFrame], size: int) -> None:
        self.rows = 0
        self.failure = None
        self._others = _cut(self._watched(frames), size)
        self.first = next(self._others)

    def __iter__(self) -> Iterator[gpd.GeoDataFrame]:
        batch: gpd.GeoDataFrame | None = self.first
        self.first = self.first.iloc[:1].copy()
        while batch is not None:
            self.rows += len(batch)
            yield batch
            batch = None  # before the next one is made
            batch = next(self._others, None)

    @contextmanager
    def raising_as_it_was(self) -> Iterator[None]:
        """Whatever became of an error in making a batch: raise that error at the end of the block."""
        try:
            yield
        except BaseException:
            if self.failure is None:
                raise
        if self.failure is not None:
            raise self.failure

    def _watched(self, frames: Iterable[gpd.GeoDataFrame]) -> Iterator[gpd.GeoDataFrame]:
        """Keep what making a frame raises, a CRS that changes included."""
        known: gpd.GeoDataFrame | None = None
        try:
            for frame in frames:
                known = frame.iloc[:0].copy() if known is None else known
                _check_crs(frame, known)
                yield frame
                del frame  # whoever made it may let it go
        except GeneratorExit:  # nobody wants the rest
            raise
        except BaseException as error:
            self.failure = error
            raise


def arrow_schema(frame: gpd.GeoDataFrame) -> pa.Schema:
    """Arrow types of a frame's columns, in order; geometry is binary, and what cannot be told is text."""
    types = pa.Schema.from_pandas(_without_geometry(frame), preserve_index=False)
    fields = {field.name: field.with_type(pa.large_string()) if field.type == pa.null() else field for field in types}
    fields[frame.geometry.name] = pa.field(frame.geometry.name, pa.binary())
    return pa.schema([fields[name] for name in frame.columns])


def to_arrow(frame: gpd.GeoDataFrame, binary: NDArray[np.object_], schema: pa.Schema) -> pa.Table:
    """Columns of a frame, with (N,) well-known binary as its geometry, in the types of `arrow_schema`."""
    index = schema.get_field_index(frame.geometry.name)
    table = pa.Table.from_pandas(_without_geometry(frame), schema=schema.remove(index), preserve_index=False)
    table = table.add_column(index, schema.field(index), pa.array(binary, pa.binary()))
    return table.replace_schema_metadata(schema.metadata)


def to_binary(geometry: NDArray[np.object_]) -> NDArray[np.object_]:
    """(N,) geometries as well-known binary."""
    binary: NDArray[np.object_] = shapely.to_wkb(geometry, flavor="iso", byte_order=1)
    return binary


def _cut(frames: Iterable[gpd.GeoDataFrame], size: int) -> Iterator[gpd.GeoDataFrame]:
    """Cut and join frames to ``size`` rows; one batch without rows where there are none."""
    held: list[gpd.GeoDataFrame] = []
    columns: gpd.GeoDataFrame | None = None
    none_yet = True
    for frame in frames:
        rest = frame.copy(deep=False)
        rest.attrs = {}  # a run record, say: every cut would copy it
        del frame  # whoever made it may let it go
        columns = rest.iloc[:0].copy() if columns is None else columns
        while len(rest):
            room = size - sum(map(len, held))
            held.append(rest.iloc[:room])
            rest = rest.iloc[room:]
            if len(held[-1]) == room:
                yield _joined(held)
                none_yet = False
    if held:
        yield _joined(held)
    elif none_yet:
        yield _empty() if columns is None else columns


def _check_crs(frame: gpd.GeoDataFrame, known: gpd.GeoDataFrame) -> None:
    """Refuse a frame in another CRS than the first one."""
    if frame.crs != known.crs:
        msg = f"cannot write objects in {known.crs} and in {frame.crs} to one file: reproject them first"
        raise UsageError(msg)


def _joined(held: list[gpd.GeoDataFrame]) -> gpd.GeoDataFrame:
    """One frame of several, which are let go."""
    frame = held[0].reset_index(drop=True) if len(held) == 1 else pd.concat(held, ignore_index=True)
    held.clear()
    return frame


def _empty() -> gpd.GeoDataFrame:
    columns = {name: pd.Series([], dtype=dtype) for name, dtype in SCHEMA.items()}
    return gpd.GeoDataFrame(columns, geometry=gpd.GeoSeries([]))


def _without_geometry(frame: gpd.GeoDataFrame) -> pd.DataFrame:
    return pd.DataFrame(frame.drop(columns=frame.geometry.name))
