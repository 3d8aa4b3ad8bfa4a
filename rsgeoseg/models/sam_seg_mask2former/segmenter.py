"""From chips to instances with Mask2Former's head: the engine's side of the model.

Inference of the released configuration (KyanChen/RSPrompter f4e73c3, ``samseg-mask2former.py``): score = class
probability times the mean mask probability over the mask's pixels; the best 100 (query, class) pairs, no NMS. Masks
are drawn only for queries whose class probability can still reach the score threshold: the other factor is at most one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from rsgeoseg.backbones.chips import images_of
from rsgeoseg.backbones.network_segmenter import NetworkSegmenter
from rsgeoseg.models.sam_seg_mask2former.network import SamSegMask2Former
from rsgeoseg.nn.scored_masks import LOWEST_SCORE, scored_masks

if TYPE_CHECKING:
    from rsgeoseg.contract import Chip, Instances


class Mask2FormerSegmenter(NetworkSegmenter[SamSegMask2Former]):
    """SAM-seg (Mask2Former) as the engine calls it."""

    def _forward(self, chips: list[Chip]) -> list[Instances]:
        network, threshold = self.network, self.lowest
        scene = network.look(images_of(chips, network.encoder.spec, self.device))
        last = network.decode(scene)[-1]
        probability = last.class_logits.softmax(-1)[..., :-1]
        results = []
        for index, chip in enumerate(chips):
            query = (probability[index].amax(-1) >= max(threshold, LOWEST_SCORE)).nonzero().squeeze(1)
            logits = network.mask_logits(scene, last, torch.full_like(query, index), query)
            results.append(
                scored_masks(
                    list(logits),
                    probability[index, query],
                    chip.valid,
                    score_threshold=threshold,
                    most=self.max_instances,
                )
            )
        return results
