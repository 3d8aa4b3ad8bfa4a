"""Results to files, by extension, never half-written; see `rsgeoseg.geo.commit` for how."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import TYPE_CHECKING

import shapely

from rsgeoseg.errors import UsageError
from rsgeoseg.geo.coco import write_coco
from rsgeoseg.geo.commit import check_target, staged
from rsgeoseg.geo.formats import FORMATS, Format, extension_of, find_format
from rsgeoseg.geo.labels import write_labels
from rsgeoseg.geo.record import record_path, to_jsonable, write_record
from rsgeoseg.geo.vectors import SHAPEFILE_NAMES, load_frame, write_vector

if TYPE_CHECKING:
    from collections.abc import Sequence
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
    "write_frame",
    "write_record",
]

logger = logging.getLogger(__name__)


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
    path = Path(path)
    entry = find_format(path, format)
    if entry.on_grid and grid is None:
        msg = f"cannot write {path}: a {entry.title} is in pixels of the scene; give the scene's grid"
        raise UsageError(msg)
    need = needed_bytes(frame, entry)
    check_target(path, overwrite=overwrite, parts=entry.parts, need=need)
    with staged(path, overwrite=overwrite, parts=entry.parts, leftovers=entry.leftovers, need=need) as temporary:
        if entry.name == "coco" and grid is not None:
            write_coco(frame, temporary, grid, classes=classes, scene_name=scene_name)
        elif entry.name == "tif" and grid is not None:
            write_labels(frame, temporary, grid)
        else:
            write_vector(frame, temporary, entry)
    logger.info("wrote %d objects to %s", len(frame), path)


def needed_bytes(frame: gpd.GeoDataFrame, entry: Format) -> int:
    """Least bytes that a frame takes in a format, a little under what it will really take."""
    vertices = int(shapely.get_num_coordinates(frame.geometry.to_numpy()).sum())
    return math.ceil(len(frame) * entry.bytes_per_row + vertices * entry.bytes_per_vertex)
