"""Where a DataArray says it lies: coordinates of its pixels, an affine noted beside them, or nowhere."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import rioxarray  # noqa: F401  (gives DataArrays their .rio)
from affine import Affine
from pyproj.exceptions import ProjError
from rasterio.errors import CRSError
from rioxarray.exceptions import RioXarrayError

from rsgeoseg.errors import SceneError
from rsgeoseg.geo.grid import GeoGrid

if TYPE_CHECKING:
    from collections.abc import Hashable

    from xarray import DataArray

_AXES = {"x": ("x", "longitude", "lon", "easting"), "y": ("y", "latitude", "lat", "northing")}
_UNEVEN = 0.1
"""Share of a pixel by which coordinates may miss an even spacing: those in float32 do."""


def spatial_dims(source: DataArray, what: str) -> tuple[Hashable, Hashable]:
    """Return the names of the dimensions that rows and columns lie along.

    Raises:
        SceneError: none, or several, could be.
    """
    found = {}
    for axis, usual in _AXES.items():
        try:
            found[axis] = source.rio.x_dim if axis == "x" else source.rio.y_dim
        except RioXarrayError:
            named = [dim for dim in source.dims if str(dim).lower() in usual]
            found[axis] = named[0] if len(named) == 1 else None
    if found["x"] not in source.dims or found["y"] not in source.dims or found["x"] == found["y"]:
        dims = ", ".join(map(str, source.dims)) or "none"
        msg = (
            f"{what} has dimensions {dims}, none or several of which could be its rows and columns: name them with"
            " data.rio.set_spatial_dims(x_dim=..., y_dim=...)"
        )
        raise SceneError(msg)
    return found["y"], found["x"]


def read_array_grid(source: DataArray, dims: tuple[Hashable, Hashable], what: str) -> GeoGrid:
    """Return the grid of an array, from the coordinates of its pixel centres.

    Where an affine was noted beside them (``spatial_ref``) and agrees, it is taken as exactly as it is; where it does
    not, as after slicing, coordinates hold. Without coordinates the affine does, and without either the world is
    pixels. Rows may run north or south, columns east or west.

    Args:
        source: the array.
        dims: names of the dimensions that rows and columns lie along.
        what: the array in words, for messages.

    Raises:
        SceneError: uneven coordinates, or not enough to know the size of a pixel.
    """
    height, width = (source.sizes[dim] for dim in dims)
    written = _written_affine(source, what)
    lines = [_line(source, dim, what) for dim in dims]
    if written is not None and (written.b or written.d):  # coordinates along dimensions cannot say that
        affine = written
    elif None in lines:
        if lines != [None, None] and written is None:
            dim = dims[lines.index(None)]
            msg = f"{what} has no coordinates along {dim}: assign them, or an affine with data.rio.write_transform(...)"
            raise SceneError(msg)
        affine = Affine.identity() if written is None else written
    else:
        affine = _affine_of([line for line in lines if line is not None], written, dims, what)
        if written is not None and _agree(affine, written, width, height):
            affine = written
    try:
        return GeoGrid(height, width, affine, source.rio.crs)
    except (ValueError, CRSError, ProjError) as error:
        said = " ".join(str(error).split())
        msg = f"{what}: {said}; set it with data.rio.write_transform(...) and data.rio.write_crs(...)"
        raise SceneError(msg) from error


def _affine_of(
    lines: list[tuple[float, float | None]], written: Affine | None, dims: tuple[Hashable, Hashable], what: str
) -> Affine:
    (y, step_y), (x, step_x) = lines
    if written is not None:  # a single row or column does not tell how large it is
        step_y, step_x = step_y or written.e, step_x or written.a
    if step_y is None or step_x is None:
        single = dims[0] if step_y is None else dims[1]
        msg = f"{what} has a single pixel along {single}, whose size is unknown: set data.rio.write_transform(...)"
        raise SceneError(msg)
    return Affine(step_x, 0.0, x - step_x / 2, 0.0, step_y, y - step_y / 2)


def _written_affine(source: DataArray, what: str) -> Affine | None:
    """The affine that rioxarray or others noted beside the coordinates; it is stale where the array was sliced."""
    place = source.coords.get(source.rio.grid_mapping)
    noted = None if place is None else place.attrs.get("GeoTransform")
    try:
        if noted is not None:
            return Affine.from_gdal(*(float(number) for number in str(noted).split()))
        noted = source.attrs.get("transform")
        return None if noted is None else Affine(*(float(number) for number in tuple(noted)[:6]))
    except (TypeError, ValueError) as error:
        msg = f"{what} has a transform that is none, {noted!r}: set it with data.rio.write_transform(...)"
        raise SceneError(msg) from error


def _line(source: DataArray, dim: Hashable, what: str) -> tuple[float, float | None] | None:
    """First coordinate along a dimension and the step, unknown if there is one only; None without coordinates."""
    if dim not in source.coords:
        return None
    values = source.coords[dim].values
    if values.dtype.kind not in "iuf" or not np.isfinite(values).all():
        msg = f"{what} has coordinates along {dim} that are not all numbers: assign those of the pixel centres"
        raise SceneError(msg)
    if len(values) < 2:
        return (float(values[0]), None) if len(values) else None
    values = values.astype(np.float64)
    step = (values[-1] - values[0]) / (len(values) - 1)
    missed = np.abs(values - (values[0] + step * np.arange(len(values)))).max()
    if step == 0 or missed > _UNEVEN * abs(step):
        kept = (
            " (they are kept in float32, which may be too short for them)" if source.coords[dim].dtype == "f4" else ""
        )
        msg = f"{what} has uneven coordinates along {dim}{kept}: bring it onto a regular grid, e.g. with data.interp"
        raise SceneError(msg)
    return float(values[0]), float(step)


def _agree(affine: Affine, written: Affine, width: int, height: int) -> bool:
    """Whether two affines put all corners within a tenth of a pixel of each other."""
    if affine.determinant == 0 or written.determinant == 0:
        return False
    corners = [(0, 0), (width, 0), (width, height), (0, height)]
    return all(math.dist(~affine * (written * corner), corner) <= _UNEVEN for corner in corners)
