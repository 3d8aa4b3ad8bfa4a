"""From chips to instances with Mask R-CNN's heads: the engine's side of the model.

Inference of the released configuration (KyanChen/RSPrompter f4e73c3, ``samseg-maskrcnn.py``): class probability above
0.05, class-wise NMS at IoU 0.5, the best 100, masks pasted at one half. A higher score threshold is applied before the
NMS, which leaves the result as it is: a box is only ever removed by one that scores higher.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from rsgeoseg.backbones.chips import images_of, refuse_prompts, segment_alike
from rsgeoseg.contract import Chip, Instances, ModelSpec, Prompts
from rsgeoseg.nn.mask_head import paste_mask

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from rsgeoseg.models.sam_seg_maskrcnn.network import SamSegMaskRcnn
    from rsgeoseg.nn.box_head import Detections

LOWEST_SCORE = 0.05
"""Lowest class probability of a detection (released ``test_cfg``)."""


class MaskRcnnSegmenter:
    """SAM-seg (Mask R-CNN) as the engine calls it.

    Args:
        network: the network, in evaluation mode on its device.
        spec: what it is; its ``score_threshold`` also bounds the work.
        max_instances: most objects per chip.
        autocast: run in bfloat16 where it is fast.
    """

    def __init__(
        self, network: SamSegMaskRcnn, spec: ModelSpec, *, max_instances: int = 100, autocast: bool = False
    ) -> None:
        self.network = network.eval()
        self.spec = spec
        self.max_instances = max_instances
        self.autocast = autocast
        self.device = next(network.parameters()).device
        self.batch_size = 8 if self.device.type == "cuda" else 1
        """Chips at once that the engine starts with: on a CPU more would only take memory."""

    def at_threshold(self, score_threshold: float) -> MaskRcnnSegmenter:
        """Give the same model with another score threshold; objects below it need not be found."""
        spec = replace(self.spec, score_threshold=score_threshold)
        return MaskRcnnSegmenter(self.network, spec, max_instances=self.max_instances, autocast=self.autocast)

    def segment(self, chips: Sequence[Chip], prompts: Sequence[Prompts | None] | None = None) -> list[Instances]:
        """Find the objects of each chip; see ``contract.Segmenter.segment``."""
        refuse_prompts(self.spec, prompts)
        return segment_alike(chips, self._forward, device=self.device, autocast=self.autocast)

    def _forward(self, chips: list[Chip]) -> list[Instances]:
        network = self.network
        scene = network.look(images_of(chips, network.encoder.spec, self.device))
        lowest = max(self.spec.score_threshold, LOWEST_SCORE)
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
