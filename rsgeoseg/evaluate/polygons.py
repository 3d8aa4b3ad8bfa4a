"""Average precision on the map: polygons of two vector files by COCO's rule, the whole map being one image.

Source: the matching and interpolation rules of the COCO evaluation (Lin et al., Microsoft COCO, 2014): greedy by score,
IoU thresholds 0.50:0.05:0.95, precision made monotone and read at 101 recalls. Unlike there, a map has no limit of
100 detections.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import geopandas
import numpy as np
import pyogrio
import shapely
from pyogrio.errors import DataSourceError

from rsgeoseg.errors import UsageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

THRESHOLDS = np.linspace(0.5, 0.95, 10)
"""IoU thresholds."""
RECALLS = np.linspace(0.0, 1.0, 101)
"""Recalls at which precision is read."""
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
class PolygonResult:
    """Figures of a map, 0-1, and what goes wrong when a map is made of tiles."""

    ap: float
    """Mean over the truth's classes and IoU 0.50:0.05:0.95; NaN where the truth is empty."""
    ap50: float
    """At IoU 0.50."""
    ap75: float
    """At IoU 0.75."""
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
    per_class: tuple[PolygonClassResult, ...]
    """Sorted by name; classes that only the result has are included with NaN."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values; NaN becomes None."""
        return {**_plain(asdict(self)), "per_class": [_plain(asdict(row)) for row in self.per_class]}


@dataclass(frozen=True, slots=True)
class _Overlaps:
    """Pairs of truth and result that touch, for one class."""

    found: NDArray[np.int64]
    """(P,) index of the result, 0 = best score."""
    truth: NDArray[np.int64]
    """(P,) index of the truth."""
    iou: NDArray[np.float64]
    """(P,) intersection over union."""
    inside: NDArray[np.float64]
    """(P,) share of the result's area that lies in the truth object."""


def polygon_metrics(
    truth: geopandas.GeoDataFrame | str | Path,
    result: geopandas.GeoDataFrame | str | Path,
    *,
    class_aware: bool = True,
    class_column: str = "class_name",
    score_column: str = "score",
) -> PolygonResult:
    """Score a map of polygons against the true one.

    The result is brought to the truth's CRS where both have one; invalid polygons are repaired first. IoU is planar.

    Args:
        truth: true polygons with ``class_column``, or a vector file of them.
        result: found polygons with ``class_column`` and ``score_column`` (default 1 where there is none), or a file.
        class_aware: match within a class only and average over classes; else all are one class.
        class_column: column of class names in both.
        score_column: column of scores in the result.

    Raises:
        UsageError: a file cannot be read or lacks the class column.
    """
    names = (class_column if class_aware else None, score_column)
    true, true_class, _ = _read(truth, "truth", *names)
    found, found_class, score = _read(result, "result", *names)
    if true.crs is not None and found.crs is not None and true.crs != found.crs:
        found = found.to_crs(true.crs)
    true_shapes, found_shapes = _repaired(true), _repaired(found)
    rows, curves, duplicates, fragmented = [], [], 0, 0
    for name in sorted(set(true_class.tolist()) | set(found_class.tolist())):
        mine = true_shapes[true_class == name]
        which = np.flatnonzero(found_class == name)
        theirs = found_shapes[which[np.argsort(-score[which], kind="mergesort")]]
        overlaps = measure_overlaps(mine, theirs)
        matches = np.stack([match_greedy(overlaps, len(mine), len(theirs), t) for t in THRESHOLDS])
        precision = np.stack([average_precision(row >= 0, len(mine)) for row in matches])
        duplicates += count_duplicates(theirs)
        fragmented += _count_fragmented(overlaps, matches[0], len(mine))
        curves.append(precision)
        rows.append(
            PolygonClassResult(
                name=name,
                ap=float(precision.mean()),
                ap50=float(precision[0]),
                n_truth=len(mine),
                n_found=len(theirs),
                n_matched=int((matches[0] >= 0).sum()),
            )
        )
    known = [curve for curve, row in zip(curves, rows, strict=True) if row.n_truth]
    mean = np.mean(known, axis=0) if known else np.full(len(THRESHOLDS), np.nan)
    return PolygonResult(
        ap=float(mean.mean()),
        ap50=float(mean[0]),
        ap75=float(mean[5]),
        n_truth=len(true),
        n_found=len(found),
        n_matched=sum(row.n_matched for row in rows),
        duplicates=duplicates,
        fragmented=fragmented,
        per_class=tuple(rows),
    )


def measure_overlaps(truth: NDArray[np.object_], found: NDArray[np.object_]) -> _Overlaps:
    """Measure every pair that shares area.

    Args:
        truth: (N,) valid shapely polygons.
        found: (M,) valid shapely polygons, best score first.
    """
    pairs = shapely.STRtree(truth).query(found, predicate="intersects") if len(truth) and len(found) else None
    if pairs is None or not pairs.size:
        none = np.zeros(0, np.int64)
        return _Overlaps(none, none, np.zeros(0), np.zeros(0))
    common = shapely.area(shapely.intersection(found[pairs[0]], truth[pairs[1]]))
    found_area, truth_area = shapely.area(found)[pairs[0]], shapely.area(truth)[pairs[1]]
    keep = common > 0
    iou = common / np.where(keep, found_area + truth_area - common, 1)
    inside = common / np.where(keep, found_area, 1)
    order = np.lexsort((pairs[1], pairs[0]))
    order = order[keep[order]]
    return _Overlaps(pairs[0][order], pairs[1][order], iou[order], inside[order])


def match_greedy(overlaps: _Overlaps, n_truth: int, n_found: int, threshold: float) -> NDArray[np.int64]:
    """Give each result, best score first, the free truth object that it overlaps most.

    Args:
        overlaps: pairs in the order of the results.
        n_truth: truth objects.
        n_found: results.
        threshold: smallest IoU of a pair.

    Returns:
        (n_found,) index of the truth object, -1 = none.
    """
    partner = np.full(n_found, -1, np.int64)
    taken = np.zeros(n_truth, bool)
    best = np.zeros(n_found)
    for f, t, iou in zip(overlaps.found.tolist(), overlaps.truth.tolist(), overlaps.iou.tolist(), strict=True):
        # A result's pairs follow each other, so its partner is final only when the next result begins.
        if iou < min(threshold, 1 - 1e-10) or iou < best[f] or taken[t]:
            continue
        if partner[f] >= 0:
            taken[partner[f]] = False
        partner[f], best[f], taken[t] = t, iou, True
    return partner


def average_precision(hit: NDArray[np.bool_], n_truth: int) -> float:
    """Area under the interpolated precision-recall curve.

    Args:
        hit: (M,) True where a result has a partner, best score first.
        n_truth: truth objects.

    Returns:
        0-1; NaN where there is no truth object.
    """
    if not n_truth:
        return math.nan
    if not len(hit):
        return 0.0
    true_positive = np.cumsum(hit)
    recall = true_positive / n_truth
    precision = true_positive / np.arange(1, len(hit) + 1)
    monotone = np.maximum.accumulate(precision[::-1])[::-1]
    at = np.searchsorted(recall, RECALLS, side="left")
    return float(np.where(at < len(hit), monotone[np.minimum(at, len(hit) - 1)], 0.0).mean())


def count_duplicates(shapes: NDArray[np.object_]) -> int:
    """Count pairs of polygons, all of one class, whose IoU exceeds 0.5."""
    if len(shapes) < 2:
        return 0
    one, other = shapely.STRtree(shapes).query(shapes, predicate="intersects")
    one, other = one[one < other], other[one < other]
    common = shapely.area(shapely.intersection(shapes[one], shapes[other]))
    union = shapely.area(shapes)[one] + shapely.area(shapes)[other] - common
    return int((common > _SAME * union).sum())


def _count_fragmented(overlaps: _Overlaps, matches: NDArray[np.int64], n_truth: int) -> int:
    pieces = np.bincount(overlaps.truth[overlaps.inside > 0.5], minlength=n_truth)
    matched = np.zeros(n_truth, bool)
    matched[matches[matches >= 0]] = True
    return int(((pieces >= 2) & ~matched).sum())


def _read(
    source: geopandas.GeoDataFrame | str | Path, what: str, class_column: str | None, score_column: str
) -> tuple[geopandas.GeoDataFrame, NDArray[np.object_], NDArray[np.float64]]:
    """Frame without empty geometries, class names (N,) and scores (N,)."""
    frame: geopandas.GeoDataFrame = source
    if isinstance(source, str | Path):
        try:
            parquet = Path(source).suffix.lower() in {".parquet", ".geoparquet"}
            frame = geopandas.read_parquet(source) if parquet else pyogrio.read_dataframe(source)
        except (OSError, DataSourceError) as error:
            msg = f"{source}: cannot read the {what}; check the path and that it is a vector file"
            raise UsageError(msg) from error
    frame = frame[~(frame.geometry.isna() | frame.geometry.is_empty)]
    if class_column is not None and class_column not in frame:
        msg = f"the {what} has no column {class_column}; its columns are {', '.join(map(str, frame.columns))}"
        raise UsageError(msg)
    classes = np.full(len(frame), "*", object) if class_column is None else frame[class_column].astype(str).to_numpy()
    scores = frame[score_column].to_numpy(np.float64) if score_column in frame else np.ones(len(frame))
    return frame, np.asarray(classes, object), scores


def _repaired(frame: geopandas.GeoDataFrame) -> NDArray[np.object_]:
    shapes = np.asarray(frame.geometry.to_numpy(), object)
    wrong = ~shapely.is_valid(shapes)
    shapes[wrong] = shapely.make_valid(shapes[wrong])
    return shapes


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    return {key: None if isinstance(value, float) and math.isnan(value) else value for key, value in row.items()}
