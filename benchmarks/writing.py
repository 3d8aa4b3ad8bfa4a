"""Writing a table in batches beside one-shot writing with pyogrio and geopandas, in one run: seconds and peak memory.

    python benchmarks/writing.py [--count 200000] [--format gpkg fgb]

Each in a process of its own, in turns; the best of each counts. Ours writes beside, flushes, reads every row back and
renames; the others only write. Memory is above the table itself, which is whole in memory for both.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import geopandas as gpd
import numpy as np
import pandas as pd
import shapely

FORMATS = {"gpkg": "GPKG", "fgb": "FlatGeobuf", "parquet": None, "shp": "ESRI Shapefile", "geojson": "GeoJSON"}
RFC = {"RFC7946": "YES", "COORDINATE_PRECISION": "9"}


def make(count: int) -> gpd.GeoDataFrame:
    """Polygons of 57 vertices with the columns of a result."""
    turn = np.linspace(0, 2 * np.pi, 57)[:-1]
    rng = np.random.default_rng(0)
    centre, radius = rng.uniform(0, 1e5, (count, 1, 2)), rng.uniform(5, 20, (count, 1))
    ring = centre + (radius * (1 + 0.1 * np.cos(7 * turn)))[..., None] * np.stack([np.cos(turn), np.sin(turn)], -1)
    columns = {
        "id": np.arange(1, count + 1), "class_id": np.zeros(count, np.int32), "class_name": ["building"] * count,
        "score": np.ones(count, np.float32), "area_m2": radius[:, 0], "perimeter_m": radius[:, 0],
        "n_chips": np.ones(count, np.int16), "seam": np.zeros(count, bool), "truncated": np.zeros(count, bool),
        "model": ["null"] * count,
    }  # fmt: skip
    return gpd.GeoDataFrame(pd.DataFrame(columns), geometry=shapely.polygons(ring), crs="EPSG:32631")


def child(who: str, name: str, count: int) -> None:
    """Write once and print seconds and the memory that it took above the table."""
    import pyogrio

    from rsgeoseg.engine.memory import peak_memory, resident_memory
    from rsgeoseg.geo.writers import write_frame

    frame = make(count)
    multi = frame.set_geometry(
        shapely.multipolygons(frame.geometry.to_numpy(), indices=np.arange(count)), crs=frame.crs
    )
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / f"out.{name}"
        before, start, cpu = resident_memory() or 0, time.perf_counter(), time.process_time()
        if who == "ours":
            write_frame(frame, path)
        elif name == "parquet":
            frame.to_parquet(path, compression="zstd", write_covering_bbox=True, schema_version="1.1.0")
        else:
            pyogrio.write_dataframe(
                frame if name == "geojson" else multi, path, driver=FORMATS[name], use_arrow=True,
                geometry_type="Unknown" if name == "geojson" else "MultiPolygon",
                layer_options=RFC if name == "geojson" else None,
            )  # fmt: skip
        wall, cpu = time.perf_counter() - start, time.process_time() - cpu
        print(wall, cpu, max((peak_memory() or 0) - before, 0))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=200_000)
    parser.add_argument("--repeat", type=int, default=3, help="the best counts")
    parser.add_argument("--format", nargs="+", choices=tuple(FORMATS), default=list(FORMATS))
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(*args.child, args.count)
        return
    ratios = []
    print("            one-shot                         ours                          ratio")
    print("format      s (CPU s)   rows/s    MB         s (CPU s)   rows/s    MB        s (CPU s)")
    for name in args.format:
        runs: dict[str, list[list[float]]] = {"theirs": [], "ours": []}
        for who in ("theirs", "ours") * args.repeat:
            command = [sys.executable, __file__, "--count", str(args.count), "--child", who, name]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            runs[who].append([float(value) for value in done.stdout.split()])
        best = {who: [min(column) for column in zip(*found, strict=True)] for who, found in runs.items()}
        line = f"{name:8s}"
        for wall, cpu, size in best.values():
            line += f"{wall:6.2f} ({cpu:5.2f}) {args.count / wall:9,.0f} {size / 1e6:5.0f}     "
        ratios.append(best["ours"][0] / best["theirs"][0])
        print(f"{line}{ratios[-1]:5.2f} ({best['ours'][1] / best['theirs'][1]:.2f})")
    print(f"writing: {max(ratios):.2f} x one-shot at most (bar 1.3)")


if __name__ == "__main__":
    main()
