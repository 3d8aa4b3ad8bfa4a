"""Windows of a COG on a server that takes its time: this package beside rasterio with GDAL's defaults.

    python benchmarks/remote.py [--latency 0.05] [--size 8192] [--windows 64]

The server is a process of its own on this machine that waits before each answer, as a server far away does. Windows of
1,024 pixels with 128 of overlap, row by row, as a run reads them. Opening is part of the time. Reported: seconds.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import rasterio
from affine import Affine
from rasterio.windows import Window as RasterWindow

from rsgeoseg.engine.reader import read_ahead
from rsgeoseg.geo.scene import Scene
from rsgeoseg.geo.windows import plan_windows

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "geo"))
from range_server import serving_apart

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rsgeoseg.geo.windows import Window


def make_scene(path: Path, size: int) -> None:
    """Write a COG that compresses to a third, as aerial images do with DEFLATE."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (3, size // 8, size // 8), np.uint8).repeat(8, 1).repeat(8, 2)
    image += rng.integers(0, 3, image.shape, np.uint8)
    with rasterio.open(
        path, "w", driver="COG", height=size, width=size, count=3, dtype="uint8", crs="EPSG:32631",
        transform=Affine(0.3, 0, 500_000, 0, -0.3, 5_000_000), compress="deflate", blocksize=512, num_threads=2,
    ) as sink:  # fmt: skip
        sink.write(image)


def ours(url: str, windows: Sequence[Window]) -> int:
    with Scene.open(url) as scene:
        return sum(int(item.chip.image.sum()) for item in read_ahead(scene, windows, readers=2, ahead=16) if item.chip)


def defaults(url: str, windows: Sequence[Window], threads: int) -> int:
    local = threading.local()

    def read(window: Window) -> int:
        if not hasattr(local, "dataset"):
            local.dataset = rasterio.open(url)
        box = window.read
        return int(local.dataset.read(window=RasterWindow(box.x0, box.y0, box.width, box.height)).sum())

    with ThreadPoolExecutor(threads) as pool:
        return sum(pool.map(read, windows))


def measure(path: Path, latency: float, run: Callable[[str], int]) -> tuple[float, int]:
    """Seconds of a run on a fresh server, so that nothing is remembered, and what it read."""
    with serving_apart(path, latency=latency) as url:
        start = time.perf_counter()
        total = run(f"{url}/{path.name}")
        return time.perf_counter() - start, total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--latency", type=float, default=0.05, help="seconds before each answer")
    parser.add_argument("--size", type=int, default=8192, help="side of the scene, pixels")
    parser.add_argument("--windows", type=int, default=64, help="windows to read at most")
    parser.add_argument("--repeat", type=int, default=2, help="the best run counts")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "scene.tif"
        make_scene(path, args.size)
        windows = plan_windows(args.size, args.size, chip_size=1024, overlap=128).windows[: args.windows]
        print(f"{len(windows)} windows of {path.stat().st_size / 1e6:.0f} MB, {args.latency * 1e3:g} ms latency")
        rows: dict[str, Callable[[str], int]] = {
            "GDAL's defaults, one thread": lambda url: defaults(url, windows, 1),
            "GDAL's defaults, eight threads": lambda url: defaults(url, windows, 8),
            "rsgeoseg": lambda url: ours(url, windows),
        }
        found = {}
        for name, run in rows.items():
            found[name] = min(measure(path, args.latency, run) for _ in range(args.repeat))
            print(f"  {name:32s} {found[name][0]:7.2f} s")
    same = len({total for _, total in found.values()}) == 1
    first, ratio = found["GDAL's defaults, one thread"][0], found["rsgeoseg"][0]
    print(f"remote: {ratio:.2f} s, {first / ratio:.1f} x GDAL's defaults{'' if same else '  WRONG: other pixels'}")


if __name__ == "__main__":
    main()
