"""xarray DataArrays as scenes: where the array lies, what its dimensions and values mean, and what tells it apart."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import rioxarray  # noqa: F401  (gives DataArrays their .rio)
from rasterio.enums import ColorInterp
from rasterio.errors import RasterioIOError
from rioxarray.exceptions import RioXarrayError

from rsgeoseg.errors import SceneError
from rsgeoseg.geo.array_georef import read_array_grid, spatial_dims
from rsgeoseg.geo.array_reader import ArrayReader
from rsgeoseg.geo.array_values import (
    ArrayValues,
    as_stored,
    block_edges,
    even_block,
    is_in_memory,
    pixel_dtype,
    stored_as,
)
from rsgeoseg.geo.opening import MAX_BANDS, MAX_PIXELS
from rsgeoseg.geo.windows import Box

if TYPE_CHECKING:
    from collections.abc import Hashable, Mapping

    from xarray import DataArray, Variable

    from rsgeoseg.geo.grid import GeoGrid
    from rsgeoseg.geo.source import SourceInfo

logger = logging.getLogger(__name__)

MAX_PICKLED_BYTES = 256 << 20
"""An array with more than this in memory is not sent to other processes: each would get a copy."""
_BAND_DIMS = ("band", "bands", "channel", "channels", "wavelength", "variable")
_COLORS = {color.name: color for color in (ColorInterp.red, ColorInterp.green, ColorInterp.blue)}
_HASHED_BYTES = 32 << 20


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ArrayInfo:
    """What a DataArray says of itself, checked. It pickles with its values, or with how lazy ones are loaded."""

    values: Variable
    """(band, y, x); nothing of it is loaded here."""
    name: str
    grid: GeoGrid
    nodata: tuple[float | None, ...]
    band_names: tuple[str, ...]
    source: str | None
    """Path of what it was loaded from, where xarray tells."""
    driver: str = "xarray"
    file: Path | None = None

    @property
    def location(self) -> str:
        """The array's name in words."""
        return f"DataArray {self.name}"

    @property
    def files(self) -> tuple[Path, ...]:
        """The file that it was loaded from, where xarray tells."""
        return () if self.source is None else (Path(self.source),)

    @property
    def count(self) -> int:
        """Number of bands."""
        return int(self.values.shape[0])

    @property
    def colors(self) -> tuple[ColorInterp, ...]:
        """Red, green and blue where bands are named so; otherwise unknown."""
        names = self.band_names or ("",) * self.count
        return tuple(_COLORS.get(name.lower(), ColorInterp.undefined) for name in names)

    @property
    def block(self) -> tuple[int, int] | None:
        """(rows, columns) of a chunk; None in memory, or where chunks differ."""
        return even_block(block_edges(self.values))

    @property
    def recipe(self) -> ArrayInfo:
        """This itself; lazy values travel as how to load them.

        Raises:
            SceneError: values in memory that are too large to be copied to every process.
        """
        held = self.values.nbytes if is_in_memory(self.values) else _bytes_in_graph(self.values)
        if held > MAX_PICKLED_BYTES:
            msg = (
                f"{self.location} has {held / 1e6:.0f} MB in memory, and every worker would get a copy: save it with"
                " .to_zarr or .rio.to_raster, and open that"
            )
            raise SceneError(msg)
        return self

    def reader(self, bands: tuple[int, ...], gsd: float | None) -> ArrayReader:
        """Return the pixels of some bands, see ``SourceInfo``."""
        return ArrayReader(self, bands, gsd)

    def fingerprint(self) -> dict[str, Any]:
        """Return a hash of grid, nodata and values; for Dask arrays, of how the values are computed.

        Values of a Dask array are not loaded for this. Its hash is Dask's token, in which xarray puts the path and
        the modification time of what it opened, and with it go size and time of the file behind it where the array
        names one (``encoding["source"]``). So a Zarr store that is written anew, or a file that is changed, is another
        scene; chunks of a Zarr store that are written over in place (``to_zarr(region=...)``) are not noticed. A lazy
        array without Dask is read once, block by block.

        Raises:
            SceneError: lazy values cannot be loaded.
        """
        grid = self.grid
        crs = None if grid.crs is None else grid.crs.to_wkt()
        facts = (self.values.shape, str(self.values.dtype), tuple(grid.affine), crs, self.nodata)
        digest = hashlib.sha256(repr(facts).encode())
        if self.values.chunks is not None:
            from dask.base import tokenize  # noqa: PLC0415  (there is Dask where there are chunks)

            digest.update(tokenize(self.values.data).encode())
        else:
            self._hash_values(digest)
        return {"bytes": int(self.values.nbytes), "sha256": digest.hexdigest(), **self._file_behind()}

    def has_changed(self, since: Mapping[str, Any]) -> bool:
        """Tell whether the file that lazy values come from is another one."""
        behind = {} if is_in_memory(self.values) else self._file_behind()
        return any(since.get(name) != value for name, value in behind.items())

    def _file_behind(self) -> dict[str, int]:
        """Return size and time of the file that it was loaded from, where xarray tells."""
        if self.source is None or not Path(self.source).is_file():
            return {}
        status = Path(self.source).stat()
        return {"source_bytes": status.st_size, "source_mtime_ns": status.st_mtime_ns}

    def _hash_values(self, digest: Any) -> None:
        """Take in all values, block by block."""
        loader, height, width = ArrayValues(self.values, range(self.count)), self.grid.height, self.grid.width
        step = max(1, _HASHED_BYTES // max(1, self.values.nbytes // height))
        rows, cols = loader.edges or ([*range(0, height, step), height], [0, width])
        try:
            for y0, y1 in pairwise(rows):
                for x0, x1 in pairwise(cols):
                    digest.update(loader.load(Box(x0, y0, x1, y1)).data)
        except RasterioIOError as error:
            msg = f"{self.location} cannot be read for its fingerprint: {self.reason(error)}"
            raise SceneError(msg) from error

    def reason(self, error: Exception) -> str:
        """Return the error in one line."""
        return " ".join(str(error).split()).rstrip(".") or type(error).__name__


def _satisfies(info: ArrayInfo) -> SourceInfo:
    return info  # checked by mypy


def inspect_array(source: DataArray) -> ArrayInfo:
    """Check a DataArray and find where it lies; load no pixel.

    Dimensions are found by name (y x, latitude longitude, lat lon, northing easting), by CF attributes, or as
    ``rio.set_spatial_dims`` said, in any order; one more is taken for bands, others must have length 1.

    Raises:
        SceneError: dimensions, coordinates or values that are no raster; the message says what to do.
    """
    name = "without a name" if source.name is None else str(source.name)
    what = f"DataArray {name}"
    y_dim, x_dim = spatial_dims(source, what)
    band_dim = _band_dim(source, (y_dim, x_dim), what)
    values = _values(source, (band_dim, y_dim, x_dim), what)
    info = ArrayInfo(
        values=values,
        name=name,
        grid=read_array_grid(source, (y_dim, x_dim), what),
        nodata=(_nodata(source, values),) * values.shape[0],
        band_names=_band_names(source, band_dim, values.shape[0]),
        source=source.encoding.get("source"),
    )
    if info.grid.crs is None:
        where = "pixel" if info.grid.affine.is_identity else "the array's own"
        text = "%s has no CRS: results are in %s coordinates, without areas in m2; set it with data.rio.write_crs"
        logger.warning(text, what, where)
    return info


def _band_dim(source: DataArray, spatial: tuple[Hashable, Hashable], what: str) -> Hashable | None:
    """Name of the dimension that bands lie along; None where there is one band without it."""
    others = [dim for dim in source.dims if dim not in spatial]
    named = [dim for dim in others if str(dim).lower() in _BAND_DIMS]
    long = [dim for dim in others if source.sizes[dim] != 1]
    band = named[0] if named else long[0] if len(long) == 1 and not _is_time(source, long[0]) else None
    wrong = [dim for dim in long if dim != band]
    if wrong:
        dim = wrong[0]
        msg = f"{what} has {source.sizes[dim]} steps along {dim}, and a scene has one: select it, data.isel({dim}=0)"
        raise SceneError(msg)
    return band


def _is_time(source: DataArray, dim: Hashable) -> bool:
    text = str(dim).lower()
    dated = dim in source.coords and source.coords[dim].dtype.kind in "mM"
    return dated or text in ("t", "date", "year", "month") or "time" in text


def _values(source: DataArray, order: tuple[Hashable | None, Hashable, Hashable], what: str) -> Variable:
    """Return the values as (band, y, x), without attributes, which would travel with them."""
    band, y_dim, x_dim = order
    values = source.variable.isel({dim: 0 for dim in source.dims if dim not in order})
    if band is None:
        values = values.set_dims(("band", *values.dims))  # type: ignore[no-untyped-call]
    values = values.transpose("band" if band is None else band, y_dim, x_dim)
    count, height, width = values.shape
    if values.dtype.kind not in "biuf":
        kinds = {"c": "complex numbers: convert them to amplitude first, abs(data)", "O": "Python objects"}
        kinds |= {"M": "dates", "m": "durations", "U": "text", "S": "text", "T": "text"}
        advice = kinds.get(values.dtype.kind, str(values.dtype))
        msg = f"{what} holds {advice}{'' if 'first' in advice else ': give an array of numbers'}"
        raise SceneError(msg)
    if 0 in values.shape:
        msg = f"{what} is empty: it has {count} bands of {width} x {height} pixels"
        raise SceneError(msg)
    if count > MAX_BANDS or height * width > MAX_PIXELS:
        msg = (
            f"{what} has {count} bands of {width} x {height} pixels, more than {MAX_BANDS} or {MAX_PIXELS:.0e}:"
            " select a part"
        )
        raise SceneError(msg)
    chunks, integers = values.encoding.get("preferred_chunks"), stored_as(values)
    values.attrs = {}
    values.encoding = {**integers, **({} if chunks is None else {"preferred_chunks": chunks})}
    return _whole(values) if integers and is_in_memory(values) else values


def _whole(values: Variable) -> Variable:
    """Return decoded integers in memory as integers; what was computed from them since as it is."""
    try:
        whole = as_stored(values.values, pixel_dtype(values), values.encoding.get("_FillValue"))
    except ValueError:
        values.encoding = {}
        return values
    return values.copy(deep=False, data=whole)


def _nodata(source: DataArray, values: Variable) -> float | None:
    """The value that stands for no data; None where none can: values that stay masked are NaN by now."""
    dtype = pixel_dtype(values)
    encoded = values.encoding.get("_FillValue", source.encoding.get("_FillValue"))
    try:
        value = encoded if encoded is not None and dtype.kind != "f" else source.rio.nodata
    except (OverflowError, ValueError, RioXarrayError):  # one that the dtype cannot hold
        return None
    if value is None or np.ndim(value) > 0:
        return None
    nodata = float(value)
    if dtype.kind == "f":
        return nodata
    limits = np.iinfo(dtype)
    return nodata if nodata.is_integer() and limits.min <= nodata <= limits.max else None


def _band_names(source: DataArray, dim: Hashable | None, count: int) -> tuple[str, ...]:
    """Names from the bands' coordinates, or as rioxarray keeps a file's descriptions."""
    if dim is not None and dim in source.coords and source.coords[dim].dtype.kind in "UOT":
        return tuple(str(name) for name in source.coords[dim].values)
    described = source.attrs.get("long_name")
    if isinstance(described, list | tuple) and len(described) == count:
        return tuple(str(name) for name in described)
    return ()


def _bytes_in_graph(values: Variable) -> int:
    """Bytes of arrays in memory that a Dask graph holds, and that would travel with it."""
    if values.chunks is None:
        return 0
    from dask.highlevelgraph import MaterializedLayer  # noqa: PLC0415  (there is Dask where there are chunks)

    layers = values.data.dask.layers.values()
    tasks = (task for layer in layers if isinstance(layer, MaterializedLayer) for task in layer.mapping.values())
    arrays = (getattr(task, "value", task) for task in tasks)
    return sum(array.nbytes for array in arrays if isinstance(array, np.ndarray))
