"""Average precision on the map: polygons of two vector files by COCO's rule, the whole map being one image.

Unlike in COCO, a map has no limit of 100 detections.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyproj
import shapely

from rsgeoseg.evaluate.map_objects import MapObjects, pair_maps, read_map
from rsgeoseg.evaluate.matching import THRESHOLDS, Overlaps, average_precision, match_greedy
from rsgeoseg.evaluate.plain import plain_values
from rsgeoseg.evaluate.seam_zones import touches_strip

if TYPE_CHECKING:
    from pathlib import Path

    import geopandas
    from numpy.typing import NDArray

_SAME = 0.5
"""IoU above which two results of one class are one object found twice."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PolygonClassResult:
    """Figures of one class."""

    name: str
    """Class name; ``*`` where classes are ignored."""
    ap: float
    """Mean over IoU 0.50:0.05:0.95; NaN where the truth has no such object."""
    ap50: float
    """At IoU 0.50."""
    n_truth: int
    """Objects in the truth."""
    n_found: int
    """Objects in the result."""
    n_matched: int
    """Pairs at IoU 0.50."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ZoneResult:
    """Figures of a part of the map, by COCO's rule for ranges of size.

    True objects elsewhere are ignored, and so are results that match one of them or lie elsewhere themselves.
    """

    name: str
    """``core``: touches no seam strip; ``seam``: touches one, that is, more than one chip saw a part of it."""
    ap: float
    """Mean over the classes that the zone's truth has and IoU 0.50:0.05:0.95; NaN where it has none."""
    ap50: float
    """At IoU 0.50."""
    recall: float
    """Share of the zone's true objects with a partner at IoU 0.50, all classes together; NaN without objects."""
    n_truth: int
    """True objects of the zone."""
    n_found: int
    """Results that count in the zone at IoU 0.50."""
    n_matched: int
    """Pairs at IoU 0.50."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MapArea:
    """Ground that a map covers."""

    km2: float
    """Square kilometres."""
    what: str
    """What was measured, in words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PolygonResult:
    """Figures of a map, 0-1, and what goes wrong when a map is made of tiles."""

    ap: float
    """Mean over the truth's classes and IoU 0.50:0.05:0.95; NaN where the truth is empty."""
    ap50: float
    """At IoU 0.50."""
    ap75: float
    """At IoU 0.75."""
    recall: float
    """Share of the true objects with a partner at IoU 0.50, all classes together; NaN where the truth is empty."""
    n_truth: int
    """Objects in the truth."""
    n_found: int
    """Objects in the result, also of classes that the truth lacks."""
    n_matched: int
    """Pairs at IoU 0.50."""
    duplicates: int
    """Pairs of result objects of one class whose IoU exceeds 0.5: one thing found twice."""
    fragmented: int
    """Truth objects without a partner at IoU 0.50 that hold two or more results of their class, each with more than
    half of its own area inside: one thing left in pieces."""
    area_km2: float
    """Ground covered, for the densities; NaN where there is no CRS."""
    area_of: str
    """What ``area_km2`` is the area of, in words."""
    duplicates_per_km2: float
    fragmented_per_km2: float
    truth_repaired: int
    """Invalid polygons of the truth that were mended."""
    truth_left_out: int
    """Rows of the truth without a usable polygon."""
    found_repaired: int
    """The same in the result."""
    found_left_out: int
    """The same in the result."""
    zones: tuple[ZoneResult, ...]
    """``core`` and ``seam``; empty where the seam strips are not known."""
    per_class: tuple[PolygonClassResult, ...]
    """Sorted by name; classes that only the result has are included with NaN."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values; NaN becomes None."""
        plain: dict[str, Any] = plain_values(asdict(self))
        return plain


@dataclass(frozen=True, slots=True, eq=False)
class _OneClass:
    """Truth and result of one class, matched at every threshold."""

    name: str
    truth: NDArray[np.object_]
    found: NDArray[np.object_]
    """Best score first."""
    overlaps: Overlaps
    matches: NDArray[np.int64]
    """(T, M) partner of each result, -1 = none."""
    truth_in_strip: NDArray[np.bool_]
    found_in_strip: NDArray[np.bool_]

    def figures(self) -> PolygonClassResult:
        precision = self.precision(self.matches >= 0, len(self.truth))
        return PolygonClassResult(
            name=self.name,
            ap=float(precision.mean()),
            ap50=float(precision[0]),
            n_truth=len(self.truth),
            n_found=len(self.found),
            n_matched=int((self.matches[0] >= 0).sum()),
        )

    @staticmethod
    def precision(hits: NDArray[np.bool_], n_truth: int) -> NDArray[np.float64]:
        """AP at every threshold (T,) from hits (T, M)."""
        return np.array([average_precision(row, n_truth) for row in hits])

    def zone(self, *, in_strip: bool) -> tuple[NDArray[np.float64], tuple[int, int, int]]:
        """AP at every threshold; true objects, results and pairs of the part that is, or is not, in a strip."""
        spare, elsewhere = self.truth_in_strip != in_strip, self.found_in_strip != in_strip
        n_truth, precision, counts = int((~spare).sum()), [], []
        for threshold in THRESHOLDS:
            partner = match_greedy(self.overlaps, len(self.truth), len(self.found), float(threshold), spare)
            matched = partner >= 0
            counting = np.where(matched, ~spare[partner] if len(spare) else False, ~elsewhere)
            precision.append(average_precision(matched[counting], n_truth))
            counts.append((int(counting.sum()), int(matched[counting].sum())))
        return np.array(precision), (n_truth, *counts[0])


def polygon_metrics(
    truth: geopandas.GeoDataFrame | str | Path,
    result: geopandas.GeoDataFrame | str | Path,
    *,
    class_aware: bool = True,
    class_column: str | None = None,
    score_column: str | None = None,
    strips: NDArray[np.object_] | None = None,
    area: MapArea | None = None,
) -> PolygonResult:
    """Score a map of polygons against the true one.

    The result is brought to the truth's CRS where both have one; invalid polygons are repaired first. IoU is planar.

    Args:
        truth: true polygons, or a vector file of them.
        result: found polygons, or a file.
        class_aware: match within a class only and average over classes; else all are one class, and also, with a
            warning, where the result has no classes.
        class_column: column of class names, where it is called otherwise than ``class_name`` in one or both.
        score_column: column of scores in the result, where it is called otherwise than ``score``; none = all 1.
        strips: (S,) shapely polygons in the truth's CRS that more than one chip saw; divides the map into zones.
        area: ground that the map covers; None = that of the hull of the truth.

    Raises:
        UsageError: a file cannot be read or lacks the class column.
    """
    pair = pair_maps(
        read_map(truth, "truth", class_column=class_column),
        read_map(result, "result", class_column=class_column, score_column=score_column),
        class_aware=class_aware,
        class_column=class_column,
    )
    return compare_maps(*pair, strips=strips, area=area)


def compare_maps(
    truth: MapObjects,
    result: MapObjects,
    *,
    strips: NDArray[np.object_] | None = None,
    area: MapArea | None = None,
) -> PolygonResult:
    """Score a map as ``polygon_metrics`` does, from a pair of ``pair_maps``."""
    classes = _by_class(truth, result, np.zeros(0, object) if strips is None else strips)
    rows = [one.figures() for one in classes]
    known = [one.precision(one.matches >= 0, len(one.truth)) for one in classes if len(one.truth)]
    mean = np.mean(known, axis=0) if known else np.full(len(THRESHOLDS), math.nan)
    area = hull_area(truth) if area is None else area
    duplicates = sum(count_duplicates(one.found) for one in classes)
    fragmented = sum(_count_fragmented(one.overlaps, one.matches[0], len(one.truth)) for one in classes)
    n_matched = sum(row.n_matched for row in rows)
    return PolygonResult(
        ap=float(mean.mean()),
        ap50=float(mean[0]),
        ap75=float(mean[5]),
        recall=n_matched / len(truth) if len(truth) else math.nan,
        n_truth=len(truth),
        n_found=len(result),
        n_matched=n_matched,
        duplicates=duplicates,
        fragmented=fragmented,
        area_km2=area.km2,
        area_of=area.what,
        duplicates_per_km2=duplicates / area.km2 if area.km2 else math.nan,
        fragmented_per_km2=fragmented / area.km2 if area.km2 else math.nan,
        truth_repaired=truth.repaired,
        truth_left_out=truth.left_out,
        found_repaired=result.repaired,
        found_left_out=result.left_out,
        zones=() if strips is None else (_zone(classes, "core"), _zone(classes, "seam")),
        per_class=tuple(rows),
    )


def measure_overlaps(truth: NDArray[np.object_], found: NDArray[np.object_]) -> Overlaps:
    """Measure every pair that shares area.

    Args:
        truth: (N,) valid shapely polygons.
        found: (M,) valid shapely polygons, best score first.
    """
    if not len(truth) or not len(found):
        none = np.zeros(0, np.int64)
        return Overlaps(none, none, np.zeros(0), np.zeros(0))
    which, of = shapely.STRtree(truth).query(found, predicate="intersects")
    common = shapely.area(shapely.intersection(found[which], truth[of]))
    found_area, truth_area = shapely.area(found)[which], shapely.area(truth)[of]
    return Overlaps.sort(which, of, common / (found_area + truth_area - common), common / found_area)


def count_duplicates(shapes: NDArray[np.object_]) -> int:
    """Count pairs of polygons, all of one class, whose IoU exceeds 0.5."""
    if len(shapes) < 2:
        return 0
    one, other = shapely.STRtree(shapes).query(shapes, predicate="intersects")
    one, other = one[one < other], other[one < other]
    common = shapely.area(shapely.intersection(shapes[one], shapes[other]))
    union = shapely.area(shapes)[one] + shapely.area(shapes)[other] - common
    return int((common > _SAME * union).sum())


def hull_area(objects: MapObjects) -> MapArea:
    """Measure the convex hull of objects."""
    hull = shapely.convex_hull(shapely.geometrycollections(objects.shapes))
    return MapArea(km2=ground_km2(hull, objects.crs), what="convex hull of the truth")


def ground_km2(shape: shapely.Geometry, crs: Any) -> float:
    """Measure a polygon on the ellipsoid, square kilometres; NaN without a CRS."""
    if crs is None:
        return math.nan
    crs = pyproj.CRS.from_user_input(crs)
    lon_lat = crs.geodetic_crs if crs.geodetic_crs is not None else pyproj.CRS.from_epsg(4326)
    step = pyproj.Transformer.from_crs(crs, lon_lat, always_xy=True)
    degrees = shapely.transform(shape, step.transform, interleaved=False)
    geod = lon_lat.get_geod() or pyproj.Geod(ellps="WGS84")
    return abs(float(geod.geometry_area_perimeter(degrees)[0])) / 1e6


def _by_class(truth: MapObjects, result: MapObjects, strips: NDArray[np.object_]) -> list[_OneClass]:
    assert truth.classes is not None
    assert result.classes is not None
    true_in_strip, found_in_strip = touches_strip(truth.shapes, strips), touches_strip(result.shapes, strips)
    classes = []
    for name in sorted(set(truth.classes.tolist()) | set(result.classes.tolist())):
        mine = np.flatnonzero(truth.classes == name)
        which = np.flatnonzero(result.classes == name)
        which = which[np.argsort(-result.scores[which], kind="mergesort")]
        shapes, found = truth.shapes[mine], result.shapes[which]
        overlaps = measure_overlaps(shapes, found)
        matches = np.stack([match_greedy(overlaps, len(mine), len(which), float(t)) for t in THRESHOLDS])
        classes.append(
            _OneClass(name, shapes, found, overlaps, matches, true_in_strip[mine], found_in_strip[which]),
        )
    return classes


def _zone(classes: list[_OneClass], name: str) -> ZoneResult:
    parts = [one.zone(in_strip=name == "seam") for one in classes]
    known = [precision for precision, counts in parts if counts[0]]
    mean = np.mean(known, axis=0) if known else np.full(len(THRESHOLDS), math.nan)
    n_truth, n_found, n_matched = (sum(counts[i] for _, counts in parts) for i in range(3))
    return ZoneResult(
        name=name,
        ap=float(mean.mean()),
        ap50=float(mean[0]),
        recall=n_matched / n_truth if n_truth else math.nan,
        n_truth=n_truth,
        n_found=n_found,
        n_matched=n_matched,
    )


def _count_fragmented(overlaps: Overlaps, matches: NDArray[np.int64], n_truth: int) -> int:
    pieces = np.bincount(overlaps.truth[overlaps.inside > 0.5], minlength=n_truth)
    matched = np.zeros(n_truth, bool)
    matched[matches[matches >= 0]] = True
    return int(((pieces >= 2) & ~matched).sum())
