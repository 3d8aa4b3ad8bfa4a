"""Joining rules beside ours on generated scenes with exact truth, and ours on a crowd of border objects.

    python benchmarks/peers/stitching.py [--quick] [--crowd 25000 100000] [--timeout 900]

Every rule gets the same noisy detections of the same overlapping chips, in a process of its own. A row named
``one chip`` shows what the noise alone costs: the whole scene seen at once, so nothing is joined. Rules of packages
that are not installed are left out.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import defaultdict
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from detections import noisy_detections, outline
from isolated import Measured, measure
from layouts import KINDS, crowded_layout, mixed_layout
from rules import RULES, prepare
from scoring import Score, score

from rsgeoseg.testing.oracle import find_instances

if TYPE_CHECKING:
    from layouts import Layout
    from numpy.typing import NDArray

OURS, CEILING = "rsgeoseg", "one chip (the noise alone)"


def installed() -> list[str]:
    """Names of the rules whose packages are here."""
    needs = {"SAHI": "sahi", "supervision": "supervision", "box": "torchvision"}
    return [name for name in RULES if find_spec(needs.get(name.split()[0], "numpy")) is not None]


def true_shapes(layout: Layout) -> NDArray[np.object_]:
    """Outline the objects, in the order of their ids."""
    values, boxes = find_instances(layout.ids)
    placed = [
        ((x0, y0), layout.ids[y0:y1, x0:x1] == value)
        for value, (x0, y0, x1, y1) in zip(values.tolist(), boxes.tolist(), strict=True)
    ]
    return outline(placed, *layout.ids.shape)


def compare(args: argparse.Namespace, folder: Path) -> dict[str, list[tuple[Measured, Score | None]]]:
    """Run every rule on every seed."""
    rows: dict[str, list[tuple[Measured, Score | None]]] = defaultdict(list)
    for seed in range(args.seeds):
        layout = mixed_layout(args.size, args.chip, seed)
        truth = true_shapes(layout)
        cut = noisy_detections(layout.ids, chip=args.chip, overlap=args.overlap, seed=seed)
        whole = noisy_detections(layout.ids, chip=args.size, overlap=0, seed=seed)
        paths = cut.save(folder / "cut.bin"), whole.save(folder / "whole.bin")
        print(f"  seed {seed}: {len(truth)} objects, {len(cut)} masks in {len(cut.plan.windows)} chips", flush=True)
        jobs = [(name, name, paths[0]) for name in installed()] + [(CEILING, OURS, paths[1])]
        for title, name, path in jobs:
            done = measure(prepare, name, path, timeout=args.timeout)
            result = None if done.error else score(truth, layout.kinds, done.result.shapes)
            rows[title].append((done, result))
    return rows


def print_table(rows: dict[str, list[tuple[Measured, Score | None]]]) -> None:
    """Print shares over all seeds, and means of what is counted by scene."""
    heads = ["joining rule", *KINDS, "duplicates", "fragments", "merged", "seconds", "CPU s", "peak MB"]
    print("\n| " + " | ".join(heads) + " |\n|" + "---|" * len(heads))
    for name, runs in rows.items():
        scores = [result for _, result in runs if result is not None]
        if len(scores) < len(runs):
            print(f"| {name} | " + next(done.error for done, _ in runs if done.error))
            continue
        shares = [_share(scores, kind) for kind in KINDS]
        counts = [np.mean([getattr(one, name) for one in scores]) for name in ("duplicates", "fragments", "merged")]
        wall, cpu, peak = (
            np.mean([getattr(done, name) for done, _ in runs]) for name in ("seconds", "cpu_seconds", "megabytes")
        )
        cells = [f"{100 * share:.1f}" for share in shares] + [f"{count:.1f}" for count in counts]
        print(f"| {name} | " + " | ".join([*cells, f"{wall:.2f}", f"{cpu:.2f}", f"{peak:.0f}"]) + " |")


def _share(scores: list[Score], kind: str) -> float:
    hits, total = np.sum([one.recovered.get(kind, (0, 0)) for one in scores], axis=0)
    return hits / total if total else float("nan")


def crowd(args: argparse.Namespace, folder: Path) -> list[tuple[int, Measured]]:
    """Join more and more objects of which every one lies on a border; the best of the repeats counts."""
    rows = []
    for count in args.crowd:
        layout = crowded_layout(count, args.crowd_chip, args.crowd_overlap)
        found = noisy_detections(layout.ids, chip=args.crowd_chip, overlap=args.crowd_overlap, seed=0)
        path = found.save(folder / "crowd.bin")
        runs = [measure(prepare, OURS, path, timeout=args.timeout) for _ in range(args.repeat)]
        done = min(runs, key=lambda run: run.on(args.clock))
        took = f"{done.seconds:.2f} s, {done.cpu_seconds:.2f} CPU s, {done.megabytes:.0f} MB"
        what = f"{len(layout.kinds)} objects in {len(layout.ids)}^2, {len(found)} masks"
        print(f"  crowd: {what}: {took}, {done.error or len(done.result.shapes)} found", flush=True)
        rows.append((len(layout.kinds), done))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=4096, help="side of the scenes, pixels")
    parser.add_argument("--chip", type=int, default=1024)
    parser.add_argument("--overlap", type=int, default=128)
    parser.add_argument("--seeds", type=int, default=5, help="number of scenes; 0 = the crowd alone")
    parser.add_argument("--crowd", type=int, nargs="*", default=[25_000, 100_000], help="border objects")
    parser.add_argument("--crowd-chip", type=int, default=512)
    parser.add_argument("--crowd-overlap", type=int, default=128)
    parser.add_argument("--repeat", type=int, default=3, help="runs of a crowd; the best counts")
    parser.add_argument("--timeout", type=float, default=900, help="seconds after which a rule is ended")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="what the last line reports")
    parser.add_argument("--quick", action="store_true", help="one small scene and a small crowd")
    args = parser.parse_args()
    if args.quick:
        args.size, args.chip, args.overlap, args.seeds = 1536, 512, 64, 1
        args.crowd, args.repeat = [500, 2_000], 1
    with tempfile.TemporaryDirectory() as scratch:
        rows = compare(args, Path(scratch))
        crowds = crowd(args, Path(scratch))
    figures = []
    if rows:
        print_table(rows)
        ours = [result for _, result in rows[OURS] if result is not None]
        figures.append(f"{100 * np.mean([_share(ours, kind) for kind in KINDS]):.1f} % recovered")
    if crowds:
        (few, first), (many, last) = crowds[0], crowds[-1]
        time, memory = last.on(args.clock) / first.on(args.clock), last.megabytes / first.megabytes
        figures.append(
            f"{many} border objects in {last.on(args.clock):.2f} s (bar 10); {many / few:.1f} x the objects cost "
            f"{time:.2f} x the time (bar 4.6), {memory:.2f} x the memory (bar 4.2)"
        )
    print("stitching: " + "; ".join(figures))


if __name__ == "__main__":
    main()
