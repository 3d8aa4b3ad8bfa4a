"""Mask AP of a model on annotated images, whole images at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from rsgeoseg.contract import Chip, Instances
from rsgeoseg.evaluate.coco import coco_metrics, instances_to_coco

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from rsgeoseg.contract import Segmenter
    from rsgeoseg.datasets.instances import InstanceDataset
    from rsgeoseg.evaluate.coco import CocoResult


def evaluate_images(segmenter: Segmenter, data: InstanceDataset, *, largest: int | None = None) -> CocoResult:
    """Mask AP of a segmenter on whole images, one chip each.

    Args:
        segmenter: the model.
        data: annotated images.
        largest: longer images are scaled down to this side, and what is found back up; None = as they are.
    """
    truth = data.to_coco()
    sizes = {image["id"]: (image["height"], image["width"]) for image in truth["images"]}
    found: list[Mapping[str, Any]] = []
    for image_id, instances in segment_images(segmenter, data, largest=largest):
        height, width = sizes[image_id]
        found += instances_to_coco(image_id, instances, height=height, width=width, category_ids=data.category_ids)
    return coco_metrics(truth, found, image_ids=list(sizes))


def segment_images(
    segmenter: Segmenter, data: InstanceDataset, *, largest: int | None = None
) -> Iterator[tuple[int, Instances]]:
    """Run a segmenter on every image as one chip, whatever its size; yields (image id, instances)."""
    for index in range(len(data)):
        image = data.labelled(index)
        pixels = image.read()
        scale = 1.0 if largest is None else min(1.0, largest / max(pixels.shape[:2]))
        if scale < 1:
            size = (max(1, int(image.width * scale)), max(1, int(image.height * scale)))
            pixels = np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA))
        chip = Chip(image=np.ascontiguousarray(pixels.transpose(2, 0, 1)), valid=np.ones(pixels.shape[:2], np.bool_))
        found = segmenter.segment([chip])[0]
        yield image.image_id, found if scale == 1 else _scaled(found, pixels.shape[:2], (image.height, image.width))


def _scaled(found: Instances, before: tuple[int, int], after: tuple[int, int]) -> Instances:
    """Bring objects to another image size, to the nearest pixel; those that vanish are left out."""
    boxes, masks, kept = [], [], []
    for number, ((x0, y0, x1, y1), mask) in enumerate(zip(found.boxes.tolist(), found.masks, strict=True)):
        whole = np.zeros(before, np.uint8)
        whole[y0:y1, x0:x1] = mask
        large = cv2.resize(whole, after[::-1], interpolation=cv2.INTER_NEAREST) != 0
        ys, xs = np.flatnonzero(large.any(1)), np.flatnonzero(large.any(0))
        if len(ys):
            boxes.append((xs[0], ys[0], xs[-1] + 1, ys[-1] + 1))
            masks.append(large[ys[0] : ys[-1] + 1, xs[0] : xs[-1] + 1])
            kept.append(number)
    return Instances(
        boxes=np.array(boxes, np.int32).reshape(-1, 4),
        masks=masks,
        scores=found.scores[kept],
        labels=found.labels[kept],
    )
