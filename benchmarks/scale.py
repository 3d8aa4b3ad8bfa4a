"""Does time and memory per Mpx stay flat? One scene after the other, each in a process of its own.

    python benchmarks/scale.py [--sizes 4096 8192 16384 32768 65536] [--folder SCENES] [--max-memory 1GB]

An oracle segmenter reads instance ids off the pixels (20 objects per Mpx), so that all time is the engine's. Scenes up
to ``--dense`` a side are drawn whole; larger ones are sparse TIFFs of which one cell of 4096 x 4096 in sixteen is
drawn and the rest takes no disk. Reported per scene: seconds, Mpx/s, peak resident memory of the whole process, seconds
by stage, and wall time over the longest stage (readers are two threads: their sum is halved).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import rasterio
from engine import make_scene, oracle
from rasterio.windows import Window

CELL = 4096


def draw(folder: Path, size: int, dense: int) -> Path:
    """Write a scene, whole or sparse, unless it is there."""
    path = folder / f"ids_{size}.tif"
    if path.exists():
        return path
    if size <= dense:
        make_scene(folder, size, 20.0)
        return path
    cell = draw(folder, CELL, dense)
    with rasterio.open(cell) as source:
        pixels = source.read()
        profile = source.profile | {"height": size, "width": size, "sparse_ok": True, "bigtiff": "yes"}
    with rasterio.open(path, "w", **profile) as sink:
        for row in range(0, size // CELL, 4):
            for col in range(row // 4 % 4, size // CELL, 4):
                sink.write(pixels, window=Window(col * CELL, row * CELL, CELL, CELL))
    return path


def run_child(scene: Path, out: Path, max_memory: str | None) -> None:
    """Do the job and print its record."""
    from dataclasses import replace

    from rsgeoseg.engine.order import RunJob
    from rsgeoseg.jobs.running import write_job

    job = RunJob(scene=str(scene), output=str(out), model="oracle", overwrite=True)
    record = write_job(replace(job, max_memory=max_memory) if max_memory else job, oracle(1024, 128))
    print(json.dumps({key: record[key] for key in ("seconds", "stages", "peak_memory_bytes", "objects", "seams")}))


def measure(scene: Path, folder: Path, max_memory: str | None) -> dict:
    """Record of a run in a child process."""
    command = [sys.executable, __file__, "--child", str(scene), str(folder / "found.gpkg")]
    command += ["--max-memory", max_memory] if max_memory else []
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[4096, 8192, 16_384, 32_768, 65_536])
    parser.add_argument("--dense", type=int, default=16_384, help="largest scene that is drawn whole")
    parser.add_argument("--folder", type=Path, default=None, help="keep the scenes here and use them again")
    parser.add_argument("--max-memory", default=None)
    parser.add_argument("--child", nargs=2, metavar=("SCENE", "OUT"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        run_child(Path(args.child[0]), Path(args.child[1]), args.max_memory)
        return
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.folder or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        print("  side  kind     objects  seconds   Mpx/s   peak MB  wall/longest  stages (s)")
        for size in args.sizes:
            start = time.perf_counter()
            scene = draw(folder, size, args.dense)
            if time.perf_counter() - start > 60:
                print(f"  (drawn in {time.perf_counter() - start:.0f} s)")
            record = measure(scene, Path(scratch), args.max_memory)
            stages = {name: stage["seconds"] for name, stage in record["stages"].items()}
            longest = max({**stages, "read": stages["read"] / 2}.values())
            peak = record["peak_memory_bytes"] / 1e6
            rows.append((size, record["seconds"], peak))
            kind = "whole" if size <= args.dense else "sparse"
            split = " ".join(f"{name} {seconds:.2f}" for name, seconds in stages.items())
            print(
                f"{size:6d}  {kind:6s} {record['objects']['total']:9d} {record['seconds']:8.2f}"
                f" {size**2 / 1e6 / record['seconds']:7.1f} {peak:9.0f} {record['seconds'] / longest:13.2f}  {split}"
            )
    base = {size: peak for size, _, peak in rows}.get(8192, rows[0][2])
    print(f"scale: peak {rows[-1][2]:.0f} MB at {rows[-1][0]}, {rows[-1][2] - base:+.0f} MB above 8192 (bar +300)")


if __name__ == "__main__":
    main()
