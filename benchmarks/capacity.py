"""How many machines, how many hours: a capacity model from measured stages, checked by simulation and by real Dask.

    python benchmarks/capacity.py [--rate 0.45] [--workers 64]

Measured here: what one process does with a block after its worker is done (unpack, join the border, keep the part),
and how many tasks a second Dask's scheduler hands out and takes back. The rate of a worker, in Mpx/s of scene, is
given: from `rsgeoseg doctor --speed` or the record of a run. From these:

    hours = max(Mpx / (workers x rate), blocks x (client + task)) + the last block

A discrete simulation (blocks of random length, one client that takes them one at a time, two blocks under way per
worker) checks the formula; a real scheduler with ``--workers`` threads that only sleep checks the simulation.
"""

from __future__ import annotations

import argparse
import heapq
import json
import math
import os
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

CORE = 896
"""Pixels a side that a chip of 1024 with an overlap of 128 adds to the result."""
AREAS = (("1,000 km2 at 0.3 m", 1000.0, 0.3), ("a country of 300,000 km2 at 0.5 m", 300_000.0, 0.5))


@dataclass(frozen=True)
class Costs:
    """Seconds of one block outside its worker."""

    client: float
    task: float
    block_mpx: float
    block_bytes: int


def measure_client(blocks: int = 60) -> tuple[float, float, int]:
    """Run an oracle over a scene in blocks of 64 chips and time what the client does with each, in seconds.

    Returns:
        Seconds per block, Mpx per block, bytes per block.
    """
    from engine import make_scene, oracle

    from rsgeoseg.engine.block_work import Bench, WorkOrder
    from rsgeoseg.engine.blocks import plan_blocks
    from rsgeoseg.engine.collect import Drawing
    from rsgeoseg.engine.options import PipelineOptions
    from rsgeoseg.engine.pipeline import SceneRun
    from rsgeoseg.engine.run_folder import RunFolder
    from rsgeoseg.geo.scene import Scene
    from rsgeoseg.jobs.model_source import GivenModel

    with tempfile.TemporaryDirectory() as scratch:
        truth = make_scene(Path(scratch), 14_336, 20.0)
        model = oracle(1024, 128)
        with Scene.open(truth.path, stretch="none") as scene:
            options = PipelineOptions(chip_size=1024, overlap=128)
            drawing = Drawing(scene.grid, model.spec)
            order = WorkOrder(
                token="t", scene=scene, model=GivenModel(model), options=options, drawing=drawing,
                weights_id="", devices=("cpu",),
            )  # fmt: skip
            bench = Bench(order, model)
            with RunFolder(Path(scratch) / "out.gpkg", {}, drawing, resume=False, overwrite=False) as folder:
                run = SceneRun(scene, "oracle", options, lambda _event: None, folder)
                done = [
                    bench.work([[window.index for window in group] for group in block], lambda _tally: None)
                    for block in plan_blocks(run.start(), 1, 64)[:blocks]
                ]
                start = time.perf_counter()
                for drawn, rest in done:
                    run.take_part(folder.keep_encoded(drawn, rest))
                seconds = (time.perf_counter() - start) / len(done)
                folder.remove()
            size = statistics.mean(len(drawn) + len(rest) for drawn, rest in done)
            return seconds, run.tally.pixels / 1e6 / len(done), int(size)


def _sleep(seconds: float, size: int) -> bytes:
    time.sleep(seconds)
    return os.urandom(16) * (size // 16)


def run_dask(workers: int, blocks: int, seconds: float, size: int, client_seconds: float) -> float:
    """Give sleeping tasks to a real scheduler, two under way per worker as a run does; wall seconds."""
    from distributed import Client, LocalCluster, wait

    with (
        LocalCluster(
            n_workers=workers, threads_per_worker=1, processes=False, dashboard_address=None, memory_limit=0
        ) as cluster,
        Client(cluster) as client,
    ):
        left, under_way = blocks, set()
        rng = np.random.default_rng(0)
        start = time.perf_counter()
        while left or under_way:
            while left and len(under_way) < 2 * workers:
                under_way.add(client.submit(_sleep, seconds * rng.uniform(0.7, 1.3), size, pure=False))
                left -= 1
            done = wait(under_way, return_when="FIRST_COMPLETED").done
            for future in done:
                future.result()
                time.sleep(client_seconds)
            under_way -= done
        return time.perf_counter() - start


def simulate(workers: int, blocks: int, seconds: float, client: float, task: float, seed: int = 0) -> float:
    """Wall seconds of a run whose workers always have a next block, and whose client takes one block at a time."""
    rng = np.random.default_rng(seed)
    lengths = seconds * rng.uniform(0.7, 1.3, blocks)
    free = [(0.0, worker) for worker in range(workers)]  # when each worker can begin its next block
    heapq.heapify(free)
    finished = []
    issued = 0.0  # the scheduler hands out one task at a time
    for length in lengths:
        at, worker = heapq.heappop(free)
        issued = max(issued, at - seconds) + task  # handed out while the worker's previous block was under way
        end = max(at, issued) + length
        finished.append(end)
        heapq.heappush(free, (end, worker))
    now = 0.0
    for end in sorted(finished):
        now = max(now, end) + client + task  # it is received, then joined
    return now


def formula(workers: int, mpx: float, rate: float, costs: Costs) -> float:
    """Seconds of a run, by the capacity model."""
    blocks = math.ceil(mpx / costs.block_mpx)
    longest = max(mpx / (workers * rate), blocks * (costs.client + costs.task))
    return longest + costs.block_mpx / rate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=float, default=0.45, help="Mpx/s of scene that one worker does")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 8, 64, 256])
    parser.add_argument("--block-chips", type=int, default=64)
    parser.add_argument("--real-workers", type=int, default=64, help="threads of the real scheduler")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    client, mpx, size = measure_client()
    scale = args.block_chips * CORE**2 / 1e6 / mpx
    block_mpx, block_bytes = mpx * scale, int(size * scale)
    tasks = 600
    task = run_dask(8, tasks, 0.0, block_bytes, 0.0) / tasks
    costs = Costs(client=client * scale, task=task, block_mpx=block_mpx, block_bytes=block_bytes)
    print(
        f"block of {args.block_chips} chips: {block_mpx:.1f} Mpx, {block_bytes / 1e3:.0f} kB back, client"
        f" {1e3 * costs.client:.0f} ms, scheduler {1e3 * task:.1f} ms"
    )
    ceiling = block_mpx / (costs.client + task)
    print(f"one client keeps up with {ceiling:.0f} Mpx/s: {ceiling / args.rate:.0f} workers of {args.rate} Mpx/s")
    rows = []
    for name, area, gsd in AREAS:
        total = area / gsd**2
        blocks = math.ceil(total / block_mpx)
        print(f"{name}: {total:,.0f} Mpx, {blocks:,} blocks, {blocks * block_bytes / 1e9:.2f} GB of parts")
        for workers in args.workers:
            seconds = formula(workers, total, args.rate, costs)
            played = simulate(workers, blocks, block_mpx / args.rate, costs.client, task)
            rows.append({"area": name, "workers": workers, "hours": seconds / 3600, "simulated": played / 3600})
            print(f"  {workers:4d} workers: {seconds / 3600:9.2f} h by the model, {played / 3600:9.2f} h simulated")
    # The real scheduler, at a thousandth of the block's time or so: a hundred times the load of a real run.
    short, blocks = 0.5, 8 * args.real_workers
    wall = run_dask(args.real_workers, blocks, short, block_bytes, costs.client)
    played = simulate(args.real_workers, blocks, short, costs.client, task)
    print(
        f"real scheduler, {args.real_workers} workers, {blocks} blocks of {short} s: {wall:.1f} s, simulated"
        f" {played:.1f} s ({wall / played:.2f})"
    )
    if args.json:
        print(json.dumps({"costs": costs.__dict__, "rows": rows, "real": wall, "simulated": played}))


if __name__ == "__main__":
    main()
