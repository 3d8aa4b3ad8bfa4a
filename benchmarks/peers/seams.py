"""Seams of a real model: the very same masks of each chip, joined by our rule and by peers'.

    python benchmarks/peers/seams.py [IMAGES ANNOTATIONS] [--mpx 16] [--quick] [--keep FOLDER]

The held-out images of a COCO set are laid out as one scene (see ``benchmarks/mosaic.py``), up to ``--mpx``; without a
set a generated scene is used. The model sees each chip once and every rule gets what it found; with ``--keep`` the next
call takes it from there. AP is over all masks with a score of at least 0.05; what goes wrong at seams is counted on a
map of the masks above the model's own threshold. Rules of packages that are not installed are left out.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import geopandas
import numpy as np
import shapely
from detections import Detections, Joined
from isolated import measure
from rules import prepare_all
from stitching import installed

import rsgeoseg
from rsgeoseg.engine.edges import select
from rsgeoseg.evaluate.polygons import PolygonResult, polygon_metrics
from rsgeoseg.evaluate.seam_zones import place, seam_strips
from rsgeoseg.geo.windows import plan_windows
from rsgeoseg.testing.scenes import generate_scene

sys.path.append(str(Path(__file__).resolve().parents[1]))  # for mosaic.py

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from rsgeoseg.contract import Segmenter
    from rsgeoseg.geo.grid import GeoGrid
    from rsgeoseg.geo.windows import WindowPlan

_RUN = 5
"""Least pixels of outline along a chip's border of a result that ends there."""


def make_scene(args: argparse.Namespace, folder: Path) -> tuple[Path, Path]:
    """Lay out the scene and its truth."""
    if args.images is None:
        side = round((args.mpx * 1e6) ** 0.5)
        generate_scene(folder / "scene.tif", height=side, width=side, seed=7, truth=folder / "truth.gpkg")
        return folder / "scene.tif", folder / "truth.gpkg"
    from mosaic import build_mosaic

    from rsgeoseg.datasets.coco import CocoInstances

    held = CocoInstances(args.images, args.annotations).split()[1]
    images = [held.labelled(i) for i in range(len(held))]
    share = args.mpx * 1e6 / sum(image.height * image.width for image in images)
    chosen = images[:: max(1, round(1 / share))]
    mosaic = build_mosaic(chosen, held.classes, folder)
    return mosaic.scene, mosaic.truth


def segment_chips(scene: rsgeoseg.Scene, model: Segmenter, args: argparse.Namespace) -> Detections:
    """See every chip once."""
    spec, found = model.spec, []
    faint = model.at_threshold(args.score_threshold)
    overlap = spec.overlap if args.overlap is None else args.overlap
    plan = plan_windows(scene.grid.height, scene.grid.width, chip_size=spec.chip_size, overlap=overlap)
    for window in plan.windows:
        seen = faint.segment([scene.read(window.read)])[0]
        found.append(select(seen, score_threshold=args.score_threshold, labels=None))
    return Detections(plan=plan, classes=spec.classes, found=found)


def confident(detections: Detections, threshold: float) -> Detections:
    """Masks above a score."""
    kept = [select(one, score_threshold=threshold, labels=None) for one in detections.found]
    return replace(detections, found=kept)


def to_frame(joined: Joined, classes: tuple[str, ...], grid: GeoGrid, crs: object) -> geopandas.GeoDataFrame:
    """Carry a result to the world."""
    return geopandas.GeoDataFrame(
        {"class_name": [classes[label] for label in joined.labels.tolist()], "score": joined.scores},
        geometry=shapely.transform(joined.shapes, grid.xy),
        crs=crs,
    )


def count_cut(shapes: NDArray[np.object_], plan: WindowPlan) -> int:
    """Count results that end at a border of a chip, inside the scene.

    Their outline runs along the border, of a read box or a core, for at least half of their own extent that way: a step
    where two chips disagree by a few pixels is none.
    """
    boxes = np.array([[b.x0, b.y0, b.x1, b.y1] for w in plan.windows for b in (w.read, w.core)])
    parts, owner = shapely.get_parts(shapes, return_index=True)
    rings, part = shapely.get_rings(parts, return_index=True)
    points, ring = shapely.get_coordinates(rings, return_index=True)
    of, bounds = owner[part[ring[:-1]]], shapely.bounds(shapes)
    cut = np.zeros(len(shapes), np.bool_)
    for axis, end in ((0, plan.width), (1, plan.height)):
        along, lines = 1 - axis, np.setdiff1d(boxes[:, [axis, axis + 2]], [0, end])
        first, last = points[:-1], points[1:]
        on_line = (ring[:-1] == ring[1:]) & (first[:, axis] == last[:, axis]) & np.isin(first[:, axis], lines)
        runs = np.abs(last[:, along] - first[:, along])
        half = (bounds[of, along + 2] - bounds[of, along]) / 2
        cut[of[on_line & (runs >= np.maximum(half, _RUN))]] = True
    return int(cut.sum())


def evaluate(
    everything: Joined, sure: Joined, detections: Detections, grid: GeoGrid, truth: geopandas.GeoDataFrame
) -> tuple[PolygonResult, PolygonResult, int]:
    """Score all masks, and the map of confident ones; results of the map that end along a chip's border."""
    plan = detections.plan
    reads = [[w.read.x0, w.read.y0, w.read.x1, w.read.y1] for w in plan.windows]
    strips = place(seam_strips(reads), tuple(grid.affine)[:6], truth.crs, truth.crs)
    every, shown = (
        polygon_metrics(truth, to_frame(joined, detections.classes, grid, truth.crs), strips=strips)
        for joined in (everything, sure)
    )
    return every, shown, count_cut(sure.shapes, plan)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", nargs="?", type=Path, help="folder of images")
    parser.add_argument("annotations", nargs="?", type=Path, help="COCO instances JSON")
    parser.add_argument("--model", default="rsprompter-query")
    parser.add_argument("--weights", default=None)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--overlap", type=int, default=None, help="pixels; default the model's")
    parser.add_argument("--mpx", type=float, default=16.0, help="size of the scene, roughly")
    parser.add_argument("--score-threshold", type=float, default=0.05, help="AP needs the unsure results too")
    parser.add_argument("--timeout", type=float, default=900, help="seconds after which a rule is ended")
    parser.add_argument("--keep", type=Path, default=None, help="folder for scene, truth and the chips' masks")
    parser.add_argument("--quick", action="store_true", help="a small scene")
    args = parser.parse_args()
    if args.quick:
        args.mpx, args.timeout = 2.5, 30
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.keep or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        scene_path, truth_path = make_scene(args, folder)
        paths = [folder / "all.bin", folder / "sure.bin"]
        model = rsgeoseg.load_model(args.model, weights=args.weights, device=args.device)
        with rsgeoseg.Scene.open(scene_path) as scene:
            grid = scene.grid
            if not paths[0].exists():
                segment_chips(scene, model, args).save(paths[0])
        detections = Detections.load(paths[0])
        confident(detections, model.spec.score_threshold).save(paths[1])
        plan = detections.plan
        print(f"scene: {grid.width} x {grid.height}, {len(plan.windows)} chips of {plan.chip_size} with an overlap of "
              f"{plan.overlap}, {len(detections)} masks", flush=True)  # fmt: skip
        truth = geopandas.read_file(truth_path)
        heads = ["joining rule", "AP", "AP50", "AP at seams", "AP50 at seams", "objects on the map", "duplicates",
                 "in pieces", "cut at a chip's border", "seconds"]  # fmt: skip
        print("\n| " + " | ".join(heads) + " |\n|" + "---|" * len(heads))
        figures = {}
        for name in installed():
            done = measure(prepare_all, name, paths, timeout=args.timeout)
            if done.error:
                print(f"| {name} | {done.error}", flush=True)
                continue
            every, shown, cut = evaluate(*done.result, detections, grid, truth)
            seam = next(zone for zone in every.zones if zone.name == "seam")
            cells = [f"{100 * value:.1f}" for value in (every.ap, every.ap50, seam.ap, seam.ap50)]
            cells += [str(value) for value in (shown.n_found, shown.duplicates, shown.fragmented, cut)]
            print(f"| {name} | " + " | ".join([*cells, f"{done.seconds:.2f}"]) + " |", flush=True)
            figures[name] = seam.ap, shown.duplicates, cut
    ap, duplicates, cut = figures.pop("rsgeoseg")
    best = max(figures, key=lambda name: figures[name][0])
    print(f"seams: AP at seams {100 * ap:.1f}, {duplicates} duplicates, {cut} cut; the best other, {best}: "
          f"{100 * figures[best][0]:.1f}, {figures[best][1]}, {figures[best][2]}")  # fmt: skip


if __name__ == "__main__":
    main()
