"""From chips to instances with Mask2Former's head: the engine's side of the model.

Inference of the released configuration (KyanChen/RSPrompter f4e73c3, ``samseg-mask2former.py``): score = class
probability times the mean mask probability over the mask's pixels; the best 100 (query, class) pairs, no NMS. Masks
are drawn only for queries whose class probability can still reach the score threshold: the other factor is at most one.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from rsgeoseg.backbones.chips import images_of, refuse_prompts, segment_alike
from rsgeoseg.nn.scored_masks import LOWEST_SCORE, scored_masks

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rsgeoseg.contract import Chip, Instances, ModelSpec, Prompts
    from rsgeoseg.models.sam_seg_mask2former.network import SamSegMask2Former


class Mask2FormerSegmenter:
    """SAM-seg (Mask2Former) as the engine calls it.

    Args:
        network: the network, in evaluation mode on its device.
        spec: what it is; its ``score_threshold`` also bounds the work.
        max_instances: most objects per chip.
        autocast: run in bfloat16 where it is fast.
    """

    def __init__(
        self, network: SamSegMask2Former, spec: ModelSpec, *, max_instances: int = 100, autocast: bool = False
    ) -> None:
        self.network = network.eval()
        self.spec = spec
        self.max_instances = max_instances
        self.autocast = autocast
        self.device = next(network.parameters()).device
        self.batch_size = 8 if self.device.type == "cuda" else 1
        """Chips at once that the engine starts with: on a CPU more would only take memory."""

    def at_threshold(self, score_threshold: float) -> Mask2FormerSegmenter:
        """Give the same model with another score threshold; objects below it need not be found."""
        spec = replace(self.spec, score_threshold=score_threshold)
        return Mask2FormerSegmenter(self.network, spec, max_instances=self.max_instances, autocast=self.autocast)

    def segment(self, chips: Sequence[Chip], prompts: Sequence[Prompts | None] | None = None) -> list[Instances]:
        """Find the objects of each chip; see ``contract.Segmenter.segment``."""
        refuse_prompts(self.spec, prompts)
        return segment_alike(chips, self._forward, device=self.device, autocast=self.autocast)

    def _forward(self, chips: list[Chip]) -> list[Instances]:
        network, threshold = self.network, self.spec.score_threshold
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
