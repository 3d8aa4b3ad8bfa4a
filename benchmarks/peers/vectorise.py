"""Masks to polygons, in ours and with the usual calls; ``benchmarks/writing.py`` writes them.

    python benchmarks/peers/vectorise.py [--quick] [--size 4096]

Irregular blobs on a label raster go through four ways to polygons; GDAL's ring, along pixel edges, is the measure: how
many pixels differ, and are the polygons valid?
"""

from __future__ import annotations

import argparse
import time
from typing import TYPE_CHECKING

import cv2
import numpy as np
import shapely
from affine import Affine
from rasterio.features import shapes

from rsgeoseg.geo.grid import GeoGrid
from rsgeoseg.geo.polygonize import polygonize
from rsgeoseg.geo.stitch import StitchedObject
from rsgeoseg.geo.windows import Box
from rsgeoseg.testing.oracle import find_instances

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray


def draw_blobs(size: int, seed: int = 0) -> NDArray[np.int32]:
    """Draw irregular objects: smooth noise above a threshold, taken apart into 8-connected parts."""
    noise = np.random.default_rng(seed).standard_normal((size, size)).astype(np.float32)
    smooth = cv2.GaussianBlur(noise, (0, 0), 5)
    _, ids = cv2.connectedComponents((smooth > 0.7 * smooth.std()).astype(np.uint8), connectivity=8, ltype=cv2.CV_32S)
    return np.asarray(ids, np.int32)


class Ways:
    """Four ways from objects to polygons in pixels, all in the order of the ids."""

    def __init__(self, ids: NDArray[np.int32]) -> None:
        self.ids = ids
        values, self.boxes = find_instances(ids)
        self.masks = [
            ids[y0:y1, x0:x1] == value
            for value, (x0, y0, x1, y1) in zip(values.tolist(), self.boxes.tolist(), strict=True)
        ]
        self.objects = [
            StitchedObject(Box(*box), mask, 0, 1.0, 1, False, False)
            for box, mask in zip(self.boxes.tolist(), self.masks, strict=True)
        ]
        self.grid = GeoGrid(height=len(ids), width=ids.shape[1], affine=Affine.identity(), crs=None)

    def label_raster(self) -> NDArray[np.object_]:
        """rasterio.features.shapes once; parts of one id that touch at a corner alone come one by one."""
        found = shapes(self.ids, mask=self.ids > 0, connectivity=4)
        pairs = [(int(value), shapely.geometry.shape(shape)) for shape, value in found]
        order = np.array([value for value, _ in pairs]) - 1
        parts = np.array([shape for _, shape in pairs] + [None], object)[:-1]
        return _gather(parts, order, len(self.masks))

    def each_mask(self) -> NDArray[np.object_]:
        """rasterio.features.shapes on each object's crop."""
        parts, owner = [], []
        for number, ((x0, y0, _, _), mask) in enumerate(zip(self.boxes.tolist(), self.masks, strict=True)):
            move = Affine.translation(x0, y0)
            for shape, _ in shapes(mask.astype(np.uint8), mask=mask, connectivity=4, transform=move):
                parts.append(shapely.geometry.shape(shape))
                owner.append(number)
        return _gather(np.array([*parts, None], object)[:-1], np.array(owner), len(self.masks))

    def find_contours(self) -> NDArray[np.object_]:
        """cv2.findContours on each crop, with holes: the outline runs through the middle of pixels."""
        found = np.full(len(self.masks), shapely.Polygon(), object)
        for number, ((x0, y0, _, _), mask) in enumerate(zip(self.boxes.tolist(), self.masks, strict=True)):
            lines, tree = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
            rings = [line.reshape(-1, 2) + np.array([x0 + 0.5, y0 + 0.5]) for line in lines]
            outer = [i for i in range(len(rings)) if tree[0][i][3] < 0 and len(rings[i]) > 2]
            parts = [
                shapely.Polygon(
                    rings[i], [ring for j, ring in enumerate(rings) if tree[0][j][3] == i and len(ring) > 2]
                )
                for i in outer
            ]
            if parts:
                found[number] = parts[0] if len(parts) == 1 else shapely.MultiPolygon(parts)
        return found

    def ours(self) -> NDArray[np.object_]:
        """`rsgeoseg.geo.polygonize`."""
        return polygonize(self.objects, self.grid)


def _gather(parts: NDArray[np.object_], owner: NDArray[np.int64], count: int) -> NDArray[np.object_]:
    """Put the parts of an object together."""
    order = np.argsort(owner, kind="stable")
    many = shapely.multipolygons(parts[order], indices=owner[order], out=np.full(count, None, object))
    single = shapely.get_num_geometries(many) == 1
    many[single] = shapely.get_geometry(many[single], 0)
    return many


def fastest(work: Callable[[], object], repeat: int) -> tuple[float, object]:
    """Seconds of the fastest run, and its result."""
    best, result = float("inf"), None
    for _ in range(repeat):
        start = time.perf_counter()
        result = work()
        best = min(best, time.perf_counter() - start)
    return best, result


def compare_ways(args: argparse.Namespace) -> str:
    """Print the table; its figures."""
    ways = Ways(draw_blobs(args.size))
    rows = {
        "features.shapes, label raster": ways.label_raster,
        "features.shapes, each mask": ways.each_mask,
        "cv2.findContours, each mask": ways.find_contours,
        "rsgeoseg polygonize": ways.ours,
    }
    count, area = len(ways.masks), np.array([mask.sum() for mask in ways.masks])
    measured = {name: fastest(way, args.repeat) for name, way in rows.items()}
    reference = measured["features.shapes, label raster"][1]
    print(f"{count} objects on {args.size} x {args.size}, {area.mean():.0f} pixels and "
          f"{shapely.get_num_coordinates(reference).mean():.0f} vertices each in the mean\n")  # fmt: skip
    print("| way | polygons/s | differs from GDAL's ring, px (mean, most) | area | valid |\n|---|---|---|---|---|")
    figures = {}
    for name, (seconds, found) in measured.items():
        valid = shapely.is_valid(found)
        mended = np.where(valid, found, shapely.make_valid(found))
        differs = shapely.area(shapely.symmetric_difference(mended, reference))
        error = shapely.area(mended).sum() / area.sum() - 1
        figures[name] = count / seconds, float(differs.max()), float(valid.mean())
        print(f"| {name} | {count / seconds:,.0f} | {differs.mean():.1f}, {differs.max():.0f} | {100 * error:+.1f} % | "
              f"{100 * valid.mean():.2f} % |")  # fmt: skip
    rate, most, valid_share = figures["rsgeoseg polygonize"]
    ratio = rate / figures["features.shapes, each mask"][0]
    return (f"{rate:,.0f} polygons/s, {ratio:.1f} x per-mask shapes (bar 10), {most:g} px from GDAL's ring (bar 0), "
            f"{100 * valid_share:.2f} % valid (bar 100)")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=4096, help="side of the raster of blobs, pixels")
    parser.add_argument("--repeat", type=int, default=3, help="the best run counts")
    parser.add_argument("--quick", action="store_true", help="small rasters, once")
    args = parser.parse_args()
    if args.quick:
        args.size, args.repeat = 1024, 1
    print(f"vectorise: {compare_ways(args)}")


if __name__ == "__main__":
    main()
