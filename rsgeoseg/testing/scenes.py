"""Georeferenced scenes of any size with exact instance truth, drawn by blocks and repeatable from a seed.

Objects of ten classes stand on varied ground. A pixel depends on seed, scene size and place only: any block size and
any window give the same picture and the same truth. Truth masks are 4-connected, without holes, and never touch.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import rasterio
from affine import Affine
from rasterio.windows import Window as RasterWindow

from rsgeoseg.errors import UsageError
from rsgeoseg.testing.render import draw_ids, draw_scene
from rsgeoseg.testing.things import TEN_CLASSES
from rsgeoseg.testing.truth import SceneTruth, TrueObject

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["TEN_CLASSES", "SceneTruth", "TrueObject", "generate_scene"]

_CACHE_BYTES = 64 << 20
"""GDAL's block cache while writing."""


def _check(height: int, width: int, density: float, classes: Sequence[str], block: int) -> None:
    if height < 1 or width < 1 or density < 0:
        msg = f"a scene needs height, width >= 1 and density >= 0, got {height}, {width} and {density}"
        raise UsageError(msg)
    if block < 16 or block % 16:
        msg = f"block {block} cannot be a TIFF tile; use a multiple of 16"
        raise UsageError(msg)
    unknown = sorted(set(classes) - set(TEN_CLASSES))
    if unknown or not classes or len(set(classes)) != len(classes):
        msg = f"classes must be different names of {', '.join(TEN_CLASSES)}; got {', '.join(classes) or 'none'}"
        raise UsageError(msg)


def generate_scene(
    path: str | Path,
    *,
    height: int,
    width: int,
    seed: int = 0,
    density: float = 20.0,
    classes: Sequence[str] = TEN_CLASSES,
    gsd: float = 0.5,
    crs: str | None = "EPSG:32631",
    origin: tuple[float, float] = (500_000.0, 5_400_000.0),
    block: int = 512,
    truth: str | Path | None = None,
    oracle_ids: bool = False,
    tile: int = 256,
) -> SceneTruth:
    """Write a scene as a tiled deflate GeoTIFF (3 bands, uint8), block by block.

    Objects keep the pixel sizes of aerial benchmark images whatever the ``gsd``.

    Args:
        path: the GeoTIFF to write; replaced where it exists.
        height: pixels.
        width: pixels.
        seed: >= 0; the same seed gives the same scene.
        density: objects wanted per megapixel; above about 25 some cells are full and hold fewer.
        classes: names out of ``TEN_CLASSES``; labels index this sequence.
        gsd: pixel side in CRS units.
        crs: coordinate reference system, None for none.
        origin: world x y of the scene's upper-left corner.
        block: side of the blocks that are drawn at once, pixels; changes memory, never the result.
        truth: also write the truth polygons to this GeoPackage.
        oracle_ids: write the 24-bit instance ids in place of colours (for segmenters that read the answer).
        tile: side of the TIFF's tiles, pixels.

    Returns:
        The truth.

    Raises:
        UsageError: a size, density, class or block that cannot be.
    """
    _check(height, width, density, classes, tile)
    _check(height, width, density, classes, block)
    affine = Affine(gsd, 0.0, origin[0], 0.0, -gsd, origin[1])
    answer = SceneTruth(Path(path), height, width, seed, density, tuple(classes), affine, crs)
    if answer.last_instance() >= 1 << 24:
        msg = f"a scene of {height} x {width} pixels at density {density} needs ids beyond 24 bits; make it smaller"
        raise UsageError(msg)
    profile = {
        "driver": "GTiff", "height": height, "width": width, "count": 3, "dtype": "uint8", "crs": crs,
        "transform": affine, "tiled": True, "blockxsize": tile, "blockysize": tile, "compress": "deflate",
        "zlevel": 1, "interleave": "pixel", "photometric": "rgb", "bigtiff": "if_safer",
    }  # fmt: skip
    draw = draw_ids if oracle_ids else draw_scene
    with rasterio.Env(GDAL_CACHEMAX=_CACHE_BYTES), rasterio.open(path, "w", **profile) as sink:
        for y0 in range(0, height, block):
            for x0 in range(0, width, block):
                box = (x0, y0, min(x0 + block, width), min(y0 + block, height))
                pixels = draw(answer, box)
                sink.write(pixels, window=RasterWindow(x0, y0, box[2] - x0, box[3] - y0))
    if truth is not None:
        answer.write(truth)
    return answer
