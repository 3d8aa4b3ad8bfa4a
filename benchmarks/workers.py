"""What Dask workers cost and gain on this machine: no worker, one worker, two workers, each in a process of its own.

    python benchmarks/workers.py [--quick] [--only oracle|lite] [--repeat 3]

*whole* is the whole job, model loading and the start of the processes included. *steady* begins where chips begin: at
the plan of a local run, at the moment when all workers have their model for the others. Both end when the output is
written. Overhead is one worker against none (the same cores and threads), gain is two workers against one: there each
has half the cores. Runs of a repeat follow each other and ratios are taken within it, so that a machine whose speed
wanders does not decide; the median ratio is reported. All outputs must have the same number of objects.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

WORKERS = (None, 1, 2)


def run_child(model: str, scene: str, output: str, workers: int | None) -> None:
    """Do one job and print its seconds."""
    from engine import oracle

    from rsgeoseg.engine.order import RunJob
    from rsgeoseg.jobs.running import write_job

    begun = time.perf_counter()
    ready = begun

    def tell(event: object) -> None:
        nonlocal ready
        if getattr(event, "kind", "") == "start":  # a cluster's workers are ready by then
            ready = time.perf_counter()

    name = "oracle" if model == "oracle" else "rsprompter-query"
    job = RunJob(scene=scene, output=output, model=name, overwrite=True, workers=workers, device="cpu")
    record = write_job(job, oracle(1024, 128) if model == "oracle" else None, on_event=tell)
    done = time.perf_counter()
    stages = {stage: round(value["seconds"], 2) for stage, value in record["stages"].items()}
    print(
        json.dumps(
            {
                "whole": done - begun,
                "steady": done - ready,
                "objects": record["objects"]["total"],
                "chips": record["chips"]["total"],
                "stages": stages,
            }
        )
    )


def measure(model: str, scene: Path, output: Path, workers: int | None) -> dict:
    """Seconds of one job in a child process."""
    command = [sys.executable, __file__, "--child", model, str(scene), str(output), str(workers or 0)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def compare(model: str, scene: Path, repeat: int) -> None:
    """Measure and print."""
    import rasterio

    with rasterio.open(scene) as source:
        mpx = source.width * source.height / 1e6
    rounds = []
    for _ in range(repeat):
        runs = {workers: measure(model, scene, scene.with_suffix(".gpkg"), workers) for workers in WORKERS}
        rounds.append(runs)
        for workers, run in runs.items():
            name = "local" if workers is None else f"{workers} worker{'s' * (workers > 1)}"
            print(
                f"{model:7s} {name:10s} {mpx:8.1f} Mpx {run['chips']:6d} chips {run['objects']:7d} objects"
                f"  whole {run['whole']:7.2f} s  steady {run['steady']:7.2f} s ({mpx / run['steady']:6.2f} Mpx/s)"
                f"  {run['stages']}",
                flush=True,
            )
    assert len({run["objects"] for runs in rounds for run in runs.values()}) == 1, "the outputs differ"
    for kind in ("steady", "whole"):
        overhead = median(runs[1][kind] / runs[None][kind] - 1 for runs in rounds)
        gain = median(runs[1][kind] / runs[2][kind] for runs in rounds)
        local = median(runs[None][kind] / runs[2][kind] for runs in rounds)
        print(
            f"{model:7s} {kind:6s}  overhead of one worker {100 * overhead:+6.1f} %"
            f"   two workers over one {gain:5.2f} x   two workers over local {local:5.2f} x"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small scenes, once: whether it works, not how fast")
    parser.add_argument("--only", choices=("oracle", "lite"))
    parser.add_argument("--oracle-size", type=int, default=32_768, help="side of the oracle's scene")
    parser.add_argument("--lite-size", type=int, default=6144, help="side of the real model's scene")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--child", nargs=4, metavar=("MODEL", "SCENE", "OUT", "WORKERS"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line does
    if args.child:
        model, scene, output, workers = args.child
        run_child(model, scene, output, int(workers) or None)
        return
    from engine import make_scene

    from rsgeoseg.testing.scenes import generate_scene

    oracle_size, lite_size, repeat = (8192, 2048, 1) if args.quick else (args.oracle_size, args.lite_size, args.repeat)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        if args.only != "lite":
            compare("oracle", Path(make_scene(folder, oracle_size, 20.0).path), repeat)
        if args.only != "oracle":
            path = folder / "picture.tif"
            generate_scene(path, height=lite_size, width=lite_size, density=20.0, seed=2, tile=512)
            compare("lite", path, repeat)


if __name__ == "__main__":
    main()
