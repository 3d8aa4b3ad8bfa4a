"""Pixels of a DataArray as a scene wants them: any box, any thread, full size, resampled or decimated."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from affine import Affine
from rasterio.enums import Resampling
from rasterio.warp import reproject

from rsgeoseg.geo.array_values import ArrayValues, even_block
from rsgeoseg.geo.source import (
    WHOLE_SAMPLE_PIXELS,
    PixelReader,
    Pixels,
    resampled_grid,
    resampling_factors,
    sample_places,
    valid_pixels,
)
from rsgeoseg.geo.windows import Box

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from rsgeoseg.geo.arrays import ArrayInfo

_WARP_CRS = "EPSG:3857"
_AWAY = 1000
"""Away from the origin, where GDAL takes a north-up affine with pixels of 1 for no georeference at all."""
_MARGIN = 2
"""Pixels around a window that interpolation looks at."""
_PIECE = 1024
"""Resampled in pieces that come from about so many rows and columns, so that memory does not grow with the gsd."""
_STRIP_ROWS = 256


class ArrayReader:
    """Bands of a DataArray, at its own pixels or resampled, with the results that a file of its values gives.

    Args:
        info: the array.
        bands: band numbers from 1, each once.
        gsd: metres per pixel; None = the array's own pixels.
    """

    def __init__(self, info: ArrayInfo, bands: tuple[int, ...], gsd: float | None = None) -> None:
        self.info, self.bands = info, list(bands)
        self.factors = resampling_factors(info, gsd)
        self.grid = resampled_grid(info, self.factors)
        self._values = ArrayValues(info.values, [band - 1 for band in bands])
        self.dtype: np.dtype[Any] = self._values.dtype
        self._is_float = not np.issubdtype(self.dtype, np.integer)
        nodata = [info.nodata[band - 1] for band in bands]
        self._nodata = None if None in nodata else nodata
        # A scene's tiles hold whole blocks only where blocks are alike; otherwise tiles share blocks.
        own_blocks = self._values.edges is None or even_block(self._values.edges) is not None
        self._load = self._values.load if own_blocks else self._values.shared

    @property
    def always_valid(self) -> bool:
        """Whether every pixel has data, by nodata and dtype alone."""
        return self._nodata is None and not self._is_float

    def is_empty(self, _box: Box) -> bool:
        """Not known before it is loaded."""
        return False

    def read(self, box: Box) -> Pixels:
        """Read a box of the grid.

        Raises:
            RasterioIOError: its values cannot be loaded.
        """
        if self.factors is None:
            image = self._load(box)
        else:
            steps = self.factors
            way = Resampling.average if max(steps) > 1 else Resampling.bilinear
            image = self._warp((box.x0 * steps[0], box.y0 * steps[1]), steps, (box.height, box.width), way)
        return image, valid_pixels(image, None, self._nodata)

    def read_decimated(self, box: Box, rows: int, cols: int) -> Pixels:
        """Read a box of the grid averaged into rows x cols pixels.

        Raises:
            RasterioIOError: its values cannot be loaded.
        """
        fx, fy = self.factors or (1.0, 1.0)
        width, height = self.info.grid.width, self.info.grid.height
        x0, y0 = min(box.x0 * fx, width - 1), min(box.y0 * fy, height - 1)
        steps = min(box.width * fx, width - x0) / cols, min(box.height * fy, height - y0) / rows
        image = self._warp((x0, y0), steps, (rows, cols), Resampling.average)
        return image, valid_pixels(image, None, self._nodata)

    def sample(self, max_side: int = 2048) -> Pixels:
        """Read enough pixels to find a stretch, the same as of a file: every n-th, or 16 x 16 places of a huge one.

        Raises:
            RasterioIOError: its values cannot be loaded.
        """
        height, width = self.info.grid.height, self.info.grid.width
        if height * width <= WHOLE_SAMPLE_PIXELS:
            step = max(1.0, max(height, width) / max_side)
            image = self._nearest(*(_nearest(size, max(1, round(size / step))) for size in (height, width)))
        else:
            images = [self._values.shared(place) for place in sample_places(height, width)]
            image = np.concatenate(images, axis=1)
        return image, valid_pixels(image, None, self._nodata)

    def close(self) -> None:
        """Forget loaded blocks."""
        self._values.clear()

    def _nearest(self, rows: NDArray[np.intp], cols: NDArray[np.intp]) -> NDArray[Any]:
        """Pick pixels at rows and columns; each block is loaded once, and only one is in memory at a time."""
        height, width = self.info.grid.height, self.info.grid.width
        row_edges, col_edges = self._values.edges or ([0, height], [0, width])
        if self._values.edges is None:  # nothing to load: strips keep the copy of a window small
            row_edges = [*range(0, height, _STRIP_ROWS), height]
        image = np.empty((len(self.bands), len(rows), len(cols)), self.dtype)
        for y0, y1 in pairwise(row_edges):
            here_y = slice(*np.searchsorted(rows, (y0, y1)).tolist())
            for x0, x1 in pairwise(col_edges):
                here_x = slice(*np.searchsorted(cols, (x0, x1)).tolist())
                there = np.ix_(np.arange(len(self.bands)), rows[here_y] - y0, cols[here_x] - x0)
                if there[1].size and there[2].size:
                    image[:, here_y, here_x] = self._values.load(Box(x0, y0, x1, y1))[there]
        return image

    def _warp(
        self, origin: tuple[float, float], steps: tuple[float, float], shape: tuple[int, int], way: Resampling
    ) -> NDArray[Any]:
        """Resample with GDAL, in pieces.

        Args:
            origin: x y of the outer corner of the upper-left new pixel, in the array's pixels.
            steps: width and height of a new pixel, in the array's pixels.
            shape: rows and columns of new pixels.
            way: of resampling.
        """
        image = np.empty((len(self.bands), *shape), self.dtype)
        high, wide = (max(1, int(_PIECE / step)) for step in (steps[1], steps[0]))
        for top in range(0, shape[0], high):
            for left in range(0, shape[1], wide):
                piece = image[:, top : top + high, left : left + wide]
                corner = origin[0] + left * steps[0], origin[1] + top * steps[1]
                piece[...] = self._warp_piece(corner, steps, piece.shape[1:], way)
        return image

    def _warp_piece(
        self, origin: tuple[float, float], steps: tuple[float, float], shape: tuple[int, ...], way: Resampling
    ) -> NDArray[Any]:
        (x, y), (step_x, step_y) = origin, steps
        window = Box(
            max(0, math.floor(x) - _MARGIN),
            max(0, math.floor(y) - _MARGIN),
            min(self.info.grid.width, math.ceil(x + shape[1] * step_x) + _MARGIN),
            min(self.info.grid.height, math.ceil(y + shape[0] * step_y) + _MARGIN),
        )
        nodata = self._nodata[0] if self._nodata is not None else math.nan if self._is_float else None
        image = np.full((len(self.bands), *shape), 0 if nodata is None else nodata, self.dtype)
        # Pixel coordinates on both sides, so that rotation, shear and lon/lat play no part in the resampling.
        reproject(
            self._values.shared(window),
            image,
            src_crs=_WARP_CRS,
            dst_crs=_WARP_CRS,
            src_transform=Affine(1, 0, _AWAY + window.x0, 0, -1, _AWAY - window.y0),
            dst_transform=Affine(step_x, 0, _AWAY + x, 0, -step_y, _AWAY - y),
            src_nodata=nodata,
            dst_nodata=nodata,
            resampling=way,
            tolerance=0.001,  # as for files
        )
        return image


def _satisfies(reader: ArrayReader) -> PixelReader:
    return reader  # checked by mypy


def _nearest(size: int, count: int) -> NDArray[np.intp]:
    """Pixels that GDAL reads for a line of ``size`` pixels at ``count`` places."""
    places: NDArray[np.intp] = np.floor((np.arange(count) + 0.5) * (size / count) + 1e-10).astype(np.intp)
    return places
