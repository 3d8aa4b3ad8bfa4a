"""Small rasters made in code."""

from pathlib import Path

import numpy as np
import rasterio
from affine import Affine

UTM = "EPSG:32631"


def write_raster(path, bands, *, crs=UTM, affine=None, tile=64, **profile):
    """Write a tiled GeoTIFF from (bands, h, w)."""
    count, height, width = bands.shape
    affine = affine or Affine(0.5, 0, 500_000, 0, -0.5, 5_400_000)
    layout = {"tiled": True, "blockxsize": tile, "blockysize": tile} if min(height, width) >= tile else {}
    with rasterio.open(
        path, "w", driver="GTiff", height=height, width=width, count=count, dtype=bands.dtype, crs=crs,
        transform=affine, **layout, **profile,
    ) as sink:  # fmt: skip
        sink.write(bands)
    return Path(path)


def draw_ids(height, width, *, seed=0, count=12, largest=60):
    """Rectangles and rings that never touch, ids from 1."""
    rng = np.random.default_rng(seed)
    ids = np.zeros((height, width), np.int32)
    number = 0
    for _ in range(count * 8):
        h, w = rng.integers(3, largest, 2)
        y, x = rng.integers(0, max(height - h, 1)), rng.integers(0, max(width - w, 1))
        if ids[max(y - 1, 0) : y + h + 1, max(x - 1, 0) : x + w + 1].any() or number == count:
            continue
        number += 1
        ids[y : y + h, x : x + w] = number
        if min(h, w) > 12:
            ids[y + 4 : y + h - 4, x + 4 : x + w - 4] = 0
    return ids
