"""Measuring on whole images: larger ones than a model takes are scaled down, and what is found back up."""

import json

import cv2
import numpy as np

from rsgeoseg.contract import Instances
from rsgeoseg.datasets.coco import CocoInstances
from rsgeoseg.train.validate import evaluate_images, segment_images


class Bright:
    """Finds the bright rectangle of a chip, and remembers the sizes it saw."""

    def __init__(self):
        self.sizes = []

    def segment(self, chips, prompts=None):
        out = []
        for chip in chips:
            self.sizes.append(chip.valid.shape)
            mask = chip.image[0] > 128
            ys, xs = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            box = np.array([[xs[0], ys[0], xs[-1] + 1, ys[-1] + 1]], np.int32)
            crop = mask[ys[0] : ys[-1] + 1, xs[0] : xs[-1] + 1]
            out.append(Instances(boxes=box, masks=[crop], scores=np.ones(1, np.float32), labels=np.zeros(1, np.int64)))
        return out


def dataset(folder, sizes):
    images, annotations = [], []
    for number, (h, w) in enumerate(sizes, 1):
        pixels = np.zeros((h, w, 3), np.uint8)
        x, y, side = w // 4, h // 4, h // 2
        pixels[y : y + side, x : x + side] = 255
        cv2.imwrite(str(folder / f"{number}.png"), pixels)
        images.append({"id": number, "file_name": f"{number}.png", "height": h, "width": w})
        ring = [x, y, x + side, y, x + side, y + side, x, y + side]
        annotations.append({"id": number, "image_id": number, "category_id": 1, "segmentation": [ring]})
    document = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "a"}]}
    (folder / "a.json").write_text(json.dumps(document))
    return CocoInstances(folder, folder / "a.json")


def test_large_images_fit_and_masks_come_back_in_place(tmp_path):
    data = dataset(tmp_path, [(64, 96), (200, 300), (160, 80)])
    model = Bright()
    assert evaluate_images(model, data, largest=100).ap == 1
    assert model.sizes == [(64, 96), (66, 100), (100, 50)]
    assert evaluate_images(model, data).ap == 1
    assert model.sizes[3:] == [(64, 96), (200, 300), (160, 80)]
    (_, found), *_ = (pair for pair in segment_images(model, data, largest=100) if pair[0] == 2)
    np.testing.assert_allclose(found.boxes[0], [75, 50, 175, 150], atol=2)
