"""What Dask workers cost and gain on this machine: no worker, one worker, two workers, each in a process of its own.

    python benchmarks/workers.py [--quick] [--only oracle|lite] [--repeat 3]

*whole* is the whole job: the model is loaded, processes are started and ended. *steady* is what grows with the scene:
from the first chip (all workers have their model by then) to the last, and from there to the written output without the
end of the processes.

Overhead is one worker against none, both with all cores. Gain is two workers, each with half the cores, against one
worker with half the cores, and against one with all of them. Runs of a repeat follow each other and ratios are taken
within it, so that a machine whose speed wanders does not decide; the median ratio is reported. All outputs must be the
same to the bit: geometry, class and score of every object.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rsgeoseg.engine.events import Event

KINDS = {"local": (0, 1), "1 worker": (1, 1), "2 workers": (2, 1), "1 worker, half the cores": (1, 2)}
"""Workers, and which part of the cores they may use: one in so many."""


def run_child(model: str, scene: str, output: str, workers: int) -> None:
    """Do one job and print its seconds."""
    from engine import oracle

    from rsgeoseg.engine.order import RunJob
    from rsgeoseg.jobs.running import write_job

    begun = time.perf_counter()
    times: dict[str, float] = {}

    def tell(event: Event) -> None:
        times[getattr(event, "stage", event.kind)] = time.perf_counter()

    name = "oracle" if model == "oracle" else "rsprompter-query"
    job = RunJob(scene=scene, output=output, model=name, overwrite=True, workers=workers or None, device="cpu")
    record = write_job(job, oracle(1024, 128) if model == "oracle" else None, on_event=tell)
    done = time.perf_counter()
    stages = {stage: round(value["seconds"], 2) for stage, value in record["stages"].items()}
    print(
        json.dumps(
            {
                "whole": done - begun,
                "steady": times["progress"] - times["start"] + done - times["polygonize"],
                "objects": record["objects"]["total"],
                "digest": digest(Path(output)),
                "chips": record["chips"]["total"],
                "stages": stages,
            }
        )
    )


def digest(output: Path) -> str:
    """Sum of an output's objects, in their order."""
    import pyogrio

    found = pyogrio.read_dataframe(output)
    columns = found[["class_name", "score"]].to_csv(index=False, float_format="%.9g").encode()
    return hashlib.sha256(b"".join([columns, *found.geometry.to_wkb()])).hexdigest()


def measure(model: str, scene: Path, output: Path, workers: int, share: int) -> dict:
    """Seconds of one job in a child process that may use one in ``share`` of the cores."""
    command = [sys.executable, __file__, "--child", model, str(scene), str(output), str(workers), str(share)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def compare(model: str, scene: Path, repeat: int) -> None:
    """Measure and print."""
    import rasterio

    with rasterio.open(scene) as source:
        mpx = source.width * source.height / 1e6
    rounds = []
    for _ in range(repeat):
        rounds.append({})
        for name, (workers, share) in KINDS.items():
            run = rounds[-1][name] = measure(model, scene, scene.with_suffix(".gpkg"), workers, share)
            print(
                f"{model:7s} {name:25s} {mpx:7.1f} Mpx {run['chips']:5d} chips {run['objects']:6d} objects"
                f"  whole {run['whole']:7.2f} s  steady {run['steady']:7.2f} s ({mpx / run['steady']:6.2f} Mpx/s)"
                f"  {run['stages']}",
                flush=True,
            )
    digests = {run["digest"] for runs in rounds for run in runs.values()}
    assert len(digests) == 1, "the outputs differ"
    print(f"{model:7s} all {len(rounds) * len(KINDS)} outputs are the same to the bit")
    for kind in ("steady", "whole"):

        def ratio(slow: str, fast: str, kind: str = kind) -> float:
            return median(runs[slow][kind] / runs[fast][kind] for runs in rounds)

        print(
            f"{model:7s} {kind:6s}  overhead of one worker {100 * ratio('1 worker', 'local') - 100:+.1f} %"
            f"   two workers over one with half the cores {ratio('1 worker, half the cores', '2 workers'):.2f} x,"
            f" over one with all {ratio('1 worker', '2 workers'):.2f} x, over none {ratio('local', '2 workers'):.2f} x"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small scenes, once: whether it works, not how fast")
    parser.add_argument("--only", choices=("oracle", "lite"))
    parser.add_argument("--oracle-size", type=int, default=32_768, help="side of the oracle's scene")
    parser.add_argument("--lite-size", type=int, default=6144, help="side of the real model's scene")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument(
        "--child", nargs=5, metavar=("MODEL", "SCENE", "OUT", "WORKERS", "SHARE"), help=argparse.SUPPRESS
    )
    args = parser.parse_args()
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line does
    if args.child:
        model, scene, output, workers, share = args.child
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, cores[: max(1, len(cores) // int(share))])  # before anything counts them
        run_child(model, scene, output, int(workers))
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
