"""Mask AP of a model on annotated images, whole images at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from rsgeoseg.contract import Chip
from rsgeoseg.evaluate.coco import coco_metrics, instances_to_coco

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from rsgeoseg.contract import Instances, Segmenter
    from rsgeoseg.datasets.instances import InstanceDataset
    from rsgeoseg.evaluate.coco import CocoResult


def evaluate_images(segmenter: Segmenter, data: InstanceDataset) -> CocoResult:
    """Mask AP of a segmenter on whole images, one chip each."""
    truth = data.to_coco()
    sizes = {image["id"]: (image["height"], image["width"]) for image in truth["images"]}
    found: list[Mapping[str, Any]] = []
    for image_id, instances in segment_images(segmenter, data):
        height, width = sizes[image_id]
        found += instances_to_coco(image_id, instances, height=height, width=width, category_ids=data.category_ids)
    return coco_metrics(truth, found, image_ids=list(sizes))


def segment_images(segmenter: Segmenter, data: InstanceDataset) -> Iterator[tuple[int, Instances]]:
    """Run a segmenter on every image as one chip, whatever its size; yields (image id, instances)."""
    for index in range(len(data)):
        image = data.labelled(index)
        pixels = np.ascontiguousarray(image.read().transpose(2, 0, 1))
        chip = Chip(image=pixels, valid=np.ones(pixels.shape[1:], np.bool_))
        yield image.image_id, segmenter.segment([chip])[0]
