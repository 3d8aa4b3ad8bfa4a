"""Confusion matrices and curves: cases counted by hand."""

from __future__ import annotations

import numpy as np
import pytest

from rsgeoseg.evaluate.coco import read_truth
from rsgeoseg.evaluate.comparison import compare_images
from rsgeoseg.evaluate.confusion import confusion_matrix
from rsgeoseg.evaluate.curves import precision_recall

CLASSES = ("ship", "tank")


def square(x, side=10):
    return {"segmentation": [[x, 0, x + side, 0, x + side, side, x, side]]}


def truth(*items):
    """Annotations from (x, category) or (x, category, crowd) in one image of 20 x 200 pixels."""
    annotations = [
        {"image_id": 1, "category_id": category, "iscrowd": int(bool(crowd)), **square(x, 10 * (1 + bool(crowd)))}
        for x, category, *crowd in items
    ]
    categories = [{"id": 7, "name": "tank"}, {"id": 4, "name": "ship"}]
    images = [{"id": 1, "file_name": "a.png", "height": 20, "width": 200}]
    return read_truth({"images": images, "annotations": annotations, "categories": categories})


def found(*items):
    return [{"image_id": 1, "category_id": category, "score": score, **square(x)} for x, category, score in items]


def test_each_thing_has_its_cell():
    true = truth((0, 4), (20, 4), (40, 7), (60, 7))
    seen = found((0, 4, 0.9), (21, 7, 0.8), (40, 7, 0.7), (100, 4, 0.9), (60, 7, 0.1))
    confusion = confusion_matrix(compare_images(true, seen), CLASSES, score=0.5)
    # ship found; ship taken for a tank; tank found; tank missed (its result is too faint); one ship made up
    assert confusion.counts.tolist() == [[1, 1, 0], [0, 1, 1], [1, 0, 0]]
    assert confusion.to_dict()["rows"] == ["ship", "tank", "false alarm"]
    fainter = confusion_matrix(compare_images(true, seen), CLASSES, score=0.1)
    assert fainter.counts.tolist() == [[1, 1, 0], [0, 2, 0], [1, 0, 0]]


def test_rows_hold_the_truth_and_columns_the_results():
    rng = np.random.default_rng(0)
    true = truth(*[(int(x), int(c)) for x, c in zip(rng.choice(190, 12, False), rng.choice([4, 7], 12), strict=True)])
    seen = found(*[(int(x), int(rng.choice([4, 7])), float(rng.random())) for x in rng.integers(0, 190, 20)])
    counts = confusion_matrix(compare_images(true, seen), CLASSES, score=0.0).counts
    assert counts[:-1].sum() == 12
    assert counts[:, :-1].sum() == 20
    assert counts[-1, -1] == 0


def test_a_result_in_a_crowd_is_no_false_alarm():
    true = truth((0, 4), (100, 4, True))
    seen = found((0, 4, 0.9), (105, 4, 0.95))
    comparisons = compare_images(true, seen)
    assert confusion_matrix(comparisons, CLASSES, score=0.5).counts.tolist() == [[1, 0, 0], [0, 0, 0], [0, 0, 0]]
    curves = precision_recall(comparisons, CLASSES, iou=0.5)
    assert curves["ship"].mean() == 1
    assert np.isnan(curves["tank"]).all()


def test_a_curve_by_hand():
    true = truth((0, 4), (20, 4), (40, 4), (60, 4))
    seen = found((0, 4, 0.9), (150, 4, 0.8), (20, 4, 0.7), (40, 7, 0.99))
    curve = precision_recall(compare_images(true, seen), CLASSES, iou=0.5)["ship"]
    assert curve[:26] == pytest.approx(np.ones(26))  # recall 1/4 at precision 1
    assert curve[26:51] == pytest.approx(np.full(25, 2 / 3))  # then 2/4 at 2 of 3
    assert not curve[51:].any()


def test_hits_misses_and_false_alarms():
    true = truth((0, 4), (20, 4), (40, 7))
    seen = found((0, 4, 0.9), (21, 7, 0.8), (40, 7, 0.3))
    (comparison,) = compare_images(true, seen)
    outcome = comparison.judge(0.5)
    assert comparison.found_rows[outcome.hits].tolist() == [0]
    assert comparison.found_rows[outcome.false].tolist() == [1]  # on a ship, but called a tank
    assert comparison.true_rows[outcome.missed].tolist() == [1, 2]
