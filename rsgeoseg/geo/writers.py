"""Results to files, by extension, never half-written; see `rsgeoseg.geo.commit` for how."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import TYPE_CHECKING

import shapely

from rsgeoseg.errors import UsageError
from rsgeoseg.geo.batches import Batches
from rsgeoseg.geo.coco import write_coco
from rsgeoseg.geo.commit import check_target, staged
from rsgeoseg.geo.formats import FORMATS, Format, extension_of, find_format
from rsgeoseg.geo.labels import write_labels
from rsgeoseg.geo.record import record_path, to_jsonable, write_record
from rsgeoseg.geo.vector_stream import SHAPEFILE_NAMES, write_vectors
from rsgeoseg.geo.vector_tiles import check_tiles, count_tiled
from rsgeoseg.geo.vectors import count_rows, load_frame

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from os import PathLike

    import geopandas as gpd

    from rsgeoseg.geo.grid import GeoGrid

__all__ = [
    "FORMATS",
    "SHAPEFILE_NAMES",
    "Format",
    "check_output",
    "extension_of",
    "load_frame",
    "record_path",
    "to_jsonable",
    "write_batches",
    "write_frame",
    "write_record",
]

logger = logging.getLogger(__name__)

BATCH_ROWS = 20_000
"""Rows that are written at once: a few tens of MB with their copies."""


def check_output(
    path: str | PathLike[str],
    overwrite: bool = False,
    format: str | None = None,  # noqa: A002  (the option's own name)
) -> Format:
    """Check that a result can be written, before the work for it starts.

    Args:
        path: the output.
        overwrite: whether an existing file may be replaced.
        format: a format's name; None takes the extension.

    Returns:
        The format that `write_frame` will use.

    Raises:
        OutputError: unknown format or extension; a folder; an existing file without ``overwrite``; a folder that is
            missing or cannot be written to; a full disk.
    """
    path = Path(path)
    entry = find_format(path, format)
    check_target(path, overwrite=overwrite, parts=entry.parts)
    return entry


def write_frame(
    frame: gpd.GeoDataFrame,
    path: str | PathLike[str],
    *,
    overwrite: bool = False,
    format: str | None = None,  # noqa: A002  (the option's own name)
    grid: GeoGrid | None = None,
    classes: Sequence[str] | None = None,
    scene_name: str = "scene",
) -> None:
    """Write a frame of `objects_to_frame` to a file.

    The file appears at its name whole and read back, or not at all; an existing file survives a failure.

    Args:
        frame: the objects, in any CRS or none.
        path: the output.
        overwrite: whether an existing file may be replaced.
        format: a format's name; None takes the extension.
        grid: the scene's pixels; COCO and label rasters need it, and draw the frame's polygons on it.
        classes: all class names, for COCO's categories; None takes those that occur.
        scene_name: file name of the image, for COCO.

    Raises:
        UsageError: a format in pixels without a ``grid``.
        OutputError: as `check_output`, or the write failed; one line.
    """
    batches = [frame.iloc[at : at + BATCH_ROWS] for at in range(0, max(len(frame), 1), BATCH_ROWS)]
    vertices = int(shapely.get_num_coordinates(frame.geometry.to_numpy()).sum())
    write_batches(
        batches,
        path,
        rows=len(frame),
        vertices=vertices,
        overwrite=overwrite,
        format=format,
        grid=grid,
        classes=classes,
        scene_name=scene_name,
    )


def write_batches(
    batches: Iterable[gpd.GeoDataFrame],
    path: str | PathLike[str],
    *,
    rows: int,
    vertices: int,
    overwrite: bool = False,
    format: str | None = None,  # noqa: A002  (the option's own name)
    grid: GeoGrid | None = None,
    classes: Sequence[str] | None = None,
    scene_name: str = "scene",
) -> None:
    """Write a table that comes in batches to a file; about two batches are in memory at once.

    The file appears at its name whole and read back, or not at all; an existing file survives a failure.

    Args:
        batches: frames with the same columns (those of `SCHEMA` and any others) and CRS, in order, with their ids. How
            the table is cut does not matter to the file; an empty table needs one frame to have a CRS.
        path: the output.
        rows: of all batches together.
        vertices: about how many vertices they have, to foresee a full disk.
        overwrite: whether an existing file may be replaced.
        format: a format's name; None takes the extension.
        grid: the scene's pixels; COCO and label rasters need it, and draw the polygons on it. Vector tiles are as
            detailed as it is.
        classes: all class names, for COCO's categories; None takes those that occur.
        scene_name: file name of the image, for COCO.

    Raises:
        UsageError: a format in pixels without a ``grid``.
        OutputError: as `check_output`, or the write failed; one line.
        Exception: what making a batch raised, as it was.
    """
    path = Path(path)
    entry = find_format(path, format)
    if entry.on_grid and grid is None:
        msg = f"cannot write {path}: a {entry.title} is in pixels of the scene; give the scene's grid"
        raise UsageError(msg)
    need = needed_bytes(entry, rows, vertices)
    check_target(path, overwrite=overwrite, parts=entry.parts, need=need)
    table = Batches(batches, BATCH_ROWS)
    if entry.name == "pmtiles":
        check_tiles(path, rows, has_crs=table.first.crs is not None)
    with (
        table.raising_as_it_was(),
        staged(path, overwrite=overwrite, parts=entry.parts, leftovers=entry.leftovers, need=need) as temporary,
    ):
        if entry.name == "coco" and grid is not None:
            found = write_coco(table, temporary, grid, classes=classes, scene_name=scene_name)
        elif entry.name == "tif" and grid is not None:
            write_labels(table, temporary, grid)
            found = table.rows
        else:
            write_vectors(table, temporary, entry, gsd=None if grid is None else grid.gsd)
            found = count_tiled(temporary, rows) if entry.name == "pmtiles" else count_rows(temporary, entry)
        if table.failure is not None:  # and nobody said so
            raise table.failure
        if not found == table.rows == rows:
            msg = f"only {min(found, table.rows)} of {rows} objects could be read back"
            raise OSError(msg)
    logger.info("wrote %d objects to %s", rows, path)


def needed_bytes(entry: Format, rows: int, vertices: int) -> int:
    """Least bytes that a table takes in a format, a little under what it will really take."""
    return math.ceil(rows * entry.bytes_per_row + vertices * entry.bytes_per_vertex)
