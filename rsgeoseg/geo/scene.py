"""A scene: a raster file opened lazily, read window by window from any thread."""

from __future__ import annotations

import logging
import math
import os
import threading
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np

from rsgeoseg.contract import Chip
from rsgeoseg.errors import SceneError, UsageError, WindowError
from rsgeoseg.geo import buffers, opening
from rsgeoseg.geo.area import crop, load_area
from rsgeoseg.geo.bands import choose_bands
from rsgeoseg.geo.opening import READ_ERRORS
from rsgeoseg.geo.raster import inspect_raster
from rsgeoseg.geo.remote import is_remote
from rsgeoseg.geo.remote_raster import RemoteInfo, inspect_remote
from rsgeoseg.geo.source import SourceInfo
from rsgeoseg.geo.stretch import Stretch, estimate_stretch, parse_stretch
from rsgeoseg.geo.tiles import Tile, TileCache, cache_layout
from rsgeoseg.geo.windows import Box

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from geopandas import GeoDataFrame, GeoSeries
    from numpy.typing import NDArray
    from shapely.geometry.base import BaseGeometry
    from xarray import DataArray

    from rsgeoseg.geo.grid import GeoGrid

logger = logging.getLogger(__name__)

ValueRange = Literal["uint8", "raw"]

_READ_ERRORS = (*READ_ERRORS, OSError, RuntimeError)
"""What files raise, and what lazy arrays may."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SceneOptions:
    """How a scene is opened: all that is needed to open it again."""

    source: str | os.PathLike[str] | DataArray | SourceInfo
    bands: tuple[int, ...] | None = None
    stretch: str = "auto"
    gsd: float | None = None
    aoi: str | os.PathLike[str] | GeoDataFrame | GeoSeries | BaseGeometry | None = None
    bbox: tuple[float, ...] | None = None
    value_range: ValueRange = "uint8"
    band_count: int = 3


class Scene:
    """A raster file with the bands, resolution, area and value mapping that a model sees. Make one with ``Scene.open``.

    The *working grid* ``grid`` is the file's grid after resampling to ``gsd`` and cropping to bbox and area of
    interest; every box is in its pixels. A scene pickles as how to open it again.

    Args:
        options: how to open it.
        stretch: one that was estimated before; None = estimate when first needed.
    """

    def __init__(self, options: SceneOptions, stretch: Stretch | None = None) -> None:
        if options.value_range not in ("uint8", "raw"):
            msg = f"value_range {options.value_range!r} is unknown: use uint8 or raw"
            raise UsageError(msg)
        self._options = options
        self._rule = parse_stretch(options.stretch)
        self._info = inspect_source(options.source)
        self.band_indexes: tuple[int, ...] = choose_bands(self._info, options.bands, options.band_count)
        """Band numbers from 1, as read."""
        unique = tuple(dict.fromkeys(self.band_indexes))
        self._order = tuple(unique.index(band) for band in self.band_indexes)
        self._in_order = self._order == tuple(range(len(unique)))
        self._raster = self._info.reader(unique, options.gsd)
        self.aoi_geometry: BaseGeometry | None = None
        """The area of interest in the scene's CRS."""
        if options.aoi is not None:
            self.aoi_geometry = load_area(options.aoi, self._raster.grid)
        self._crop, self._area = crop(self._raster.grid, self.aoi_geometry, options.bbox, self.name)
        self.grid: GeoGrid = self._raster.grid.subgrid(self._crop)
        """The working grid."""
        self._gsd = self.grid.gsd
        self._stretch = stretch  # of the unique bands
        self._stretch_lock = threading.Lock()
        self._tiles = self._make_cache()

    @classmethod
    def open(
        cls,
        source: str | os.PathLike[str] | DataArray,
        *,
        bands: Sequence[int] | None = None,
        stretch: str = "auto",
        gsd: float | None = None,
        aoi: str | os.PathLike[str] | GeoDataFrame | GeoSeries | BaseGeometry | None = None,
        bbox: Sequence[float] | None = None,
        value_range: ValueRange = "uint8",
        band_count: int = 3,
    ) -> Scene:
        """Open a raster; no pixel is read.

        Args:
            source: path of a GeoTIFF or COG (.tif .tiff), VRT, JPEG 2000 (.jp2), PNG or JPEG (with a world file); the
                address of a COG or JPEG 2000 on a server (``https://``, ``s3://``, see docs/remote.md); or an xarray
                ``DataArray``, in memory or lazy.
            bands: band numbers from 1, as many as the model takes; None = a sensible choice, see ``choose_bands``.
            stretch: ``auto``, ``none``, ``percentile:2,98`` or ``minmax:0,3000``.
            gsd: resample to so many metres per pixel on the ground, along rows and columns; None = as in the file.
            aoi: vector file in any CRS, or a geopandas frame, or a geometry in the scene's CRS: outside is not valid.
            bbox: X0 Y0 X1 Y1 in the scene's CRS.
            value_range: ``uint8`` applies the stretch; ``raw`` leaves the values.
            band_count: bands the model takes.

        Raises:
            SceneError: the file cannot be used, or nothing of it is left; the message says why.
            UsageError: an option that cannot be used as given.
        """
        return cls(
            SceneOptions(
                source=source,
                bands=None if bands is None else tuple(bands),
                stretch=stretch,
                gsd=gsd,
                aoi=aoi,
                bbox=None if bbox is None else tuple(bbox),
                value_range=value_range,
                band_count=band_count,
            )
        )

    @property
    def path(self) -> Path | None:
        """Absolute path, where the scene is a file of this machine."""
        return self._info.file

    @property
    def location(self) -> str:
        """Where the scene is: an absolute path, a URL without its secrets, or the name of an array."""
        return self._info.location

    @property
    def name(self) -> str:
        """File name without its folder, or the name of an array."""
        return self._info.name

    @property
    def files(self) -> tuple[Path, ...]:
        """Files of this machine that it reads: rasters, with those that a VRT reads, and the area of interest."""
        aoi = self._options.aoi
        area = (Path(aoi),) if isinstance(aoi, str | os.PathLike) else ()
        return self._info.files + area

    @property
    def is_remote(self) -> bool:
        """Whether it is read from a server, which waits for answers more than it computes: several readers help."""
        return isinstance(self._info, RemoteInfo)

    @property
    def source_grid(self) -> GeoGrid:
        """The file's own grid."""
        return self._info.grid

    @property
    def dtype(self) -> np.dtype[Any]:
        """Dtype of the values in the file."""
        return self._raster.dtype

    @property
    def nodata(self) -> float | None:
        """Nodata value of the first band read; None where there is none."""
        return self._info.nodata[self.band_indexes[0] - 1]

    @property
    def stretch(self) -> Stretch:
        """The mapping to 0-255 of each band read; found on first use, then the same for every chip.

        Raises:
            SceneError: no pixel could be read to find it from.
        """
        return self._unique_stretch().take(self._order)

    def is_empty(self, box: Box) -> bool:
        """Whether a window of the working grid is known to have no valid pixel, without decoding it.

        False says nothing: ``read`` tells. Safe from any thread.
        """
        try:
            return self._raster.is_empty(box.shifted(self._crop.x0, self._crop.y0))
        except _READ_ERRORS:
            return False  # reading says what is wrong

    def read(self, box: Box) -> Chip:
        """Read a window of the working grid; safe from any thread.

        Args:
            box: inside the working grid.

        Returns:
            image (bands, h, w): uint8 after the stretch, or raw values (uint8 and uint16 as they are, others float32);
            0 where not valid. valid (h, w): False for nodata, mask 0, alpha 0, NaN, infinity, outside the area of
            interest.

        Raises:
            WindowError: the window cannot be decoded; the message names file and window.
            ValueError: a box that leaves the grid.
        """
        if not Box(0, 0, self.grid.width, self.grid.height).contains(box):
            msg = f"{box} leaves the scene of {self.grid.width} x {self.grid.height} pixels"
            raise ValueError(msg)
        inside = None if self._area is None else self._area.valid(box)
        if inside is not None and not inside.any():
            return self._empty_chip(box.height, box.width)
        image, valid = self._assemble(box.shifted(self._crop.x0, self._crop.y0), box)
        if inside is not None:
            image[:, ~inside] = 0
            valid = valid & inside
        return Chip(image=image, valid=valid, gsd=self._gsd)

    def read_thumbnail(self, max_side: int) -> Chip:
        """Read the whole working grid, averaged so that its longer side is at most ``max_side`` pixels; never enlarged.

        Raises:
            SceneError: it cannot be decoded.
        """
        if max_side < 1:
            msg = f"a thumbnail of {max_side} pixels is not possible: give 1 or more"
            raise UsageError(msg)
        factor = max(1.0, max(self.grid.height, self.grid.width) / max_side)
        rows, cols = max(1, round(self.grid.height / factor)), max(1, round(self.grid.width / factor))
        whole = Box(0, 0, self.grid.width, self.grid.height)
        if factor == 1.0:
            return self.read(whole)
        try:
            raw, raw_valid = self._raster.read_decimated(self._crop, rows, cols)
        except _READ_ERRORS as error:
            msg = f"{self.location} cannot be read for an overview: {self._why(error)}"
            raise SceneError(msg) from error
        image, valid = self._finish(raw, raw_valid)
        inside = None if self._area is None else self._area.valid(whole, (rows, cols))
        seen = np.ones((rows, cols), np.bool_) if valid is None else valid
        if inside is not None:
            seen = seen & inside
        shown = image[list(self._order)]
        shown[:, ~seen] = 0
        return Chip(image=shown, valid=seen, gsd=None if self._gsd is None else self._gsd * factor)

    def fingerprint(self) -> dict[str, Any]:
        """Return JSON values that change when the scene does: for files size, time of change and a hash of the ends."""
        return self._info.fingerprint()

    def refuse_if_changed(self, since: Mapping[str, Any]) -> None:
        """Refuse a scene that was written anew while it was read: some chips would show the old one, some the new.

        Args:
            since: an earlier ``fingerprint``.

        Raises:
            SceneError: it has changed.
        """
        if self._info.has_changed(since):
            msg = f"{self.location} changed while it was read: run again, with --overwrite where something was kept"
            raise SceneError(msg)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values that describe the scene, for the run record and ``info``; reads no pixel."""
        grid, source, options = self.grid, self.source_grid, self._options
        nodata = self.nodata
        aoi = options.aoi
        return {
            "path": self.location,
            "driver": self._info.driver,
            "width": grid.width,
            "height": grid.height,
            "crs": None if grid.crs is None else grid.crs.to_string(),
            "affine": list(grid.affine)[:6],
            "bounds": list(grid.bounds),
            "gsd_m": self._gsd,
            "file_width": source.width,
            "file_height": source.height,
            "file_affine": list(source.affine)[:6],
            "file_gsd_m": source.gsd,
            "file_bands": self._info.count,
            **({"band_names": list(self._info.band_names)} if self._info.band_names else {}),
            "bands": list(self.band_indexes),
            "dtype": str(self.dtype),
            "nodata": nodata if nodata is None or math.isfinite(nodata) else str(nodata),
            "always_valid": self._raster.always_valid and self._area is None,
            "stretch_asked": options.stretch,
            "value_range": options.value_range,
            "gsd_asked": options.gsd,
            "bbox": None if options.bbox is None else list(options.bbox),
            "aoi": None
            if aoi is None
            else str(aoi)
            if hasattr(aoi, "__fspath__") or isinstance(aoi, str)
            else "geometry",
            "fingerprint": self.fingerprint(),
        }

    def limit_cache(self, capacity: int) -> None:
        """Keep at most so many bytes of decoded tiles; with little, blocks are decoded more than once."""
        self._tiles.limit(capacity)

    def close(self) -> None:
        """Close files and forget decoded tiles; reading again opens them again."""
        self._raster.close()
        self._tiles.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[type[Scene], tuple[SceneOptions, Stretch | None]]:
        # The area travels as it was read: its file may lie on this machine only.
        return Scene, (replace(self._options, source=self._info.recipe, aoi=self.aoi_geometry), self._stretch)

    def __repr__(self) -> str:
        return f"<Scene {self.name} {self.grid.width} x {self.grid.height} bands {self.band_indexes}>"

    def _unique_stretch(self) -> Stretch:
        with self._stretch_lock:
            if self._stretch is None:
                rule = self._rule.settled(self.dtype)
                if rule.kind == "percentile":
                    try:
                        sample, valid = self._raster.sample()
                    except _READ_ERRORS as error:
                        why = self._info.reason(error)
                        msg = f"{self.location} cannot be read to find its stretch: {why}; give minmax:LOW,HIGH"
                        raise SceneError(msg) from error
                else:
                    sample, valid = np.zeros((len(self._raster.bands), 1, 1), self.dtype), None
                self._stretch = estimate_stretch(rule, sample, valid)
                logger.debug("%s: stretch %s", self.name, self._stretch)
            return self._stretch

    def _make_cache(self) -> TileCache:
        grid, raster = self._raster.grid, self._raster
        item = 1 if self._options.value_range == "uint8" else self.dtype.itemsize
        tile, capacity = cache_layout(
            grid.width,
            block=self._info.block if raster.factors is None else None,
            pixel_bytes=len(raster.bands) * item + (0 if raster.always_valid else 1),
        )
        return TileCache(grid.height, grid.width, tile=tile, load=self._load_tile, capacity=capacity)

    def _load_tile(self, box: Box) -> Tile:
        if self._raster.is_empty(box):
            return Tile(None, None)
        raw, raw_valid = self._raster.read(box)
        if raw_valid is not None and not raw_valid.any():
            return Tile(None, None)
        image, valid = self._finish(raw, raw_valid)
        return Tile(image, valid)

    def _finish(
        self, raw: NDArray[Any], valid: NDArray[np.bool_] | None
    ) -> tuple[NDArray[Any], NDArray[np.bool_] | None]:
        """Map values as asked and put 0 where not valid. ``raw`` may be changed."""
        if self._options.value_range == "uint8":
            stretch = self._unique_stretch()
            if stretch.kind == "none" and raw.dtype == np.uint8:
                return (raw if valid is None else np.multiply(raw, valid, out=raw)), valid
            return stretch.apply(raw, valid), valid
        image = raw if raw.dtype in (np.uint8, np.uint16, np.float32) else raw.astype(np.float32)
        if valid is not None:
            image[:, ~valid] = 0
        return image, valid

    def _assemble(self, box: Box, asked: Box) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Copy a box of the whole raster together from tiles."""
        image = buffers.SHARED.empty((len(self._order), box.height, box.width), self._out_dtype)
        valid = None if self._raster.always_valid else buffers.SHARED.empty((box.height, box.width), np.bool_)
        with opening.gdal_env():  # entered once, not for every tile
            try:
                for place, tile in self._tiles.tiles(box):
                    self._copy(place, tile, box, image, valid)  # at once, while the tile is in the processor's cache
            except _READ_ERRORS:
                # A tile holds several blocks: the window may need only good ones.
                self._copy(box, self._load_window(box, asked), box, image, valid)
        return image, buffers.all_true((box.height, box.width)) if valid is None else valid

    def _copy(self, place: Box, tile: Tile, box: Box, image: NDArray[Any], valid: NDArray[np.bool_] | None) -> None:
        """Copy what a tile at ``place`` shares with a box into the box's image and validity (None: always valid)."""
        shared = place.intersection(box)
        assert shared is not None  # the cache gives tiles that touch the box
        there = shared.shifted(-place.x0, -place.y0).as_slices()
        here = shared.shifted(-box.x0, -box.y0).as_slices()
        if tile.image is None:
            image[:, *here] = 0
            if valid is not None:
                valid[here] = False
            return
        if self._in_order:
            image[:, *here] = tile.image[:, *there]
        else:
            for index, source in enumerate(self._order):
                image[index, *here] = tile.image[source, *there]
        if valid is not None:
            valid[here] = True if tile.valid is None else tile.valid[there]

    def _load_window(self, box: Box, asked: Box) -> Tile:
        try:
            return self._load_tile(box)
        except _READ_ERRORS as error:
            place = f"x {asked.x0}-{asked.x1}, y {asked.y0}-{asked.y1}"
            msg = f"{self.location}: window {place} cannot be read: {self._why(error)}"
            raise WindowError(msg) from error

    def _why(self, error: Exception) -> str:
        why = self._info.reason(error)
        return f"{why}; check that the file is complete" if self.path is not None else why

    @property
    def _out_dtype(self) -> np.dtype[Any]:
        if self._options.value_range == "uint8":
            return np.dtype(np.uint8)
        return self.dtype if self.dtype in (np.uint8, np.uint16) else np.dtype(np.float32)

    def _empty_chip(self, height: int, width: int) -> Chip:
        image = np.zeros((len(self._order), height, width), self._out_dtype)
        valid = buffers.SHARED.empty((height, width), np.bool_)
        valid[:] = False
        return Chip(image=image, valid=valid, gsd=self._gsd)


def inspect_source(source: str | os.PathLike[str] | DataArray | SourceInfo) -> SourceInfo:
    """Check what a scene is to be made of; read no pixel.

    Raises:
        SceneError: anything that makes it unusable.
    """
    if isinstance(source, SourceInfo):  # checked before, as a pickled scene brings it
        return source
    refuse_kind(source)
    if not isinstance(source, str | os.PathLike):
        from rsgeoseg.geo.arrays import inspect_array  # noqa: PLC0415  (xarray takes a second to import)

        return inspect_array(source)
    if is_remote(source):
        return inspect_remote(source)
    return inspect_raster(source)


def refuse_kind(source: object) -> None:
    """Refuse what no scene can be made of, by its type.

    Raises:
        SceneError: the message says what to give.
    """
    kind = type(source).__name__
    if isinstance(source, str | os.PathLike):
        return
    if type(source).__module__.partition(".")[0] != "xarray":
        msg = (
            f"a {kind} is no scene: give a path, an address, an xarray DataArray (of an array:"
            ' xarray.DataArray(values, dims=("band", "y", "x"))), or an open Scene'
        )
        raise SceneError(msg)
    if kind != "DataArray":
        msg = f'an xarray {kind} is no scene: pick a variable, data["NAME"], or data.to_array("band")'
        raise SceneError(msg)
