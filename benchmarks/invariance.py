"""Does the map depend on where the grid of chips happens to lie?

    python benchmarks/invariance.py [SCENE] [--model rsprompter-query] [--weights ...] [--size 3072]

The scene is run as it is, and once more inside a frame without data that shifts every chip by half a step. Objects with
a score of at least 0.5 in one result should have a partner of the same class with IoU of at least 0.5 in the other.
Without SCENE a generated one is used.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import rasterio
import shapely
from affine import Affine
from rasterio.windows import Window

import rsgeoseg
from rsgeoseg.testing.scenes import generate_scene

if TYPE_CHECKING:
    import geopandas

CONFIDENT = 0.5
SAME = 0.5


def shifted_copy(scene: Path, copy: Path, shift: int) -> None:
    """Write the scene with ``shift`` pixels without data above and to the left of it."""
    with rasterio.open(scene) as source:
        profile = {
            "driver": "GTiff", "count": source.count, "dtype": source.dtypes[0], "crs": source.crs, "tiled": True,
            "height": source.height + shift, "width": source.width + shift, "compress": "deflate",
            "transform": source.transform * Affine.translation(-shift, -shift),
        }  # fmt: skip
        window = Window(shift, shift, source.width, source.height)
        with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(copy, "w", **profile) as target:
            target.write(source.read(), window=window)
            target.write_mask(np.full((source.height, source.width), 255, np.uint8), window=window)


def matched_share(found: geopandas.GeoDataFrame, other: geopandas.GeoDataFrame) -> tuple[int, int]:
    """Count confident objects of one result, and those with a partner in the other."""
    confident = found[found.score >= CONFIDENT]
    tree = shapely.STRtree(other.geometry.to_numpy())
    partners = 0
    for geometry, name in zip(confident.geometry, confident.class_name, strict=True):
        near = other.iloc[tree.query(geometry, predicate="intersects")]
        near = near[near.class_name == name].geometry
        common = near.intersection(geometry).area
        partners += bool((common / near.union(geometry).area >= SAME).any())
    return len(confident), partners


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scene", nargs="?", type=Path)
    parser.add_argument("--model", default="rsprompter-query")
    parser.add_argument("--weights")
    parser.add_argument("--size", type=int, default=3072, help="side of the generated scene")
    args = parser.parse_args()
    model = rsgeoseg.load_model(args.model, weights=args.weights)
    with tempfile.TemporaryDirectory() as folder:
        scene = args.scene
        if scene is None:
            scene = Path(folder) / "scene.tif"
            generate_scene(scene, height=args.size, width=args.size, seed=7)
        shift = (model.spec.chip_size - model.spec.overlap) // 2
        copy = Path(folder) / "shifted.tif"
        shifted_copy(scene, copy, shift)
        # a partner may be a little fainter: look for it below the score that counts
        first, second = (rsgeoseg.run(path, model, score_threshold=CONFIDENT / 2) for path in (scene, copy))
    total, partners = np.add(matched_share(first, second), matched_share(second, first))
    share = partners / max(total, 1)
    print(f"grid shifted by {shift} px: {partners} of {total} confident objects have a partner: {share:.1%}")


if __name__ == "__main__":
    main()
