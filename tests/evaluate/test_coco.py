"""COCO AP: hand-computed cases and the encoding of cropped masks."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from pycocotools import mask as rle

from rsgeoseg.contract import Instances
from rsgeoseg.errors import UsageError
from rsgeoseg.evaluate.coco import coco_metrics, encode_mask, instances_to_coco

SQUARE = [[0, 0, 10, 0, 10, 10, 0, 10]]
SHIFTED = [[20, 0, 30, 0, 30, 10, 20, 10]]


def truth():
    return {
        "images": [{"id": 7, "height": 40, "width": 50}],
        "categories": [{"id": 3, "name": "ship"}, {"id": 5, "name": "tank"}],
        "annotations": [
            {"image_id": 7, "category_id": 3, "segmentation": SQUARE},
            {"image_id": 7, "category_id": 3, "segmentation": SHIFTED},
            {"image_id": 7, "category_id": 5, "segmentation": SQUARE},
        ],
    }


def found(boxes, labels=None, scores=None):
    """Full rectangles as instances."""
    n = len(boxes)
    return Instances(
        boxes=np.array(boxes, np.int32).reshape(n, 4),
        masks=[np.ones((y1 - y0, x1 - x0), bool) for x0, y0, x1, y1 in boxes],
        scores=np.array(scores or [0.9] * n, np.float32),
        labels=np.array(labels or [0] * n, np.int64),
    )


def score(instances, **options):
    detections = instances_to_coco(7, instances, height=40, width=50, category_ids=[3, 5])
    return coco_metrics(truth(), detections, **options)


def test_the_truth_itself_scores_one():
    result = score(found([(0, 0, 10, 10), (20, 0, 30, 10), (0, 0, 10, 10)], [0, 0, 1]))
    assert [result.ap, result.ap50, result.ap75, result.ap_small, result.ar] == pytest.approx([1] * 5)
    assert math.isnan(result.ap_large)
    assert [(row.name, row.n_truth, row.n_found) for row in result.per_class] == [("ship", 2, 2), ("tank", 1, 1)]


def test_one_of_two_found_gives_51_of_101_recalls():
    result = score(found([(0, 0, 10, 10), (0, 0, 10, 10)], [0, 1]))
    ship, tank = result.per_class
    assert ship.ap == pytest.approx(51 / 101)
    assert tank.ap == pytest.approx(1)
    assert result.ap == pytest.approx((51 / 101 + 1) / 2)


def test_a_mask_of_iou_two_thirds_counts_at_four_thresholds():
    result = score(found([(0, 0, 10, 10), (20, 0, 30, 10), (2, 0, 12, 10)], [0, 0, 1]))
    tank = result.per_class[1]  # 80 of 120 pixels: above 0.50, 0.55, 0.60, 0.65
    assert tank.ap50 == pytest.approx(1)
    assert tank.ap == pytest.approx(0.4)


def test_boxes_and_masks_are_different_questions():
    ring = np.ones((10, 10), bool)
    ring[1:9, 1:9] = False
    hollow = Instances(
        boxes=np.array([[0, 0, 10, 10]], np.int32), masks=[ring], scores=np.ones(1, np.float32), labels=np.array([1])
    )
    assert score(hollow, iou_type="bbox").per_class[1].ap == pytest.approx(1)
    assert score(hollow, iou_type="segm").per_class[1].ap == 0


def test_limit_of_detections():
    boxes = [(30, 20, 40, 30)] * 3 + [(0, 0, 10, 10), (20, 0, 30, 10)]
    crowded = found(boxes, scores=[0.9, 0.9, 0.9, 0.5, 0.4])
    assert score(crowded, max_detections=(1, 2, 3)).per_class[0].ap == 0
    assert score(crowded, max_detections=(1, 10, 100)).per_class[0].ap > 0.3


def test_nothing_found():
    result = score(Instances.empty())
    assert result.ap == 0
    assert [row.n_found for row in result.per_class] == [0, 0]
    assert json.loads(json.dumps(result.to_dict()))["ap_large"] is None


def test_chosen_images_only(tmp_path):
    both = truth()
    both["images"].append({"id": 8, "height": 40, "width": 50})
    both["annotations"].append({"image_id": 8, "category_id": 5, "segmentation": SQUARE})
    (tmp_path / "t.json").write_text(json.dumps(both))
    detections = instances_to_coco(7, found([(0, 0, 10, 10)], [1]), height=40, width=50, category_ids=[3, 5])
    (tmp_path / "d.json").write_text(json.dumps(detections))
    assert coco_metrics(tmp_path / "t.json", tmp_path / "d.json").per_class[1].ap == pytest.approx(51 / 101)
    chosen = coco_metrics(tmp_path / "t.json", tmp_path / "d.json", image_ids=[7])
    assert chosen.per_class[1].ap == pytest.approx(1)
    assert chosen.per_class[1].n_truth == 1


def test_prints_nothing(capsys):
    score(found([(0, 0, 10, 10)]))
    assert capsys.readouterr().out == ""


def test_encoding_decodes_to_the_pasted_mask():
    rng = np.random.default_rng(0)
    mask = rng.random((7, 11)) < 0.5
    whole = np.zeros((30, 40), bool)
    whole[5:12, 9:20] = mask
    assert np.array_equal(rle.decode(encode_mask(mask, (9, 5), height=30, width=40)).astype(bool), whole)


def test_refusals(tmp_path):
    with pytest.raises(UsageError, match="image 9"):
        coco_metrics(truth(), [{"image_id": 9, "category_id": 3, "score": 1.0, "bbox": [0, 0, 1, 1]}])
    with pytest.raises(UsageError, match="category 4"):
        coco_metrics(truth(), [{"image_id": 7, "category_id": 4, "score": 1.0, "bbox": [0, 0, 1, 1]}])
    with pytest.raises(UsageError, match="no categories"):
        coco_metrics({"images": [], "annotations": []}, [])
    with pytest.raises(UsageError, match=r"none\.json"):
        coco_metrics(tmp_path / "none.json", [])
    with pytest.raises(ValueError, match="outside"):
        score(found([(45, 0, 55, 10)]))
