"""Accuracy on the map: the held-out images of a COCO set as one georeferenced scene, through the whole job.

    python benchmarks/mosaic.py IMAGES ANNOTATIONS [--model rsprompter-query] [--weights ...] [--device auto]

Images are sorted by file name; every fifth (index 0, 5, 10, ...) is held out, and these are laid side by side on
shelves at their native size, so that the tiles of the run cut through them anywhere. Reported: class-aware AP and AP50
of the polygons (``rsgeoseg.evaluate.polygons``) over all results above ``--score-threshold``, pairs of duplicates, and
scene Mpx per second of the whole job without loading the model.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import geopandas
import numpy as np
import pyogrio
import rasterio
import shapely
from affine import Affine
from rasterio.windows import Window

from rsgeoseg.datasets.coco import CocoInstances
from rsgeoseg.evaluate.polygons import PolygonResult, polygon_metrics

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rsgeoseg.datasets.labelled import LabelledImage

ORIGIN = (500_000.0, 5_400_000.0)
CRS = "EPSG:32631"


@dataclass(frozen=True, slots=True)
class Mosaic:
    """A scene made of images, and its truth."""

    scene: Path
    """GeoTIFF, 3 bands, uint8."""
    truth: Path
    """GeoPackage of the true polygons with ``class_name``."""
    corners: tuple[tuple[int, int], ...]
    """x0 y0 of each image in the scene, pixels, in the order given."""
    height: int
    """Pixels."""
    width: int
    """Pixels."""


def pack_shelves(sizes: Sequence[tuple[int, int]], gap: int = 0) -> tuple[list[tuple[int, int]], int, int]:
    """Lay rectangles on shelves, highest first, in a roughly square sheet.

    Args:
        sizes: height width of each rectangle, pixels.
        gap: free pixels between neighbours.

    Returns:
        x0 y0 of each rectangle in the order given, and height and width of the sheet.
    """
    area = sum((h + gap) * (w + gap) for h, w in sizes)
    wide = max(*(w for _, w in sizes), math.ceil(math.sqrt(area) * 1.03))
    corners, x, y, shelf, used = [(0, 0)] * len(sizes), 0, 0, 0, 0
    for i in sorted(range(len(sizes)), key=lambda i: (-sizes[i][0], i)):
        h, w = sizes[i]
        if x and x + w > wide:
            x, y, shelf = 0, y + shelf + gap, 0
        corners[i] = (x, y)
        x, shelf, used = x + w + gap, max(shelf, h), max(used, x + w)
    return corners, y + shelf, used


def build_mosaic(
    images: Sequence[LabelledImage], classes: Sequence[str], folder: Path, *, gap: int = 0, gsd: float = 0.5
) -> Mosaic:
    """Write the scene and its truth.

    Args:
        images: what to lay out.
        classes: names of the labels.
        folder: where ``mosaic.tif`` and ``truth.gpkg`` go.
        gap: pixels between images; gaps and shelf ends get the mean colour.
        gsd: pixel side in metres that the scene claims.
    """
    corners, height, width = pack_shelves([(image.height, image.width) for image in images], gap)
    affine = Affine(gsd, 0, ORIGIN[0], 0, -gsd, ORIGIN[1])
    first = images[0].read()
    canvas = np.empty((3, height, width), np.uint8)
    canvas[:] = first.reshape(-1, 3).mean(0).astype(np.uint8)[:, None, None]
    shapes, names = [], []
    for image, (x0, y0) in zip(images, corners, strict=True):
        canvas[:, y0 : y0 + image.height, x0 : x0 + image.width] = image.read().transpose(2, 0, 1)
        for label, rings in zip(image.labels.tolist(), image.shapes, strict=True):
            moved = [shapely.Polygon(_to_world(ring + np.array([x0, y0]), affine)) for ring in rings if len(ring) > 2]
            shapes.append(shapely.union_all(shapely.make_valid(moved)))
            names.append(classes[label])
    scene, truth = folder / "mosaic.tif", folder / "truth.gpkg"
    profile = {
        "driver": "GTiff", "height": height, "width": width, "count": 3, "dtype": "uint8", "crs": CRS,
        "transform": affine, "tiled": True, "blockxsize": 512, "blockysize": 512, "compress": "deflate",
        "interleave": "pixel", "photometric": "rgb",
    }  # fmt: skip
    with rasterio.open(scene, "w", **profile) as sink:
        for y0 in range(0, height, 512):
            rows = min(512, height - y0)
            sink.write(canvas[:, y0 : y0 + rows], window=Window(0, y0, width, rows))
    pyogrio.write_dataframe(geopandas.GeoDataFrame({"class_name": names}, geometry=shapes, crs=CRS), truth)
    return Mosaic(scene, truth, tuple(corners), height, width)


def _to_world(ring: np.ndarray, affine: Affine) -> np.ndarray:
    return np.stack([affine.a * ring[:, 0] + affine.c, affine.e * ring[:, 1] + affine.f], axis=1)


def report(result: PolygonResult, confident: PolygonResult, megapixels: float, seconds: float) -> dict[str, object]:
    """Collect the figures as plain JSON values."""
    return {
        **result.to_dict(),
        "n_found_confident": confident.n_found,
        "duplicates_confident": confident.duplicates,
        "megapixels": round(megapixels, 2),
        "seconds": round(seconds, 1),
        "mpx_per_s": round(megapixels / seconds, 3),
    }


def measure(mosaic: Mosaic, args: argparse.Namespace, folder: Path) -> dict[str, object]:
    """Run the whole job on a mosaic and score it."""
    import rsgeoseg

    model = rsgeoseg.load_model(args.model, weights=args.weights, device=args.device)
    options = {name: value for name in ("chip_size", "overlap") if (value := getattr(args, name)) is not None}
    start = time.perf_counter()
    found = rsgeoseg.run(
        mosaic.scene, model, output=folder / "found.gpkg", overwrite=True,
        score_threshold=args.score_threshold, **options,
    )  # fmt: skip
    seconds = time.perf_counter() - start
    truth = geopandas.read_file(mosaic.truth)
    sure = found[found["score"] >= model.spec.score_threshold]
    megapixels = mosaic.height * mosaic.width / 1e6
    return report(polygon_metrics(truth, found), polygon_metrics(truth, sure), megapixels, seconds)


def _print(figures: dict[str, object], path: Path) -> None:
    print(f"{'class':22s} {'AP':>6s} {'AP50':>6s} {'truth':>6s} {'found':>6s}")
    for row in figures["per_class"]:
        ap, ap50 = (float("nan") if row[key] is None else 100 * row[key] for key in ("ap", "ap50"))
        print(f"{row['name']:22s} {ap:6.1f} {ap50:6.1f} {row['n_truth']:6d} {row['n_found']:6d}")
    print(f"figures: {path}")
    print(
        f"mosaic: AP {figures['ap']:.4f}  AP50 {figures['ap50']:.4f}  duplicates {figures['duplicates']} "
        f"({figures['duplicates_confident']} among confident)  fragmented {figures['fragmented']}  "
        f"{figures['megapixels']} Mpx  {figures['mpx_per_s']} Mpx/s"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path, help="folder of images")
    parser.add_argument("annotations", type=Path, help="COCO instances JSON")
    parser.add_argument("--model", default="rsprompter-query")
    parser.add_argument("--weights", default=None, help="weights name or file; default the model's own")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--chip-size", type=int, default=None)
    parser.add_argument("--overlap", type=int, default=None)
    parser.add_argument("--score-threshold", type=float, default=0.05, help="AP needs the unsure results too")
    parser.add_argument("--all", action="store_true", help="every image, not only the held-out fifth")
    parser.add_argument("--gap", type=int, default=0, help="pixels between images")
    parser.add_argument("--out", type=Path, default=None, help="folder to keep scene, truth, result and figures in")
    args = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    data = CocoInstances(args.images, args.annotations)
    chosen = data if args.all else data.split()[1]
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.out or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        figures = measure(
            build_mosaic([chosen.labelled(i) for i in range(len(chosen))], chosen.classes, folder, gap=args.gap),
            args,
            folder,
        )
        path = folder / "mosaic.json"
        path.write_text(json.dumps(figures, indent=1))
        _print(figures, path)


if __name__ == "__main__":
    main()
