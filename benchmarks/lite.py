"""The whole job with the bundled `lite` model: scene pixels per second, overlap not counted, and where time goes.

    python benchmarks/lite.py [SCENE] [--size 4096] [--threads 2]

Without SCENE a generated one with 20 objects per Mpx is used. The model is loaded before the clock starts.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import torch

import rsgeoseg
from rsgeoseg.testing.scenes import generate_scene


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scene", nargs="?", type=Path)
    parser.add_argument("--model", default="rsprompter-query")
    parser.add_argument("--weights")
    parser.add_argument("--size", type=int, default=4096, help="side of the generated scene")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model = rsgeoseg.load_model(args.model, weights=args.weights)
    with tempfile.TemporaryDirectory() as folder:
        scene = args.scene
        if scene is None:
            scene = Path(folder) / "scene.tif"
            generate_scene(scene, height=args.size, width=args.size, seed=7)
        start = time.perf_counter()
        found = rsgeoseg.run(scene, model, output=Path(folder) / "found.gpkg")
        seconds = time.perf_counter() - start
    record = found.attrs["rsgeoseg"]
    for name, stage in record["stages"].items():
        print(f"  {name:12s} {stage['seconds']:8.2f} s")
    print(f"whole job: {record['pixels'] / 1e6 / seconds:.2f} Mpx/s  {seconds:.1f} s  {len(found)} objects")


if __name__ == "__main__":
    main()
