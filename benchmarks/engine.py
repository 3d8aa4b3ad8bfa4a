"""The engine alone: an oracle segmenter on a tiled deflate GeoTIFF with 20 objects per Mpx, GeoPackage out.

    python benchmarks/engine.py [--size 8192] [--repeat 2]

The oracle reads each object's id off the pixels, so almost all time is reading, planning, stitching, polygons and
writing. Reported: scene Mpx per second (overlap not counted) of the best repeat, and the seconds of each stage.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import pyogrio

import rsgeoseg
from rsgeoseg.testing.oracle import OracleSegmenter, oracle_spec
from rsgeoseg.testing.scenes import TEN_CLASSES, SceneTruth, generate_scene


def make_scene(folder: Path, size: int, density: float) -> SceneTruth:
    """Write the scene whose pixels are instance ids."""
    return generate_scene(
        folder / f"ids_{size}.tif", height=size, width=size, density=density, seed=1, tile=512, oracle_ids=True
    )


def oracle(chip_size: int, overlap: int) -> OracleSegmenter:
    """Return the segmenter that reads the answer."""
    return OracleSegmenter(spec=oracle_spec(TEN_CLASSES, chip_size=chip_size, overlap=overlap))


def measure(truth: SceneTruth, folder: Path, chip_size: int, overlap: int) -> tuple[float, dict[str, float], int]:
    """Run once: seconds of the whole job, seconds of each stage, objects written."""
    start = time.perf_counter()
    found = rsgeoseg.run(truth.path, oracle(chip_size, overlap), output=folder / "found.gpkg", overwrite=True)
    seconds = time.perf_counter() - start
    stages = found.attrs["rsgeoseg"]["stages"]
    split = {name: stage["seconds"] for name, stage in stages.items()}
    split["wait for read"] = stages["read"]["waited_seconds"]
    return seconds, split, int(pyogrio.read_info(folder / "found.gpkg")["features"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=8192, help="side of the scene, pixels")
    parser.add_argument("--density", type=float, default=20.0, help="objects per Mpx")
    parser.add_argument("--chip-size", type=int, default=1024)
    parser.add_argument("--overlap", type=int, default=128)
    parser.add_argument("--repeat", type=int, default=2, help="the best run counts")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        start = time.perf_counter()
        truth = make_scene(folder, args.size, args.density)
        expected = sum(1 for _ in truth.objects())
        print(f"scene: {args.size} x {args.size}, {expected} objects, made in {time.perf_counter() - start:.1f} s")
        runs = [measure(truth, folder, args.chip_size, args.overlap) for _ in range(args.repeat)]
        seconds, split, written = min(runs, key=lambda run: run[0])
    for name, value in split.items():
        print(f"  {name:14s} {value:8.2f} s")
    wrong = "" if written == expected else f"  WRONG: {expected} expected"
    print(f"engine: {args.size**2 / 1e6 / seconds:.1f} Mpx/s  {seconds:.2f} s  {written} objects{wrong}")


if __name__ == "__main__":
    main()
