"""What a scene reads from: the interface that raster files and arrays share, and the rules that both keep."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np

from rsgeoseg.errors import SceneError, UsageError
from rsgeoseg.geo import opening
from rsgeoseg.geo.windows import Box

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from rasterio.enums import ColorInterp

    from rsgeoseg.geo.grid import GeoGrid

Pixels = tuple["NDArray[Any]", "NDArray[np.bool_] | None"]
"""(bands, h, w) in the source's dtype; (h, w) validity, None where all are valid."""

WHOLE_SAMPLE_PIXELS = 8192 * 8192
"""Without overviews a decimated read decodes everything; larger scenes are sampled at 16 x 16 places instead."""
_LATTICE = 16
_LATTICE_SIDE = 128


class PixelReader(Protocol):
    """Some bands of a source, at its own pixels or resampled; every method is safe from any thread.

    A reader raises one of ``opening.READ_ERRORS`` where pixels cannot be read.
    """

    @property
    def grid(self) -> GeoGrid:
        """The source's grid, resampled."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Dtype of the pixels, one for all bands."""

    @property
    def bands(self) -> Sequence[int]:
        """Band numbers from 1, each once."""

    @property
    def factors(self) -> tuple[float, float] | None:
        """New pixel size over the source's, x and y; None = the source's own pixels."""

    @property
    def always_valid(self) -> bool:
        """Whether every pixel has data, by the header alone."""

    def is_empty(self, box: Box) -> bool:
        """Whether a box is known to have no valid pixel without decoding it."""

    def read(self, box: Box) -> Pixels:
        """Read a box of the grid. The image may be changed by the caller."""

    def read_decimated(self, box: Box, rows: int, cols: int) -> Pixels:
        """Read a box of the grid averaged into rows x cols pixels."""

    def sample(self) -> Pixels:
        """Read enough pixels to find a stretch, in no particular arrangement; the same ones always."""

    def close(self) -> None:
        """Let go of files and memory; reading again takes them again."""


@runtime_checkable
class SourceInfo(Protocol):
    """What is known of a source before a pixel is read, checked."""

    @property
    def location(self) -> str:
        """How messages and records name it: an absolute path, or what stands for one."""

    @property
    def name(self) -> str:
        """Short name."""

    @property
    def file(self) -> Path | None:
        """Absolute path, where it is a file of this machine."""

    @property
    def files(self) -> tuple[Path, ...]:
        """Files of this machine that it reads, as far as it knows them."""

    @property
    def driver(self) -> str:
        """Name of what decodes it."""

    @property
    def grid(self) -> GeoGrid:
        """Its own grid."""

    @property
    def count(self) -> int:
        """Number of bands."""

    @property
    def nodata(self) -> tuple[float | None, ...]:
        """Nodata value of each band."""

    @property
    def colors(self) -> tuple[ColorInterp, ...]:
        """What each band shows."""

    @property
    def band_names(self) -> tuple[str, ...]:
        """Names of the bands; empty where they have none."""

    @property
    def block(self) -> tuple[int, int] | None:
        """(rows, columns) that are decoded together; None = any pixel alone."""

    @property
    def recipe(self) -> Any:
        """What opens it again, in any process and folder."""

    def reader(self, bands: tuple[int, ...], gsd: float | None) -> PixelReader:
        """Return the pixels of some bands (from 1, each once), resampled to a gsd in metres where one is given.

        Raises:
            SceneError, UsageError: it cannot be resampled so.
        """

    def fingerprint(self) -> dict[str, Any]:
        """Return JSON values that change when the pixels or the grid do."""

    def has_changed(self, since: Mapping[str, Any]) -> bool:
        """Tell whether it is known to be another one than when this fingerprint was taken; reads no values."""

    def reason(self, error: Exception) -> str:
        """Return why reading failed, in one line."""


def resampling_factors(info: SourceInfo, gsd: float | None) -> tuple[float, float] | None:
    """Return new over old pixel size in x and y for a gsd in metres; None where nothing changes.

    Raises:
        UsageError: not a positive number.
        SceneError: the scene does not know its metres.
    """
    if gsd is None:
        return None
    if not math.isfinite(gsd) or gsd <= 0:
        msg = f"gsd {gsd} is not usable: give metres per pixel, more than 0"
        raise UsageError(msg)
    size = info.grid.pixel_size
    if size is None:
        msg = (
            f"{info.location} has no CRS in known units, so it cannot be resampled to {gsd:g} m per pixel:"
            " leave out gsd"
        )
        raise SceneError(msg)
    factors = gsd / size[0], gsd / size[1]
    return None if all(math.isclose(factor, 1.0, rel_tol=1e-4) for factor in factors) else factors


def resampled_grid(info: SourceInfo, factors: tuple[float, float] | None) -> GeoGrid:
    """Return a source's grid with pixels larger by the two factors.

    Raises:
        SceneError: more pixels than a scene can have.
    """
    grid = info.grid
    if factors is None:
        return grid
    # Rounding keeps the centre of every new pixel inside the old raster.
    width, height = max(1, round(grid.width / factors[0])), max(1, round(grid.height / factors[1]))
    if width * height > opening.MAX_PIXELS:
        msg = f"{info.location} would have {width} x {height} pixels at that size: give a larger gsd"
        raise SceneError(msg)
    return grid.resampled(height, width, *factors)


def sample_places(height: int, width: int) -> Iterator[Box]:
    """Yield the 16 x 16 small boxes of a huge raster at which it is sampled."""
    rows, cols = min(_LATTICE_SIDE, height), min(_LATTICE_SIDE, width)
    for i in range(_LATTICE):
        for j in range(_LATTICE):
            y = (height - rows) * (2 * i + 1) // (2 * _LATTICE)
            x = (width - cols) * (2 * j + 1) // (2 * _LATTICE)
            yield Box(x, y, x + cols, y + rows)


def valid_pixels(
    image: NDArray[Any], mask: NDArray[np.bool_] | None, nodata: Sequence[float | None] | None
) -> NDArray[np.bool_] | None:
    """Find the valid pixels: not nodata in every band, not masked, and in no band NaN or infinite.

    Args:
        image: (bands, h, w).
        mask: (h, w) False where the source says so; it may be changed. None = nowhere.
        nodata: of each band, where all bands have one; else None.

    Returns:
        (h, w), or None where all are valid.
    """
    valid = mask
    if nodata is not None:
        for band, value in zip(image, nodata, strict=True):
            has_data = _differs(band, value)
            valid = has_data if valid is None else np.logical_or(valid, has_data, out=valid)
            if valid.all():  # one band is enough
                break
    if not np.issubdtype(image.dtype, np.integer):
        finite = np.isfinite(image).all(axis=0)
        valid = finite if valid is None else valid & finite
    return None if valid is None or valid.all() else valid


def _differs(band: NDArray[Any], nodata: float | None) -> NDArray[np.bool_]:
    """Where a band is not nodata; everywhere if its dtype cannot even hold the value."""
    if nodata is None:
        return np.ones(band.shape, np.bool_)
    if np.issubdtype(band.dtype, np.integer):
        limits = np.iinfo(band.dtype)
        if not float(nodata).is_integer() or not limits.min <= nodata <= limits.max:
            return np.ones(band.shape, np.bool_)
        same: NDArray[np.bool_] = band != band.dtype.type(int(nodata))
        return same
    if math.isnan(nodata):
        numbers: NDArray[np.bool_] = ~np.isnan(band)
        return numbers
    with np.errstate(over="ignore"):
        different: NDArray[np.bool_] = band != band.dtype.type(nodata)
    return different
