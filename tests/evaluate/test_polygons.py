"""AP on the map: hand-computed cases, and equality with pycocotools on random pixel-aligned maps."""

from __future__ import annotations

import json

import geopandas
import numpy as np
import pytest
from shapely.geometry import Polygon, box

from rsgeoseg.contract import Instances
from rsgeoseg.errors import UsageError
from rsgeoseg.evaluate.coco import coco_metrics, instances_to_coco
from rsgeoseg.evaluate.polygons import average_precision, polygon_metrics

NAMES = ("ship", "tank", "court")


def frame(shapes, names="ship", scores=None, crs="EPSG:32631"):
    columns = {"class_name": [names] * len(shapes) if isinstance(names, str) else names}
    if scores is not None:
        columns["score"] = scores
    return geopandas.GeoDataFrame(columns, geometry=list(shapes), crs=crs)


def test_perfect():
    truth = frame([box(0, 0, 10, 10), box(20, 0, 30, 10)], ["ship", "tank"])
    result = polygon_metrics(truth, truth.assign(score=0.7))
    assert (result.ap, result.ap50, result.n_matched, result.duplicates, result.fragmented) == (1, 1, 2, 0, 0)


def test_half_found_and_one_false():
    truth = frame([box(0, 0, 10, 10), box(20, 0, 30, 10)])
    found = frame([box(100, 0, 110, 10), box(0, 0, 10, 10)], scores=[0.9, 0.8])
    result = polygon_metrics(truth, found)
    assert result.ap == pytest.approx(51 / 101 * 0.5)  # precision 1/2 up to recall 1/2


def test_iou_decides_the_threshold():
    truth, found = frame([box(0, 0, 10, 10)]), frame([box(2, 0, 12, 10)], scores=[1.0])  # IoU 2/3
    result = polygon_metrics(truth, found)
    assert (result.ap50, result.ap75) == (1, 0)
    assert result.ap == pytest.approx(0.4)


def test_wrong_class_counts_only_where_classes_count():
    truth, found = frame([box(0, 0, 10, 10)], "ship"), frame([box(0, 0, 10, 10)], "tank", [1.0])
    aware = polygon_metrics(truth, found)
    assert aware.ap == 0
    assert [(row.name, row.n_truth, row.n_found) for row in aware.per_class] == [("ship", 1, 0), ("tank", 0, 1)]
    assert polygon_metrics(truth, found, class_aware=False).ap == 1
    assert json.loads(json.dumps(aware.to_dict()))["per_class"][1]["ap"] is None


def test_a_better_scored_result_takes_its_partner_first():
    truth = frame([box(0, 0, 10, 10)])
    found = frame([box(0, 0, 10, 10), box(0, 0, 10, 8)], scores=[0.5, 0.9])
    result = polygon_metrics(truth, found)
    assert result.n_matched == 1
    # IoU 0.8 first: 7 thresholds at precision 1; above them the exact one is second: precision 1/2.
    assert result.ap == pytest.approx((7 * 1 + 3 * 0.5) / 10)
    assert result.duplicates == 1


def test_a_result_prefers_the_truth_it_overlaps_most():
    truth = frame([box(0, 0, 10, 10), box(3, 0, 13, 10)])
    found = frame([box(2, 0, 12, 10), box(0, 0, 10, 10)], scores=[0.9, 0.8])
    assert polygon_metrics(truth, found).n_matched == 2


def test_duplicates_are_pairs_of_one_class_above_half():
    same = [box(0, 0, 10, 10), box(0, 0, 10, 9), box(0, 0, 10, 8)]
    found = frame([*same, box(0, 0, 10, 10), box(5, 0, 15, 10)], ["ship"] * 3 + ["tank"] * 2, [1.0] * 5)
    truth = frame([box(0, 0, 10, 10)])
    assert polygon_metrics(truth, found).duplicates == 3  # the tanks share a third only
    assert polygon_metrics(truth, found, class_aware=False).duplicates == 6


def test_fragments():
    truth = frame([box(0, 0, 30, 10), box(100, 0, 130, 10), box(200, 0, 230, 10)])
    pieces = [box(0, 0, 14, 10), box(14, 0, 28, 10)]
    whole_and_crumb = [box(100, 0, 128, 10), box(128, 0, 130, 10)]
    found = frame([*pieces, *whole_and_crumb, box(200, 0, 210, 10)], scores=[1.0] * 5)
    assert polygon_metrics(truth, found).fragmented == 1


def test_files_crs_and_broken_rings(tmp_path):
    truth = frame([box(500000, 5400000, 500100, 5400100)])
    truth.to_file(tmp_path / "truth.gpkg")
    bow = Polygon([(500000, 5400000), (500100, 5400100), (500100, 5400000), (500000, 5400100)])
    found = frame([box(500000, 5400000, 500100, 5400100), bow], scores=[0.9, 0.1])
    found.to_crs(4326).to_parquet(tmp_path / "found.parquet")
    result = polygon_metrics(tmp_path / "truth.gpkg", tmp_path / "found.parquet")
    assert result.ap == pytest.approx(1)
    with pytest.raises(UsageError, match=r"none\.gpkg"):
        polygon_metrics(tmp_path / "none.gpkg", found)
    with pytest.raises(UsageError, match="no column kind"):
        polygon_metrics(truth, found, class_column="kind")


def test_empty_sides():
    nothing, something = frame([]), frame([box(0, 0, 1, 1)])
    assert np.isnan(polygon_metrics(nothing, something).ap)
    assert polygon_metrics(something, nothing).ap == 0
    assert polygon_metrics(something, nothing).to_dict()["n_truth"] == 1


def test_average_precision_by_hand():
    hit = np.array([True, False, True])  # precision 1, 1/2, 2/3 at recall 1/4, 1/4, 2/4
    assert average_precision(hit, 4) == pytest.approx((26 * 1 + 25 * 2 / 3) / 101)


def random_map(seed):
    """Rectangles on the pixel grid, and a disturbed copy with misses, false alarms, wrong classes and duplicates."""
    rng = np.random.default_rng(seed)
    corners = rng.integers(0, 360, (60, 2))
    boxes = np.concatenate([corners, corners + rng.integers(4, 40, (60, 2))], axis=1)
    labels = rng.integers(0, 3, 60)
    kept = np.concatenate([np.flatnonzero(rng.random(60) < 0.9), np.arange(15)])
    again, again_labels = boxes[kept], np.where(rng.random(len(kept)) < 0.9, labels[kept], 2)
    again = again + rng.integers(-3, 4, again.shape)
    again[:, 2:] = np.maximum(again[:, 2:], again[:, :2] + 1)
    again = np.clip(again, 0, 400)
    keep = (again[:, 2] > again[:, 0]) & (again[:, 3] > again[:, 1])
    scores = np.round(rng.random(len(again)), 2).astype(np.float32)
    return boxes, labels, again[keep], again_labels[keep], scores[keep]


@pytest.mark.parametrize("seed", range(8))
def test_equals_pycocotools(seed):
    boxes, labels, again, again_labels, scores = random_map(seed)
    truth = {
        "images": [{"id": 1, "height": 400, "width": 400}],
        "categories": [{"id": i, "name": name} for i, name in enumerate(NAMES, start=1)],
        "annotations": [
            {"image_id": 1, "category_id": int(label) + 1, "segmentation": [[x0, y0, x1, y0, x1, y1, x0, y1]]}
            for (x0, y0, x1, y1), label in zip(boxes.tolist(), labels, strict=True)
        ],
    }
    found = Instances(
        boxes=again.astype(np.int32),
        masks=[np.ones((y1 - y0, x1 - x0), bool) for x0, y0, x1, y1 in again.tolist()],
        scores=scores,
        labels=again_labels,
    )
    detections = instances_to_coco(1, found, height=400, width=400, category_ids=[1, 2, 3])
    expected = coco_metrics(truth, detections, max_detections=(1, 10, 10_000))
    result = polygon_metrics(
        frame([box(*b) for b in boxes.tolist()], [NAMES[i] for i in labels]),
        frame([box(*b) for b in again.tolist()], [NAMES[i] for i in again_labels], scores),
    )
    assert 0.05 < expected.ap < 0.95
    assert result.ap == pytest.approx(expected.ap, abs=1e-9)
    assert result.ap50 == pytest.approx(expected.ap50, abs=1e-9)
    assert result.ap75 == pytest.approx(expected.ap75, abs=1e-9)
    by_name = {row.name: row for row in result.per_class}
    for row in expected.per_class:
        assert by_name[row.name].ap == pytest.approx(row.ap, abs=1e-9)
