"""Mask AP of a network in training on held-out images, whole images at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from rsgeoseg.contract import Chip

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rsgeoseg.contract import Instances, Segmenter
    from rsgeoseg.datasets.instances import InstanceDataset


def segment_images(segmenter: Segmenter, data: InstanceDataset) -> Iterator[tuple[int, Instances]]:
    """Run a segmenter on every image as one chip, whatever its size; yields (image id, instances)."""
    for index in range(len(data)):
        image = data.labelled(index)
        pixels = np.ascontiguousarray(image.read().transpose(2, 0, 1))
        chip = Chip(image=pixels, valid=np.ones(pixels.shape[1:], np.bool_))
        yield image.image_id, segmenter.segment([chip])[0]
