"""Masks to polygons: objects per second of four ways, and whether the outlines are GDAL's.

    python benchmarks/polygons.py [--objects 9000] [--rounds 3]

The masks are irregular blobs of about 400 pixels in a raster of 4,096 x 4,096, holes and corners that touch included.
All end as shapely polygons in world coordinates and are measured in turn, round after round; the best round counts:

- `rasterio.features.shapes` on the crop of each object, the usual loop
- `rasterio.features.shapes` on a raster of labels, which only works while no objects overlap
- `cv2.findContours` on each crop: fast, but through the centres of pixels, which loses half a pixel all round
- `rsgeoseg.geo.polygonize`

Bars: 10 x the rate of shapes per crop, 0 pixels of symmetric difference to its polygons, all valid. A second table says
where the time of the finished frame goes.
"""

from __future__ import annotations

import argparse
import math
import time
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import rasterio.features
import shapely
from affine import Affine
from rasterio.crs import CRS

from rsgeoseg.geo.frame import measure, objects_to_frame
from rsgeoseg.geo.grid import GeoGrid
from rsgeoseg.geo.polygonize import polygonize
from rsgeoseg.geo.stitch import StitchedObject
from rsgeoseg.geo.windows import Box

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

SIDE = 4096
GRID = GeoGrid(SIDE, SIDE, Affine(0.3, 0, 500_000, 0, -0.3, 5_000_000), CRS.from_epsg(32631))


def make_objects(count: int) -> tuple[list[StitchedObject], np.ndarray]:
    """Cut smooth noise at a level into about ``count`` blobs, and scratch some: objects and the raster of labels."""
    rng = np.random.default_rng(0)
    spread = SIDE / math.sqrt(count) / 7
    noise = cv2.GaussianBlur(rng.standard_normal((SIDE, SIDE), np.float32), (0, 0), spread)
    solid = (noise > np.quantile(noise, 0.75)) & (rng.random((SIDE, SIDE)) > 0.002)
    total, labels, stats, _ = cv2.connectedComponentsWithStats(solid.astype(np.uint8), connectivity=8)
    objects = []
    for label in range(1, total):
        x, y, width, height, _ = stats[label].tolist()
        mask = labels[y : y + height, x : x + width] == label
        box = Box(x, y, x + width, y + height)
        objects.append(StitchedObject(box, mask, 0, 0.9, 1, seam=False, truncated=False))
    return objects, labels


def whole(found: Any) -> shapely.Geometry:
    """One geometry of the parts that ``shapes`` yields."""
    parts = [shapely.geometry.shape(part) for part, _ in found]
    return parts[0] if len(parts) == 1 else shapely.MultiPolygon(parts)


def shapes_per_crop(objects: Sequence[StitchedObject]) -> list[shapely.Geometry]:
    return [
        whole(
            rasterio.features.shapes(
                item.mask.view(np.uint8),
                mask=item.mask,
                transform=GRID.affine @ Affine.translation(item.box.x0, item.box.y0),
            )
        )
        for item in objects
    ]


def shapes_of_labels(labels: np.ndarray) -> list[shapely.Geometry]:
    found = rasterio.features.shapes(labels, mask=labels > 0, transform=GRID.affine)
    return [shapely.geometry.shape(part) for part, _ in found]


def contours_per_crop(objects: Sequence[StitchedObject]) -> list[shapely.Geometry]:
    polygons = []
    for item in objects:
        contours, _ = cv2.findContours(
            item.mask.view(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE, offset=(item.box.x0, item.box.y0)
        )
        rings = [GRID.xy(ring[:, 0].astype(float)) for ring in contours if len(ring) > 2]
        polygons.append(shapely.MultiPolygon([shapely.Polygon(ring) for ring in rings]))
    return polygons


def in_turn(ways: dict[str, Callable[[], Any]], rounds: int) -> tuple[dict[str, float], dict[str, Any]]:
    """Best CPU seconds of each way, and what each made."""
    best, made = dict.fromkeys(ways, math.inf), {}
    for _ in range(rounds):
        for name, way in ways.items():
            start = time.process_time()
            made[name] = way()
            best[name] = min(best[name], time.process_time() - start)
    return best, made


def compare(objects: Sequence[StitchedObject], labels: np.ndarray, rounds: int) -> tuple[float, float, float]:
    """Print the table of ways; return how many times ours is as fast, the difference in pixels, the share valid."""
    best, made = in_turn(
        {
            "shapes per crop": lambda: shapes_per_crop(objects),
            "shapes of labels": lambda: shapes_of_labels(labels),
            "findContours": lambda: contours_per_crop(objects),
            "rsgeoseg": lambda: polygonize(objects, GRID),
        },
        rounds,
    )
    pixels = np.array([np.count_nonzero(item.mask) for item in objects])
    pixel = abs(GRID.affine.determinant)
    print(f"{'':18s} objects/s   times shapes per crop   valid   error of area")
    for name, seconds in best.items():
        polygons = np.array(made[name], object)
        area = shapely.area(polygons).sum() / pixel / pixels.sum() - 1
        valid = 100 * shapely.is_valid(polygons).mean()
        times = best["shapes per crop"] / seconds
        print(f"{name:18s} {len(objects) / seconds:9,.0f} {times:23.1f} {valid:6.1f} % {100 * area:13.2f} %")
    ours = np.array(made["rsgeoseg"], object)
    difference = shapely.area(shapely.symmetric_difference(ours, np.array(made["shapes per crop"], object))) / pixel
    return best["shapes per crop"] / best["rsgeoseg"], float(difference.max()), float(shapely.is_valid(ours).mean())


def split(objects: Sequence[StitchedObject], rounds: int) -> None:
    """Print where the time of a finished frame goes."""
    polygons = polygonize(objects, GRID)
    best, _ = in_turn(
        {
            "count pixels": lambda: [np.count_nonzero(item.mask) for item in objects],
            "polygonize": lambda: polygonize(objects, GRID),
            "measure": lambda: measure(polygons, GRID),
            "the whole frame": lambda: objects_to_frame(objects, grid=GRID, classes=("object",), model="none"),
        },
        rounds,
    )
    for name, seconds in best.items():
        print(f"{name:18s} {1e6 * seconds / len(objects):6.1f} us an object")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--objects", type=int, default=9000, help="about so many")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    objects, labels = make_objects(args.objects)
    print(f"{len(objects)} objects, {np.mean([np.count_nonzero(item.mask) for item in objects]):.0f} pixels each")
    times, difference, valid = compare(objects, labels, args.rounds)
    split(objects, args.rounds)
    print(
        f"polygons: {times:.1f} x shapes per crop (bar 10), symmetric difference {difference:.3f} pixels (bar 0),"
        f" {100 * valid:.1f} % valid (bar 100)"
    )


if __name__ == "__main__":
    main()
