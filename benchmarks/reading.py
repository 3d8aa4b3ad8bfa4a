"""Reading with overlap: scene windows through reader threads beside plain rasterio on aligned windows of the same file.

    python benchmarks/reading.py [--size 8704] [--chip-size 1024] [--overlap 256] [--rounds 3] [--layouts strips,zstd]

Every layout of the table is written once and read from a warm page cache. The baseline reads each block once into its
bands, with one thread and with two (a handle each): aligned windows of tiles, whole rows of strips. Ours reads windows
with an exact overlap through as many reader threads, and counts each pixel once. All are measured in turn, round after
round, and the best of each counts. Two rates are printed: by the clock, and by processor time of all threads, which
says the same on an idle machine and does not depend on who else works on a busy one.
Bars: 0.85 of the baseline for tiles, 0.6 for strips, and at most 1.05 decodes a block. Uncompressed tiles are shown
but have no bar: to read them is to copy them, and overlap copies pixels twice.

Then scenes that are nine tenths nodata, stored and sparse: processor time of reading, and of a whole run with the
oracle segmenter (see `engine.py`), over that of the full scene; bar 0.15.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import rasterio
from engine import make_scene, oracle
from rasterio.transform import from_origin
from rasterio.windows import Window as RasterWindow

import rsgeoseg
from rsgeoseg.engine.reader import read_ahead
from rsgeoseg.geo.scene import Scene
from rsgeoseg.geo.windows import plan_windows

if TYPE_CHECKING:
    from collections.abc import Callable

TILES = {"tiled": True, "blockxsize": 512, "blockysize": 512}
LAYOUTS: dict[str, dict[str, Any]] = {
    "strips none": {},
    "strips lzw": {"compress": "lzw"},
    "tiles512 none": TILES,
    "tiles512 zstd": {**TILES, "compress": "zstd", "predictor": 2},
    "tiles512 deflate": {**TILES, "compress": "deflate", "predictor": 2},
    "tiles512 lzw": {**TILES, "compress": "lzw", "predictor": 2},
    "tiles512 jpeg": {**TILES, "compress": "jpeg", "photometric": "ycbcr"},
    "tiles256 zstd": {**TILES, "blockxsize": 256, "blockysize": 256, "compress": "zstd", "predictor": 2},
    "tiles512 zstd planes": {**TILES, "compress": "zstd", "predictor": 2, "interleave": "band"},
}
SHOWN_ONLY = "tiles512 none"
DATA_ROWS = 0.1
"""Share of the rows that have data in the nodata cases."""


@dataclass
class Best:
    """The least time of several rounds."""

    clock: float = math.inf
    processor: float = math.inf

    def add(self, work: Callable[[], Any]) -> Any:
        """Time one round."""
        clock, processor = time.perf_counter(), time.process_time()
        made = work()
        self.clock = min(self.clock, time.perf_counter() - clock)
        self.processor = min(self.processor, time.process_time() - processor)
        return made


def picture(size: int) -> np.ndarray:
    """Smooth ground with grain, which compresses about as real images do: (3, size, size) uint8 from 1."""
    rng = np.random.default_rng(0)
    coarse = rng.uniform(20, 220, (size // 32, size // 32, 3)).astype(np.float32)
    smooth = cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC)
    grain = rng.integers(-6, 7, (size, size, 3), np.int8)
    return np.clip(smooth + grain, 1, 255).astype(np.uint8).transpose(2, 0, 1)


def write(path: Path, image: np.ndarray, rows: int | None = None, **layout: Any) -> Path:
    """Write a scene; with ``rows``, only so many rows from above, and nodata 0 in the rest."""
    bands, height, width = image.shape
    profile = {"driver": "GTiff", "height": height, "width": width, "count": bands, "dtype": "uint8"}
    where = {"crs": "EPSG:32631", "transform": from_origin(500_000, 5_000_000, 0.3, 0.3)}
    with rasterio.open(path, "w", **{"interleave": "pixel", **profile, **where, **layout}) as dataset:
        dataset.write(image[:, :rows], window=RasterWindow(0, 0, width, rows or height))
    return path


def aligned(path: Path, threads: int, side: int) -> None:
    """Read each block once with plain rasterio: every thread has a handle and its share of the windows."""
    with rasterio.open(path) as dataset:
        height, width = dataset.shape
        rows, cols = (side, side) if dataset.profile["tiled"] else (side // 4, width)
    windows = [
        RasterWindow(x, y, min(cols, width - x), min(rows, height - y))
        for y in range(0, height, rows)
        for x in range(0, width, cols)
    ]

    def read(share: list[RasterWindow]) -> None:
        with rasterio.Env(GDAL_CACHEMAX=32 << 20), rasterio.open(path) as dataset:
            for window in share:
                dataset.read(window=window)

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(read, [windows[i::threads] for i in range(threads)]))


def ours(path: Path, readers: int, chip_size: int, overlap: int) -> float:
    """Read a scene's overlapping windows, with more than one reader through threads; return the decodes per block."""
    with Scene.open(path) as scene:
        plan = plan_windows(scene.grid.height, scene.grid.width, chip_size=chip_size, overlap=overlap)
        if readers == 1:
            for window in plan.windows:
                scene.read(window.read)
        else:
            for _ in read_ahead(scene, plan.windows, readers=readers, ahead=2 * readers + 1):
                pass
        return scene._tiles.loads / scene._tiles.count  # noqa: SLF001


def compare(path: Path, args: argparse.Namespace) -> tuple[dict[str, Best], float]:
    """Measure one layout."""
    best = {name: Best() for name in ("aligned 1", "aligned 2", "ours 1", "ours 2")}
    decodes = 0.0
    for _ in range(args.rounds):
        for threads in (1, 2):
            best[f"aligned {threads}"].add(lambda n=threads: aligned(path, n, args.chip_size))
            reading = best[f"ours {threads}"].add(lambda n=threads: ours(path, n, args.chip_size, args.overlap))
            decodes = max(decodes, reading)
    return best, decodes


def write_hollow(folder: Path, image: np.ndarray, nodata: int) -> dict[str, Path]:
    """Write a scene whole, with nodata in nine tenths of its rows, and with nothing stored there."""
    rows = math.ceil(image.shape[1] * DATA_ROWS)
    layout = {**TILES, "compress": "zstd", "predictor": 2, "nodata": nodata}
    paths = {
        "full": write(folder / "full.tif", image, **layout),
        "sparse": write(folder / "sparse.tif", image, rows=rows, sparse_ok=True, **layout),
    }
    image[:, rows:] = nodata
    return {**paths, "stored": write(folder / "stored.tif", image, **layout)}


def nodata_share(paths: dict[str, Path], rounds: int, work: Callable[[Path], Any]) -> str:
    """Return the processor time of work on the hollow scenes over that of the full one, as text."""
    best = {name: Best() for name in paths}
    for _ in range(rounds):
        for name, path in paths.items():
            best[name].add(lambda path=path: work(path))
    full = best["full"].processor
    return f"{best['stored'].processor / full:.2f} stored, {best['sparse'].processor / full:.2f} sparse"


def hollow_scenes(folder: Path, image: np.ndarray, args: argparse.Namespace) -> list[str]:
    """Reading alone, then whole runs."""
    paths = write_hollow(folder, image, 0)
    shares = [nodata_share(paths, args.rounds, lambda path: ours(path, 2, args.chip_size, args.overlap))]
    truth = make_scene(folder, args.run_size, 20.0)
    with rasterio.open(truth.path) as dataset:
        paths = write_hollow(folder, dataset.read(), 255)
    model, output = oracle(args.chip_size, args.overlap // 2), folder / "found.gpkg"
    shares.append(
        nodata_share(paths, args.rounds, lambda path: rsgeoseg.run(path, model, output=output, overwrite=True))
    )
    return shares


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=8704, help="side of the scene, pixels; 8704 = 11 windows of 1024")
    parser.add_argument("--run-size", type=int, default=16384, help="side of the scene of the whole runs")
    parser.add_argument("--chip-size", type=int, default=1024)
    parser.add_argument("--overlap", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--layouts", default="", help="only those whose name holds one of these words")
    args = parser.parse_args()
    words = args.layouts.split(",")
    image = picture(args.size)
    ratios: dict[str, list[tuple[float, float]]] = {"tiles": [], "strips": []}
    most = 0.0
    print(
        f"{'':21s}  unique Mpx/s by clock: aligned 1, 2 threads, ours 1, 2 | ratio clock, processor | decodes a block"
    )
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for name, layout in LAYOUTS.items():
            if not any(word in name for word in words):
                continue
            path = write(folder / "scene.tif", image, **layout)
            best, decodes = compare(path, args)
            by_clock = best["aligned 2"].clock / best["ours 2"].clock
            by_processor = best["aligned 2"].processor / best["ours 2"].processor
            if name != SHOWN_ONLY:
                ratios["strips" if name.startswith("strips") else "tiles"].append((by_clock, by_processor))
            most = max(most, decodes)
            figures = " ".join(f"{args.size**2 / 1e6 / best[key].clock:8.1f}" for key in best)
            print(f"{name:21s} {figures} | {by_clock:5.2f} {by_processor:5.2f} | {decodes:.2f}", flush=True)
            path.unlink()
        reading, running = hollow_scenes(folder, image, args)
    tiles, strips = (
        " and ".join(f"{min(values, default=math.nan):.2f}" for values in zip(*ratios[kind], strict=True))
        for kind in ("tiles", "strips")
    )
    print(
        f"reading: by clock and processor: tiles {tiles} (bar 0.85), strips {strips} (bar 0.6); {most:.2f} decodes a"
        f" block (bar 1.05); 90 % nodata: reading {reading}; whole run {running} (bar 0.15)"
    )


if __name__ == "__main__":
    main()
