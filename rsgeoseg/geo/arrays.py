"""xarray DataArrays as scenes: in memory, or lazy (Dask, Zarr, an open file), read window by window."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import rioxarray  # noqa: F401  (gives DataArrays their .rio)
from affine import Affine
from rasterio.enums import ColorInterp, Resampling
from rasterio.warp import reproject

from rsgeoseg.errors import SceneError
from rsgeoseg.geo.grid import GeoGrid
from rsgeoseg.geo.opening import MAX_BANDS, MAX_PIXELS
from rsgeoseg.geo.source import (
    WHOLE_SAMPLE_PIXELS,
    Pixels,
    SourceInfo,
    resampled_grid,
    resampling_factors,
    sample_places,
    valid_pixels,
)

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray
    from xarray import DataArray

    from rsgeoseg.geo.windows import Box

MAX_PICKLED_BYTES = 256 << 20
"""An array in memory larger than this is not sent to other processes: each would get a copy."""
_AXES = {"y": ("y", "latitude", "lat", "northing"), "x": ("x", "longitude", "lon", "easting")}
_UNEVEN = 0.02
"""Share of a pixel by which coordinates may miss an even spacing."""
_WARP_CRS = "EPSG:3857"
_AWAY = 1000


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ArrayInfo:
    """What a DataArray says of itself, checked."""

    data: DataArray
    """(band, y, x); nothing of it is loaded."""
    name: str
    grid: GeoGrid
    nodata: tuple[float | None, ...]
    band_names: tuple[str, ...]
    block: tuple[int, int] | None
    driver: str = "xarray"
    has_overviews: bool = False
    file: Path | None = None

    @property
    def count(self) -> int:
        """Number of bands."""
        return int(self.data.shape[0])

    @property
    def colors(self) -> tuple[ColorInterp, ...]:
        """Unknown."""
        return (ColorInterp.undefined,) * self.count

    @property
    def location(self) -> str:
        """The array's name in words."""
        return f"DataArray {self.name}"

    @property
    def recipe(self) -> DataArray:
        """The array: lazy ones travel as how to load them.

        Raises:
            SceneError: it is in memory and large.
        """
        lazy = hasattr(self.data.variable._data, "dask") or not self.data.variable._in_memory  # noqa: SLF001
        if not lazy and self.data.nbytes > MAX_PICKLED_BYTES:
            msg = (
                f"{self.location} is in memory and has {self.data.nbytes / 1e9:.1f} GB, too much to send to every"
                " worker: save it with .to_zarr or .rio.to_raster and open that"
            )
            raise SceneError(msg)
        return self.data

    def reader(self, bands: tuple[int, ...], gsd: float | None) -> ArrayReader:
        """Return the pixels of some bands, see ``SourceInfo``."""
        return ArrayReader(self, bands, resampling_factors(self, gsd))

    def fingerprint(self) -> dict[str, Any]:
        """Return a hash of the values, or of how they are loaded: a Zarr store that is changed in place keeps its."""
        digest = hashlib.sha256(repr((self.data.shape, str(self.data.dtype), tuple(self.grid.affine))).encode())
        if self.data.chunks is not None:
            from dask.base import tokenize  # noqa: PLC0415  (there is Dask where there is such an array)

            digest.update(tokenize(self.data.data).encode())
        else:
            rows = max(1, (64 << 20) // max(self.data.nbytes // self.data.shape[1], 1))
            for start in range(0, self.data.shape[1], rows):
                digest.update(np.ascontiguousarray(self.data[:, start : start + rows].values).tobytes())
        return {"bytes": int(self.data.nbytes), "sha256": digest.hexdigest()}

    def reason(self, error: Exception) -> str:
        """Return the error in one line."""
        return " ".join(str(error).split()) or type(error).__name__


def _satisfies(info: ArrayInfo) -> SourceInfo:
    return info  # checked by mypy


def inspect_array(source: DataArray) -> ArrayInfo:
    """Check a DataArray and find where it lies; load no pixel.

    Raises:
        SceneError: dimensions, coordinates or values that are no raster; the message says what to do.
    """
    name = str(source.name) if source.name is not None else "without a name"
    what = f"DataArray {name}"
    data = _ordered(source, what)
    _check(data, what)
    grid = _grid(source, data, what)
    nodata = _nodata(source)
    names: tuple[str, ...] = ()
    band = data.dims[0]
    if band in data.coords and data.coords[band].dtype.kind in "UO":
        names = tuple(str(value) for value in np.atleast_1d(data.coords[band].values))
    chunks = data.chunks
    block = None if chunks is None else (int(chunks[1][0]), int(chunks[2][0]))
    return ArrayInfo(data=data, name=name, grid=grid, nodata=(nodata,) * data.shape[0], band_names=names, block=block)


def _ordered(source: DataArray, what: str) -> DataArray:
    """Return the array as (band, y, x)."""
    axes = {}
    for axis, usual in _AXES.items():
        given = getattr(source.rio, f"_{axis}_dim", None)
        found = [dim for dim in source.dims if dim == given or str(dim).lower() in usual]
        if len(found) != 1:
            msg = (
                f"{what} has dimensions {source.dims}: name them, e.g. data.rio.set_spatial_dims(x_dim=..., y_dim=...)"
            )
            raise SceneError(msg)
        axes[axis] = found[0]
    others = [dim for dim in source.dims if dim not in axes.values()]
    long = [dim for dim in others if source.sizes[dim] > 1]
    if len(long) > 1:
        msg = f"{what} has dimensions {source.dims}: select one along {long[0]}, e.g. data.isel({long[0]}=0)"
        raise SceneError(msg)
    if long and ("time" in str(long[0]).lower() or source.coords.get(long[0], source).dtype.kind == "M"):
        msg = f"{what} has {source.sizes[long[0]]} steps along {long[0]}: select one: data.isel({long[0]}=0)"
        raise SceneError(msg)
    data = source.squeeze([dim for dim in others if dim not in long], drop=True)
    if not long:
        data = data.expand_dims("band")
    return data.transpose(long[0] if long else "band", axes["y"], axes["x"])


def _check(data: DataArray, what: str) -> None:
    count, height, width = data.shape
    if data.dtype.kind not in "biuf":
        msg = f"{what} holds {data.dtype}: convert it to numbers first"
        raise SceneError(msg)
    if 0 in data.shape:
        msg = f"{what} is empty: its shape is {data.shape}"
        raise SceneError(msg)
    if count > MAX_BANDS or height * width > MAX_PIXELS:
        msg = f"{what} has {count} x {height} x {width} values, more than a scene can have: select a part"
        raise SceneError(msg)


def _nodata(source: DataArray) -> float | None:
    value = source.rio.nodata if source.rio.nodata is not None else source.attrs.get("_FillValue")
    return None if value is None else float(value)


def _grid(source: DataArray, data: DataArray, what: str) -> GeoGrid:
    """Find the affine from the coordinates, exactly as written down where that agrees with them."""
    _, height, width = data.shape
    written = source.rio.transform(recalc=False)
    spacing = [_spacing(data, dim, what) for dim in data.dims[1:]]
    affine = written
    if spacing[0] is not None and spacing[1] is not None:
        (y0, dy), (x0, dx) = spacing
        affine = Affine(dx, 0.0, x0 - dx / 2, 0.0, dy, y0 - dy / 2)
        corners = [(0, 0), (width, height)]
        known = written is not None and written.determinant != 0
        if known and all(math.dist(~affine @ (written @ corner), corner) < 10 * _UNEVEN for corner in corners):
            affine = written
    elif any(space is not None for space in spacing) and written.is_identity:
        msg = f"{what} has a single row or column, so its pixel size is unknown: data.rio.write_transform(...)"
        raise SceneError(msg)
    try:
        return GeoGrid(height, width, affine, source.rio.crs)
    except ValueError as error:
        msg = f"{what}: {error}; set a georeference with data.rio.write_transform(...)"
        raise SceneError(msg) from error


def _spacing(data: DataArray, dim: Any, what: str) -> tuple[float, float] | None:
    """First coordinate and step along a dimension; None where it has no coordinates, or one only."""
    if dim not in data.coords or data.sizes[dim] < 2:
        return None
    values = data.coords[dim].values
    if values.dtype.kind not in "iuf":
        msg = f"{what} has coordinates of type {values.dtype} along {dim}: give numbers"
        raise SceneError(msg)
    values = values.astype(np.float64)
    step = (values[-1] - values[0]) / (len(values) - 1)
    even = values[0] + step * np.arange(len(values))
    if not np.isfinite(step) or step == 0 or np.abs(values - even).max() > _UNEVEN * abs(step):
        msg = f"{what} has uneven coordinates along {dim}: resample it to a regular grid, e.g. data.interp"
        raise SceneError(msg)
    return float(values[0]), float(step)


class ArrayReader:
    """Bands of a DataArray, at its own pixels or resampled.

    Args:
        info: the array.
        bands: band numbers from 1, each once.
        factors: new pixel size over old, x and y; None = the array's own pixels.
    """

    def __init__(self, info: ArrayInfo, bands: tuple[int, ...], factors: tuple[float, float] | None) -> None:
        self.info, self.bands, self.factors = info, list(bands), factors
        self.grid = resampled_grid(info, factors)
        self._indexes = [band - 1 for band in bands]
        kind = info.data.dtype
        self.dtype: np.dtype[Any] = np.dtype(np.uint8) if kind == np.bool_ else kind
        self._nodata = None if info.nodata[0] is None else tuple(info.nodata[index] for index in self._indexes)

    @property
    def always_valid(self) -> bool:
        """Whether every pixel has data, by nodata and dtype alone."""
        return self._nodata is None and np.issubdtype(self.dtype, np.integer)

    def is_empty(self, _box: Box) -> bool:
        """Not known before it is loaded."""
        return False

    def read(self, box: Box) -> Pixels:
        """Read a box of the grid."""
        if self.factors is None:
            image = self._load(slice(box.y0, box.y1), slice(box.x0, box.x1))
            return image, valid_pixels(image, None, self._nodata)
        return self._resample(box)

    def read_decimated(self, box: Box, rows: int, cols: int) -> Pixels:
        """Read a box of the grid averaged into rows x cols pixels, strip by strip."""
        fx, fy = self.factors or (1.0, 1.0)
        edges = np.linspace(box.y0 * fy, min(box.y1 * fy, self.info.grid.height), rows + 1)
        strips = [self._averaged(box, fx, top, bottom, cols) for top, bottom in zip(edges, edges[1:], strict=False)]
        image = np.concatenate([strip[0] for strip in strips], axis=1)
        valid = np.concatenate([strip[1] for strip in strips], axis=0)
        return image, None if valid.all() else valid

    def sample(self, max_side: int = 2048) -> Pixels:
        """Read every n-th pixel, or 16 x 16 places of a huge array."""
        height, width = self.info.grid.height, self.info.grid.width
        if height * width <= WHOLE_SAMPLE_PIXELS and self.info.block is None:
            step = max(1, math.ceil(max(height, width) / max_side))
            image = self._load(slice(None, None, step), slice(None, None, step))
            return image, valid_pixels(image, None, self._nodata)
        images = [self._load(*place.as_slices()) for place in sample_places(height, width)]
        valids = [valid_pixels(image, None, self._nodata) for image in images]
        masks = [np.ones(i.shape[1:], np.bool_) if v is None else v for i, v in zip(images, valids, strict=True)]
        return np.concatenate(images, axis=1), np.concatenate(masks, axis=0)

    def close(self) -> None:
        """Nothing is held."""

    def _load(self, rows: slice, cols: slice) -> NDArray[Any]:
        """Load a window; lazy arrays in this thread, since several threads read at once."""
        part = self.info.data[self._indexes, rows, cols]
        values = part.data.compute(scheduler="synchronous") if part.chunks is not None else part.values
        return np.array(values, dtype=self.dtype)  # always a copy: the caller may change it

    def _averaged(
        self, box: Box, fx: float, top: float, bottom: float, cols: int
    ) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Average one row of a decimated picture."""
        y0, y1 = int(top), max(int(top) + 1, math.ceil(bottom))
        x0, x1 = int(box.x0 * fx), min(math.ceil(box.x1 * fx), self.info.grid.width)
        raw = self._load(slice(y0, y1), slice(x0, x1))
        valid = valid_pixels(raw, None, self._nodata)
        seen = np.ones(raw.shape[1:], np.bool_) if valid is None else valid
        edges = np.linspace(0, x1 - x0, cols + 1).astype(int)[:-1]
        weight = np.add.reduceat(seen.sum(axis=0), edges)
        total = np.add.reduceat(np.where(seen, raw, 0).sum(axis=1, dtype=np.float64), edges, axis=1)
        mean = total / np.maximum(weight, 1)
        if np.issubdtype(self.dtype, np.integer):
            mean = np.rint(mean)
        return mean.astype(self.dtype)[:, None], (weight > 0)[None]

    def _resample(self, box: Box) -> Pixels:
        """Resample a window: average to larger pixels, interpolate to smaller ones, as for files."""
        assert self.factors is not None
        fx, fy = self.factors
        margin = 2
        x0, y0 = max(0, int(box.x0 * fx) - margin), max(0, int(box.y0 * fy) - margin)
        x1 = min(self.info.grid.width, math.ceil(box.x1 * fx) + margin)
        y1 = min(self.info.grid.height, math.ceil(box.y1 * fy) + margin)
        raw = self._load(slice(y0, y1), slice(x0, x1))
        nodata = None if self._nodata is None else self._nodata[0]
        if nodata is None and not np.issubdtype(self.dtype, np.integer):
            nodata = math.nan
        image = np.zeros((len(self.bands), box.height, box.width), self.dtype)
        if nodata is not None:
            image[:] = nodata
        reproject(
            raw,
            image,
            src_crs=_WARP_CRS,
            dst_crs=_WARP_CRS,
            # Pixel coordinates on both sides, so that rotation, shear and lon/lat play no part; away from the origin,
            # where GDAL takes this for no georeference at all.
            src_transform=Affine.translation(_AWAY + x0, _AWAY - y0) @ Affine.scale(1, -1),
            dst_transform=Affine.translation(_AWAY + box.x0 * fx, _AWAY - box.y0 * fy) @ Affine.scale(fx, -fy),
            src_nodata=nodata,
            dst_nodata=nodata,
            resampling=Resampling.average if max(fx, fy) > 1 else Resampling.bilinear,
            tolerance=0.001,
        )
        return image, valid_pixels(image, None, self._nodata)
