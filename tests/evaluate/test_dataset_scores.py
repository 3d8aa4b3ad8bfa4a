"""A model on images that are read, not files: the same figures as from the folder."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest
from rasters import draw_ids

from rsgeoseg.datasets.coco import CocoInstances
from rsgeoseg.engine.scoring import ImageFolder, ReadImages, score_images
from rsgeoseg.errors import UsageError
from rsgeoseg.evaluate.coco import encode_mask
from rsgeoseg.jobs import EvaluateJob, evaluate
from rsgeoseg.testing.oracle import OracleSegmenter, encode_ids, oracle_spec

CLASSES = ["ship", "storage tank"]


@pytest.fixture
def data(tmp_path):
    """Three images that spell ids; two of five are annotated, so that there are false alarms."""
    images, annotations = [], []
    for number in range(3):
        ids = draw_ids(120, 160, seed=number, count=10)
        cv2.imwrite(str(tmp_path / f"{number}.png"), encode_ids(ids).transpose(1, 2, 0)[..., ::-1])
        images.append({"id": 7 + number, "file_name": f"{number}.png", "height": 120, "width": 160})
        for value in range(1, ids.max() + 1):
            mask = encode_mask(ids == value, (0, 0), height=120, width=160)
            item = {"id": len(annotations) + 1, "image_id": 7 + number, "category_id": 5 - value % 2}
            annotations.append({**item, "segmentation": mask, "iscrowd": 0})
    categories = [{"id": 5 - label, "name": name} for label, name in enumerate(CLASSES)]
    document = {"images": images, "annotations": annotations[::5] + annotations[1::5], "categories": categories}
    (tmp_path / "truth.json").write_text(json.dumps(document))
    return CocoInstances(tmp_path, tmp_path / "truth.json")


def oracle():
    return OracleSegmenter(spec=oracle_spec(CLASSES, chip_size=96, overlap=16))


def test_read_images_score_as_files(tmp_path, data):
    place = {data.labelled(i).image_id: i for i in range(len(data))}
    read = ReadImages(lambda image_id: data.labelled(place[image_id]).read())
    from_files = score_images(oracle(), ImageFolder(tmp_path), tmp_path / "truth.json")
    from_data = score_images(oracle(), read, data.to_coco())
    assert from_data.scores.to_dict() == from_files.scores.to_dict()
    assert from_data.image_ids == [7, 8, 9]
    assert 0.2 < from_files.scores.masks.ap < 0.95
    entry = from_data.truth["images"][0]
    assert np.array_equal(read.pixels(entry), ImageFolder(tmp_path).pixels(entry))


def test_a_job_needs_images_or_a_dataset(tmp_path):
    with pytest.raises(UsageError, match="dataset and its root"):
        evaluate(EvaluateJob(annotations="truth.json"), segmenter=oracle())
    with pytest.raises(UsageError, match="folder of nwpu"):
        evaluate(EvaluateJob(dataset="nwpu"), segmenter=oracle())
