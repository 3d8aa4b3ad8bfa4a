"""Pixels of a raster file as they are: any box, any thread, full size, resampled or decimated, with their validity."""

from __future__ import annotations

import hashlib
import logging
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from affine import Affine
from rasterio.enums import ColorInterp, MaskFlags, Resampling
from rasterio.vrt import WarpedVRT
from rasterio.windows import Window as RasterWindow

from rsgeoseg.errors import SceneError
from rsgeoseg.geo import buffers, opening
from rsgeoseg.geo.blank import BlankBlocks
from rsgeoseg.geo.georef import read_grid
from rsgeoseg.geo.handles import HandlePool
from rsgeoseg.geo.source import (
    WHOLE_SAMPLE_PIXELS,
    Pixels,
    SourceInfo,
    resampled_grid,
    resampling_factors,
    sample_places,
    valid_pixels,
)
from rsgeoseg.geo.tiles import TILE_SIDE
from rsgeoseg.geo.vrt import SourceGuard, VrtSource, vrt_sources
from rsgeoseg.geo.windows import Box

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray
    from rasterio.io import DatasetReader

    from rsgeoseg.geo.grid import GeoGrid
    from rsgeoseg.geo.remote import RemoteFile

logger = logging.getLogger(__name__)

_WARP_CRS = "EPSG:3857"
"""Stands for "pixels" on both sides of a resampling: any projected CRS does, nothing is reprojected."""
_INDIRECT_CACHE_BYTES = (64 << 20, 512 << 20)
"""Least and most of GDAL's block cache where it reads through a VRT or a resampling."""
_HASHED_BYTES = 64 << 10


@dataclass(frozen=True, slots=True, kw_only=True)
class RasterInfo:
    """What a raster's header says, checked."""

    path: Path
    driver: str
    grid: GeoGrid
    count: int
    """Number of bands, alpha included."""
    dtypes: tuple[str, ...]
    nodata: tuple[float | None, ...]
    flags: tuple[frozenset[MaskFlags], ...]
    colors: tuple[ColorInterp, ...]
    block: tuple[int, int]
    """(rows, columns) of a block."""
    has_overviews: bool
    sources: tuple[VrtSource, ...]
    """Files that a VRT reads."""

    @property
    def alpha(self) -> int | None:
        """Number of the alpha band, from 1."""
        return self.colors.index(ColorInterp.alpha) + 1 if ColorInterp.alpha in self.colors else None

    @property
    def location(self) -> str:
        """Absolute path."""
        return str(self.path)

    @property
    def name(self) -> str:
        """File name without its folder."""
        return self.path.name

    @property
    def file(self) -> Path | None:
        """Absolute path."""
        return self.path

    @property
    def files(self) -> tuple[Path, ...]:
        """The file, and those that a VRT reads."""
        return self.path, *(source.path for source in self.sources)

    @property
    def band_names(self) -> tuple[str, ...]:
        """None: bands of files are known by their numbers."""
        return ()

    @property
    def settings(self) -> dict[str, Any]:
        """GDAL's settings while it is read, beside those of ``opening.gdal_env``."""
        return {}

    @property
    def recipe(self) -> str:
        """The absolute path, because another process may stand in another folder."""
        return str(self.path)

    def reader(self, bands: tuple[int, ...], gsd: float | None) -> Raster:
        """Return the pixels of some bands, see ``SourceInfo``."""
        return Raster(self, bands, resampling_factors(self, gsd))

    def fingerprint(self) -> dict[str, Any]:
        """Return size, modification time and a hash of the file's ends, which for a VRT covers its sources' too."""
        digest = hashlib.sha256()
        status = self.path.stat()
        with self.path.open("rb") as file:
            digest.update(file.read(_HASHED_BYTES))
            file.seek(max(0, status.st_size - _HASHED_BYTES))
            digest.update(file.read(_HASHED_BYTES))
        for source in dict.fromkeys(source.path for source in self.sources):
            other = source.stat()
            digest.update(f"{source}\0{other.st_size}\0{other.st_mtime_ns}\n".encode())
        return {"bytes": status.st_size, "mtime_ns": status.st_mtime_ns, "sha256_ends": digest.hexdigest()}

    def has_changed(self, since: Mapping[str, Any]) -> bool:
        """Tell whether the file, or one that a VRT reads, is another one or gone."""
        try:
            return self.fingerprint() != dict(since)
        except OSError:
            return True

    def reason(self, error: Exception) -> str:
        """Return GDAL's words in one line."""
        return opening.reason(error, self.path)


def _satisfies(info: RasterInfo) -> SourceInfo:
    return info  # checked by mypy


def inspect_raster(source: str | os.PathLike[str]) -> RasterInfo:
    """Check a path, open it with its one driver, check the header; read no pixel.

    Raises:
        SceneError: anything that makes it unusable.
    """
    path = opening.plain_path(source)
    driver = opening.driver_for(path)
    try:
        sources = vrt_sources(path) if driver == "VRT" else []
        opening.check_sidecars(path)
    except OSError as error:
        msg = f"{path} cannot be read: {error.strerror}; check its permissions"
        raise SceneError(msg) from error
    with opening.open_dataset(path, driver) as dataset:
        try:
            header = read_header(dataset, path, driver, path.stat().st_size)
        except opening.READ_ERRORS as error:
            msg = f"{path} has a damaged header: {opening.reason(error, path)}; fetch it again"
            raise SceneError(msg) from error
    return RasterInfo(path=path, driver=driver, sources=tuple(sources), **header)


def read_header(dataset: DatasetReader, path: Path | RemoteFile, driver: str, size: int) -> dict[str, Any]:
    """Return the fields of a ``RasterInfo`` that a header gives, checked.

    Args:
        dataset: just opened.
        path: for messages.
        driver: that opened it.
        size: bytes of the file.

    Raises:
        SceneError: larger than a scene can be, or without a usable grid.
        opening.READ_ERRORS: the header is damaged.
    """
    opening.check_caps(dataset, path, driver, size)
    rows, cols = dataset.block_shapes[0]
    return {
        "grid": read_grid(dataset, path),
        "count": dataset.count,
        "dtypes": tuple(dataset.dtypes),
        "nodata": tuple(dataset.nodatavals),
        "flags": tuple(frozenset(flags) for flags in dataset.mask_flag_enums),
        "colors": tuple(dataset.colorinterp),
        "block": (rows, cols),
        "has_overviews": bool(dataset.overviews(1)),
    }


class Raster:
    """Bands of a raster file, at the file's own pixels or resampled to larger or smaller ones.

    Args:
        info: the file.
        bands: band numbers from 1, each once.
        factors: new pixel size over old, x and y; None = the file's own pixels.
    """

    def __init__(self, info: RasterInfo, bands: tuple[int, ...], factors: tuple[float, float] | None = None) -> None:
        self.info, self.bands, self.factors = info, list(bands), factors
        self.dtype: np.dtype[Any] = np.result_type(*(info.dtypes[band - 1] for band in bands))
        self.grid = resampled_grid(info, factors)
        flags = [info.flags[band - 1] for band in bands]
        self._nodata = tuple(info.nodata[band - 1] for band in bands)
        self._by_nodata = all(MaskFlags.nodata in flag for flag in flags)
        # A band without a mask is valid everywhere, and one valid band makes a pixel valid.
        self._by_mask = not self._by_nodata and not any(MaskFlags.all_valid in flag for flag in flags)
        self._is_float = not np.issubdtype(self.dtype, np.integer)
        serial = info.driver in opening.SERIAL_DRIVERS
        self._sources = SourceGuard(info.sources)
        settings = {"cache_bytes": self._gdal_cache_bytes(), **info.settings}
        self._files = HandlePool(self._open_file, serial=serial, settings=settings)
        self._blank: BlankBlocks | None = None
        if info.driver == "GTiff" and info.file is not None and factors is None and self._by_nodata:
            self._blank = BlankBlocks(info.file, info.block, self.bands)
        self._pixels = self._files
        if factors is not None:
            self._pixels = HandlePool(self._open_warped, serial=serial, settings=settings)

    @property
    def always_valid(self) -> bool:
        """Whether every pixel has data, by the header alone."""
        return not (self._by_nodata or self._by_mask or self._is_float)

    def is_empty(self, box: Box) -> bool:
        """Whether a box is known to be nodata without decoding it; see `rsgeoseg.geo.blank`.

        Raises:
            opening.READ_ERRORS: the file's table of blocks is damaged.
        """
        if self._blank is None:
            return False
        with self._pixels.handle() as handle:
            return self._blank.cover(handle, box)

    def read(self, box: Box) -> Pixels:
        """Read a box of the raster's grid, all bands in one call.

        Raises:
            opening.READ_ERRORS: a block cannot be read.
        """
        self._sources.check(self._in_file(box))
        window = RasterWindow(box.x0, box.y0, box.width, box.height)
        with self._pixels.handle() as handle:
            image = buffers.SHARED.empty((len(self.bands), box.height, box.width), self.dtype)
            handle.read(self.bands, window=window, out=image)
            mask = self._read_mask(handle, window=window)
            valid = self._valid(image, mask)
            if self._blank is not None and valid is not None and not valid.any():
                self._blank.learn(handle, box)
        return image, valid

    def read_decimated(self, box: Box, rows: int, cols: int) -> Pixels:
        """Read a box of the raster's grid averaged into rows x cols pixels; uses overviews where there are.

        Raises:
            opening.READ_ERRORS: a block cannot be read.
        """
        self._sources.check(self._in_file(box))
        fx, fy = self.factors or (1.0, 1.0)
        width, height = self.info.grid.width, self.info.grid.height
        x0, y0 = min(box.x0 * fx, width - 1), min(box.y0 * fy, height - 1)
        window = RasterWindow(x0, y0, min(box.width * fx, width - x0), min(box.height * fy, height - y0))
        average = {"window": window, "resampling": Resampling.average}
        with self._files.handle() as handle:
            shape = (len(self.bands), rows, cols)
            image = handle.read(self.bands, out_shape=shape, out_dtype=self.dtype.name, **average)
            mask = self._read_mask(handle, out_shape=(rows, cols), **average)
        return image, self._valid(image, mask)

    def sample(self, max_side: int = 2048) -> Pixels:
        """Read enough pixels of the whole file to find a stretch: a decimated read, or 16 x 16 places of a huge file.

        Returns:
            Pixels in no particular arrangement; the same for the same file, always.

        Raises:
            opening.READ_ERRORS: nothing can be read.
        """
        height, width = self.info.grid.height, self.info.grid.width
        if self.info.has_overviews or height * width <= WHOLE_SAMPLE_PIXELS:
            step = max(1.0, max(height, width) / max_side)
            shape = (len(self.bands), max(1, round(height / step)), max(1, round(width / step)))
            self._sources.check()
            with self._files.handle() as handle:
                # Nearest, not average: an average narrows the range of values.
                image = handle.read(self.bands, out_shape=shape, out_dtype=self.dtype.name)
                mask = self._read_mask(handle, out_shape=shape[1:])
            return image, self._valid(image, mask)
        return self._sample_lattice(height, width)

    def close(self) -> None:
        """Close idle handles; reading opens new ones."""
        self._pixels.close()
        self._files.close()

    def _in_file(self, box: Box) -> Box:
        """Return the file's pixels that a box of the grid is made of, with what a resampling sees around them."""
        if self.factors is None:
            return box
        fx, fy = self.factors
        edge_x, edge_y = math.ceil(2 * fx) + 2, math.ceil(2 * fy) + 2
        return Box(
            math.floor(box.x0 * fx) - edge_x,
            math.floor(box.y0 * fy) - edge_y,
            math.ceil(box.x1 * fx) + edge_x,
            math.ceil(box.y1 * fy) + edge_y,
        )

    def _sample_lattice(self, height: int, width: int) -> Pixels:
        images, valids = [], []
        failed: Exception | None = None
        for place in sample_places(height, width):
            window = RasterWindow(place.x0, place.y0, place.width, place.height)
            try:
                self._sources.check(place)
                with self._files.handle() as handle:
                    image = handle.read(self.bands, window=window, out_dtype=self.dtype.name)
                    mask = self._read_mask(handle, window=window)
            except opening.READ_ERRORS as error:
                failed = error
                continue
            valid = self._valid(image, mask)
            images.append(image)
            valids.append(np.ones((place.height, place.width), np.bool_) if valid is None else valid)
        if not images:
            assert failed is not None
            raise failed
        return np.concatenate(images, axis=1), np.concatenate(valids, axis=0)

    def _gdal_cache_bytes(self) -> int:
        """A row of blocks, where GDAL reads blocks that are not the scene's own tiles: under a VRT or a resampling."""
        if self.factors is None and self.info.driver != "VRT":
            return opening.GDAL_CACHE_BYTES
        rows = math.ceil(TILE_SIDE * (1.0 if self.factors is None else self.factors[1])) + self.info.block[0]
        need = rows * self.info.grid.width * len(self.bands) * self.dtype.itemsize
        return min(max(need, _INDIRECT_CACHE_BYTES[0]), _INDIRECT_CACHE_BYTES[1])

    def _read_mask(self, handle: Any, **how: Any) -> NDArray[np.bool_] | None:
        if not self._by_mask:
            return None
        if isinstance(handle, WarpedVRT):
            valid: NDArray[np.bool_] = handle.read(self.info.alpha or handle.count, window=how["window"]) > 0
            return valid
        how.pop("resampling", None)  # masks are not averaged: any value above 0 is valid
        # One mask for all bands is the rule; band by band only where the file has it so.
        shared = any(MaskFlags.per_dataset in self.info.flags[band - 1] for band in self.bands)
        if shared:
            one: NDArray[np.bool_] = handle.read_masks(self.bands[0], **how) > 0
            return one
        if "out_shape" in how:
            how["out_shape"] = (len(self.bands), *how["out_shape"])
        each: NDArray[np.bool_] = (handle.read_masks(self.bands, **how) > 0).any(axis=0)
        return each

    def _valid(self, image: NDArray[Any], mask: NDArray[np.bool_] | None) -> NDArray[np.bool_] | None:
        return valid_pixels(image, mask, self._nodata if self._by_nodata else None)

    def _open_file(self) -> DatasetReader:
        return opening.open_dataset(self.info.path, self.info.driver)

    def _open_warped(self) -> WarpedVRT:
        assert self.factors is not None
        fx, fy = self.factors
        how: dict[str, Any] = {}
        if self._by_nodata:
            how = {"src_nodata": self._nodata[0], "nodata": self._nodata[0]}
        elif self._by_mask and self.info.alpha is None:
            how = {"add_alpha": True}
        elif self._is_float:
            how = {"src_nodata": math.nan, "nodata": math.nan}
        # Pixel coordinates on both sides, so that rotation, shear and lon/lat play no part in the resampling.
        return WarpedVRT(
            self._open_file(),
            src_crs=_WARP_CRS,
            crs=_WARP_CRS,
            src_transform=Affine.scale(1, -1),
            transform=Affine.scale(fx, -fy),
            width=self.grid.width,
            height=self.grid.height,
            resampling=Resampling.average if max(fx, fy) > 1 else Resampling.bilinear,
            tolerance=0.001,  # 0 fails in rasterio 1.4.4; an affine is met exactly anyway
            **how,
        )
