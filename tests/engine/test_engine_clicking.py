"""Simulated clicks over annotated images: easy and hard objects, one view for many, views of large images."""

import json

import cv2
import numpy as np
import pytest

from rsgeoseg.contract import Instances, ModelSpec
from rsgeoseg.datasets.coco import CocoInstances
from rsgeoseg.engine.clicking import score_clicks
from rsgeoseg.errors import UsageError


class ColourPicker:
    """Finds what has the colour under the last positive click, less the discs around negative ones."""

    def __init__(self, chip_size=256, accepts=("points",)):
        self.spec = ModelSpec(
            name="picker", classes=("object",), chip_size=chip_size, accepts=frozenset(accepts), needs_prompts=True
        )
        self.encoded = 0

    def encode(self, chip):
        self.encoded += 1
        return chip.image[0]

    def decode(self, image, prompts):
        at = [tuple(int(v) for v in p) for p, good in zip(prompts.points, prompts.point_labels, strict=True) if good]
        mask = np.zeros(image.shape, bool)
        for x, y in at:
            mask |= image == image[y, x]
        ys, xs = np.nonzero(mask)
        box = np.array([[xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]], np.int32)
        crop = mask[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1]
        return Instances(boxes=box, masks=[crop], scores=np.ones(1, np.float32), labels=np.zeros(1, np.int64))


def dataset(folder, side, objects):
    """One picture; every object is a list of (x, y, w, h, grey) rectangles."""
    image = np.zeros((side, side, 3), np.uint8)
    annotations = []
    for number, parts in enumerate(objects, 1):
        rings = []
        for x, y, w, h, grey in parts:
            image[y : y + h, x : x + w] = grey
            rings.append([x, y, x + w, y, x + w, y + h, x, y + h])
        annotations.append({"id": number, "image_id": 1, "category_id": 1, "segmentation": rings})
    cv2.imwrite(str(folder / "a.png"), image)
    document = {
        "images": [{"id": 1, "file_name": "a.png", "width": side, "height": side}],
        "annotations": annotations,
        "categories": [{"id": 1, "name": "thing"}],
    }
    (folder / "a.json").write_text(json.dumps(document))
    return CocoInstances(folder, folder / "a.json")


def test_one_colour_one_click_two_colours_two_clicks(tmp_path):
    """The second object has two halves of its own colour each: IoU 0.6 after the larger one, 1 after both."""
    data = dataset(tmp_path, 128, [[(10, 10, 20, 20, 50)], [(60, 60, 30, 20, 100), (90, 60, 20, 20, 150)]])
    told = []
    model = ColourPicker()
    result = score_clicks(model, data, tell=lambda done, total: told.append((done, total)))
    assert (result.noc80, result.noc90, result.nof90) == (1.5, 1.5, 0)
    np.testing.assert_allclose(result.curve[:2], [(1 + 0.6) / 2, 1.0])
    assert told == [(1, 2), (2, 2)]
    assert model.encoded == 1  # both objects in one view


def test_a_large_image_is_looked_at_around_each_object(tmp_path):
    data = dataset(tmp_path, 300, [[(5, 5, 20, 20, 50)], [(270, 270, 25, 25, 100)]])
    model = ColourPicker(chip_size=64)
    result = score_clicks(model, data)
    assert (result.noc90, model.encoded) == (1.0, 2)


def test_what_is_never_found_fails(tmp_path):
    data = dataset(tmp_path, 64, [[(10, 10, 20, 20, 0)]])  # as dark as the ground: all of the image is found
    result = score_clicks(ColourPicker(), data, max_clicks=3)
    assert (result.noc80, result.nof80) == (3.0, 1)


def test_every_second_object(tmp_path):
    data = dataset(tmp_path, 128, [[(10, 10 + 30 * i, 20, 20, 50 + i)] for i in range(3)])
    assert score_clicks(ColourPicker(), data, every=2).n == 2


def test_models_without_points_are_refused(tmp_path):
    data = dataset(tmp_path, 64, [[(10, 10, 20, 20, 9)]])
    with pytest.raises(UsageError, match="takes no points"):
        score_clicks(ColourPicker(accepts=("boxes",)), data)
