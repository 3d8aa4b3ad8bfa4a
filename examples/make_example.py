"""Make the example scene again: ``harbour_town.tif``, a cloud-optimised GeoTIFF drawn by ``rsgeoseg.testing.scenes``.

    python examples/make_example.py [--out examples/harbour_town.tif]

The scene is invented; the objects are drawn like those of aerial images. ``harbour_town_truth.gpkg`` beside it holds
the true polygons.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import rasterio
from rasterio.shutil import copy

from rsgeoseg.testing.scenes import generate_scene

SIDE = 2048
SEED = 20
QUALITY = 90


def make_example(out: Path, *, side: int = SIDE, seed: int = SEED) -> None:
    """Write the scene (JPEG in YCbCr, with overviews) and its truth."""
    with tempfile.TemporaryDirectory() as scratch:
        plain = Path(scratch) / "plain.tif"
        generate_scene(plain, height=side, width=side, seed=seed, truth=out.with_name(f"{out.stem}_truth.gpkg"))
        with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
            copy(
                plain, out, driver="COG", compress="JPEG", quality=QUALITY, blocksize=512, overview_resampling="average"
            )


def main() -> None:
    """Write the example where the user wants it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("harbour_town.tif"))
    args = parser.parse_args()
    make_example(args.out)
    print(f"{args.out}: {args.out.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
