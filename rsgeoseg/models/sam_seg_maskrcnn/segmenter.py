"""From chips to instances with Mask R-CNN's heads: the engine's side of the model.

Inference of the released configuration (KyanChen/RSPrompter f4e73c3, ``samseg-maskrcnn.py``): class probability above
0.05, class-wise NMS at IoU 0.5, the best 100, masks pasted at one half. A higher score threshold is applied before the
NMS, which leaves the result as it is: a box is only ever removed by one that scores higher.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from rsgeoseg.backbones.chips import images_of
from rsgeoseg.backbones.network_segmenter import NetworkSegmenter
from rsgeoseg.contract import Chip, Instances
from rsgeoseg.models.sam_seg_maskrcnn.network import SamSegMaskRcnn
from rsgeoseg.nn.mask_head import paste_mask

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from rsgeoseg.nn.box_head import Detections

LOWEST_SCORE = 0.05
"""Lowest class probability of a detection (released ``test_cfg``)."""


class MaskRcnnSegmenter(NetworkSegmenter[SamSegMaskRcnn]):
    """SAM-seg (Mask R-CNN) as the engine calls it."""

    def _forward(self, chips: list[Chip]) -> list[Instances]:
        network = self.network
        scene = network.look(images_of(chips, network.encoder.spec, self.device))
        lowest = max(self.lowest, LOWEST_SCORE)
        found = network.detect(scene, score_threshold=lowest, most=self.max_instances)
        logits = network.masks(scene, [detections.boxes for detections in found])
        labels = torch.cat([detections.labels for detections in found])
        masks = logits[torch.arange(len(labels), device=self.device), labels].sigmoid()
        parts = torch.split(masks, [len(detections.labels) for detections in found])
        return [_instances(*given) for given in zip(found, parts, [chip.valid for chip in chips], strict=True)]


def _instances(found: Detections, probability: Tensor, valid: NDArray[np.bool_]) -> Instances:
    """Paste the masks (N, s, s) of one chip; boxes without a valid pixel of mask are left out."""
    maps, boxes = probability.float().cpu().numpy(), found.boxes.float().cpu().numpy()
    pasted = [paste_mask(*given, valid) for given in zip(maps, boxes, strict=True)]
    kept = [index for index, (_, mask) in enumerate(pasted) if mask.any()]
    return Instances(
        boxes=np.array([pasted[i][0] for i in kept], np.int32).reshape(-1, 4),
        masks=[pasted[i][1] for i in kept],
        scores=found.scores.float().cpu().numpy()[kept],
        labels=found.labels.cpu().numpy()[kept],
    )
