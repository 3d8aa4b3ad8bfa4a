"""Where a raster file says it lies: affine, world file, ground-control points, or nowhere."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import numpy as np
from affine import Affine

from rsgeoseg.errors import SceneError
from rsgeoseg.geo.grid import GeoGrid

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from rasterio.control import GroundControlPoint
    from rasterio.io import DatasetReader

    from rsgeoseg.geo.remote import RemoteFile

logger = logging.getLogger(__name__)

MAX_GCP_RESIDUAL = 2.0
"""Pixels by which a ground-control point may miss the affine fitted to all of them."""


def read_grid(dataset: DatasetReader, path: Path | RemoteFile) -> GeoGrid:
    """Return a raster's grid; the full affine is kept, whether rotated, sheared or south-up.

    Ground-control points become the affine that fits them best. Without any georeference the world is pixel
    coordinates. Both are said in the log, and so is a missing CRS.

    Raises:
        SceneError: an affine that cannot be inverted, or ground-control points that no affine fits.
    """
    affine, crs = dataset.transform, dataset.crs
    points, points_crs = dataset.gcps
    if affine.is_identity and points:
        affine, crs = fit_gcps(points, path), points_crs
        logger.warning("%s has ground-control points only: using the affine that fits all %d", path.name, len(points))
    if not crs:
        crs = None
        why = "RPCs but no CRS (orthorectify it for coordinates)" if dataset.rpcs is not None else "no CRS"
        where = "pixel" if affine.is_identity else "the file's own"
        logger.warning("%s has %s: results are in %s coordinates, without areas in m2", path.name, why, where)
    try:
        return GeoGrid(dataset.height, dataset.width, affine, crs)
    except ValueError as error:
        msg = f"{path}: {error}; set a georeference with gdal_edit -a_ullr"
        raise SceneError(msg) from error


def fit_gcps(points: Sequence[GroundControlPoint], path: Path | RemoteFile) -> Affine:
    """Fit an affine to ground-control points by least squares.

    Raises:
        SceneError: fewer than three points, points on a line, or a point more than 2 pixels off.
    """
    pixel = np.array([(point.col, point.row) for point in points], np.float64)
    world = np.array([(point.x, point.y) for point in points], np.float64)
    pixel_mean, world_mean = pixel.mean(axis=0), world.mean(axis=0)
    linear, _, rank, _ = np.linalg.lstsq(pixel - pixel_mean, world - world_mean, rcond=1e-9)
    if rank < 2 or abs(np.linalg.det(linear)) == 0:
        msg = f"{path}: its {len(points)} ground-control points do not span a plane; georeference it with gdalwarp"
        raise SceneError(msg)
    missed = (world - world_mean) @ np.linalg.inv(linear) - (pixel - pixel_mean)
    residual = float(np.hypot(missed[:, 0], missed[:, 1]).max())
    if residual > MAX_GCP_RESIDUAL:
        msg = (
            f"{path}: no affine fits its {len(points)} ground-control points (one is {residual:.1f} pixels off, at most"
            f" {MAX_GCP_RESIDUAL:g}): warp it first, e.g. gdalwarp -tps"
        )
        raise SceneError(msg)
    origin = world_mean - pixel_mean @ linear
    return Affine(linear[0, 0], linear[1, 0], origin[0], linear[0, 1], linear[1, 1], origin[1])
