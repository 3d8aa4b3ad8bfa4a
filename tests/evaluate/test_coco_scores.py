"""Masks and boxes of the same files: equal to what pycocotools itself says of them."""

from __future__ import annotations

import contextlib
import io
import json
import math

import numpy as np
import pytest
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from rsgeoseg.errors import UsageError
from rsgeoseg.evaluate.coco import coco_scores, read_truth
from rsgeoseg.evaluate.comparison import compare_images
from rsgeoseg.evaluate.curves import precision_recall

SIDE = 300
NAMES = ("ship", "storage_tank", "court")
STATS = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")


def blob(rng, largest):
    """A random ellipse as run lengths, whole image."""
    height, width = rng.integers(4, largest, 2)
    y, x = rng.integers(0, SIDE - height), rng.integers(0, SIDE - width)
    ys, xs = np.mgrid[:SIDE, :SIDE]
    inside = ((ys - y - height / 2) / (height / 2)) ** 2 + ((xs - x - width / 2) / (width / 2)) ** 2 <= 1
    return encoded(inside)


def encoded(mask):
    runs = rle.encode(np.asfortranarray(mask, np.uint8))
    return {"size": runs["size"], "counts": runs["counts"].decode()}


def moved(rng, runs):
    mask = rle.decode(runs)
    return encoded(np.roll(mask, rng.integers(-3, 4, 2), axis=(0, 1)))


def random_files(folder, seed, *, boxes, many=0):
    """Annotations (crowds, all sizes, an empty image) and results (misses, wrong classes, many detections)."""
    rng = np.random.default_rng(seed)
    truth, found = [], []
    for image_id in (3, 5, 8, 13):
        for _ in range(0 if image_id == 8 else 12):
            runs = blob(rng, int(rng.choice([20, 60, 200])))
            crowd = int(rng.random() < 0.1)
            category = int(rng.choice([2, 4, 9]))
            truth.append(
                {
                    "id": len(truth) + 1,
                    "image_id": image_id,
                    "category_id": category,
                    "segmentation": runs,
                    "iscrowd": crowd,
                    "area": float(rle.area(runs)),
                    "bbox": rle.toBbox(runs).tolist(),
                }
            )
            for _ in range(rng.integers(0, 3)):
                near = moved(rng, runs)
                label = category if rng.random() < 0.9 else int(rng.choice([2, 4, 9]))
                found.append({"image_id": image_id, "category_id": label, "segmentation": near})
        false = [blob(rng, 80) for _ in range(10 + many)]
        found += [{"image_id": image_id, "category_id": 2, "segmentation": runs} for runs in false]
    for item in found:
        item["score"] = round(float(rng.random()), 2)  # ties occur
        if boxes:
            item["bbox"] = rle.toBbox(item["segmentation"]).tolist()
    images = [{"id": i, "file_name": f"{i}.png", "height": SIDE, "width": SIDE} for i in (3, 5, 8, 13)]
    categories = [{"id": i, "name": name} for i, name in zip((2, 4, 9), NAMES, strict=True)]
    document = {"info": {}, "images": images, "annotations": truth, "categories": categories}
    (folder / "truth.json").write_text(json.dumps(document))
    (folder / "found.json").write_text(json.dumps(found))
    return folder / "truth.json", folder / "found.json"


def by_pycocotools(truth, found, iou_type):
    with contextlib.redirect_stdout(io.StringIO()):
        annotations = COCO(str(truth))
        job = COCOeval(annotations, annotations.loadRes(str(found)), iou_type)
        job.evaluate()
        job.accumulate()
        job.summarize()
    return job.stats


@pytest.mark.parametrize("boxes", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_equal_to_summarize_of_pycocotools(tmp_path, seed, boxes):
    truth, found = random_files(tmp_path, seed, boxes=boxes)
    scores = coco_scores(truth, found)
    for result, iou_type in ((scores.masks, "segm"), (scores.boxes, "bbox")):
        stats = by_pycocotools(truth, found, iou_type)
        assert [getattr(result, name) for name in STATS] == pytest.approx(stats[:6].tolist(), abs=1e-6)
        assert result.ar == pytest.approx(stats[8], abs=1e-6)
    assert 0.05 < scores.masks.ap < 0.95
    assert scores.masks.ap != scores.boxes.ap


def test_more_than_a_hundred_detections_in_an_image(tmp_path):
    truth, found = random_files(tmp_path, 7, boxes=False, many=150)
    scores = coco_scores(truth, found)
    stats = by_pycocotools(truth, found, "segm")
    assert [getattr(scores.masks, name) for name in STATS] == pytest.approx(stats[:6].tolist(), abs=1e-6)


@pytest.mark.parametrize("many", [0, 150])
def test_curves_have_the_area_that_pycocotools_says(tmp_path, many):
    truth, found = random_files(tmp_path, 11, boxes=False, many=many)
    scores = coco_scores(truth, found)
    comparisons = compare_images(read_truth(truth), json.loads(found.read_text()))
    curves = precision_recall(comparisons, NAMES, iou=0.5)
    assert [row.name for row in scores.masks.per_class] == list(NAMES)
    for row in scores.masks.per_class:
        assert curves[row.name].mean() == pytest.approx(row.ap50, abs=1e-9)


def test_boxes_alone_have_no_masks(tmp_path):
    truth, found = random_files(tmp_path, 1, boxes=True)
    detections = json.loads(found.read_text())
    only = [{key: value for key, value in item.items() if key != "segmentation"} for item in detections]
    scores = coco_scores(truth, only)
    assert scores.masks is None
    assert scores.boxes.ap == pytest.approx(coco_scores(truth, found).boxes.ap)
    figures = scores.to_dict()
    assert figures["iou_type"] == "bbox"
    assert figures["ap"] == figures["boxes"]["ap"]
    assert "segmentation" not in only[0]  # what was given stays as it was


def test_a_coco_file_of_results_is_matched_by_names(tmp_path):
    """What ``rsgeoseg run -o found.json`` writes: its own ids of images and classes."""
    truth, found = random_files(tmp_path, 2, boxes=True)
    plain = coco_scores(truth, found)
    other_image = {3: 101, 5: 102, 8: 103, 13: 104}
    other_class = {2: 1, 4: 2, 9: 3}
    document = {
        "images": [{"id": new, "file_name": f"somewhere/{old}.png"} for old, new in other_image.items()],
        "categories": [{"id": 1, "name": "Ship"}, {"id": 2, "name": "storage tank"}, {"id": 3, "name": "court"}],
        "annotations": [
            {**item, "image_id": other_image[item["image_id"]], "category_id": other_class[item["category_id"]]}
            for item in json.loads(found.read_text())
        ],
    }
    (tmp_path / "run.json").write_text(json.dumps(document))
    assert coco_scores(truth, tmp_path / "run.json").masks.ap == plain.masks.ap
    document["categories"] = [{"id": i, "name": f"moon {i}"} for i in (1, 2, 3)]
    with pytest.raises(UsageError, match="no class of the truth: it has moon 1"):
        coco_scores(truth, document)


def test_nothing_found_is_zero_and_not_a_crash(tmp_path):
    truth, _ = random_files(tmp_path, 3, boxes=False)
    scores = coco_scores(truth, [])
    assert scores.masks.ap == scores.boxes.ap == 0
    assert math.isnan(coco_scores({**json.loads(truth.read_text()), "annotations": []}, []).masks.ap)


def test_broken_files_are_named(tmp_path):
    truth, found = random_files(tmp_path, 4, boxes=False)
    document = json.loads(truth.read_text())
    with pytest.raises(UsageError, match="no score"):
        coco_scores(truth, [{"image_id": 3, "category_id": 2, "bbox": [0, 0, 1, 1]}])
    with pytest.raises(UsageError, match="no segmentation or bbox"):
        coco_scores(truth, [{"image_id": 3, "category_id": 2, "score": 1.0}])
    truth.write_text('{"images": []}')
    with pytest.raises(UsageError, match=r"truth\.json is neither a list"):
        coco_scores(document, truth)
    document["annotations"][0]["image_id"] = 77
    with pytest.raises(UsageError, match="image 77"):
        coco_scores(document, found)
    with pytest.raises(UsageError, match="no COCO instances"):
        coco_scores(found, found)
