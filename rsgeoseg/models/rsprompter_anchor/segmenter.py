"""From chips to instances with RSPrompter-anchor: the engine's side of the model.

Score = class probability (times the mean mask probability where the config says so); pairs of box and class above the
threshold, class-wise NMS at 0.5, the best 100 (KyanChen/RSPrompter f4e73c3, ``test_cfg``).
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from rsgeoseg.backbones.chips import images_of, refuse_prompts, segment_alike
from rsgeoseg.contract import Chip, Instances, ModelSpec, Prompts
from rsgeoseg.models.rsprompter_anchor.released import Fit, fit_images, released_mask, tighten
from rsgeoseg.nn.box_head import Detections, detect
from rsgeoseg.nn.masks import crop_mask

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from rsgeoseg.models.rsprompter_anchor.network import RSPrompterAnchor, Scene

BOXES_AT_ONCE = 16
"""Boxes per call of SAM's decoder: more at once is slower on a CPU (caches), and no faster on a GPU per box."""
LOWEST_SCORE = 0.05
"""Lowest class probability of a detection (released ``test_cfg``)."""


class AnchorSegmenter:
    """RSPrompter-anchor as the engine calls it.

    Args:
        network: the network, in evaluation mode on its device.
        spec: what it is; its ``score_threshold`` also bounds the work.
        max_instances: most objects per chip.
        autocast: run in bfloat16 where it is fast.
    """

    def __init__(
        self, network: RSPrompterAnchor, spec: ModelSpec, *, max_instances: int = 100, autocast: bool = False
    ) -> None:
        self.network = network.eval()
        self.spec = spec
        self.max_instances = max_instances
        self.autocast = autocast
        self.device = next(network.parameters()).device
        self.batch_size = 8 if self.device.type == "cuda" else 1
        """Chips at once that the engine starts with: on a CPU more would only take memory."""

    def at_threshold(self, score_threshold: float) -> AnchorSegmenter:
        """Give the same model with another score threshold; objects below it need not be found."""
        return AnchorSegmenter(
            self.network,
            replace(self.spec, score_threshold=score_threshold),
            max_instances=self.max_instances,
            autocast=self.autocast,
        )

    def segment(self, chips: Sequence[Chip], prompts: Sequence[Prompts | None] | None = None) -> list[Instances]:
        """Find the objects of each chip; see ``contract.Segmenter.segment``."""
        refuse_prompts(self.spec, prompts)
        return segment_alike(chips, self._forward, device=self.device, autocast=self.autocast)

    def _forward(self, chips: list[Chip]) -> list[Instances]:
        network, encoder = self.network, self.network.encoder.spec
        fit = Fit.of(chips[0].valid.shape, encoder.image_size, network.config.resize)
        images = images_of(chips, encoder, self.device) if fit is None else fit_images(chips, encoder, fit, self.device)
        scene = network.look(images)
        results = []
        for found, logits in zip(*self._detect(scene), strict=True):
            chip = chips[len(results)]
            results.append(self._instances(found, logits, chip.valid, fit))
        return results

    def _detect(self, scene: Scene) -> tuple[list[Detections], list[list[Tensor]]]:
        """Boxes of each image, and the mask logits (H/4, W/4) of each box."""
        network = self.network
        proposals, _ = network.rpn.propose(scene.maps, scene.size)
        class_logits, deltas = network.classify(scene, proposals)
        counts = [len(boxes) for boxes in proposals]
        found = [
            detect(*parts, scene.size, score_threshold=self._lowest, most=self.max_instances)
            for parts in zip(class_logits.split(counts), deltas.split(counts), proposals, strict=True)
        ]
        masks: list[list[Tensor]] = []
        for index, detections in enumerate(found):
            nothing = [detections.boxes[:0] for _ in found]
            masks.append([])
            for part in detections.boxes.split(BOXES_AT_ONCE) if len(detections.boxes) else ():
                logits, _ = network.masks(scene, [*nothing[:index], part, *nothing[index + 1 :]])
                masks[-1] += list(logits)
        return found, masks

    @property
    def _lowest(self) -> float:
        return max(self.spec.score_threshold, LOWEST_SCORE)

    def _instances(
        self, found: Detections, logits: list[Tensor], valid: NDArray[np.bool_], fit: Fit | None
    ) -> Instances:
        boxes, masks, qualities = [], [], []
        for mask_logits in logits:
            if fit is None:
                box, mask, quality = crop_mask(mask_logits, valid)
            else:
                box, mask, quality = tighten(released_mask(mask_logits, fit, self.network.config.generation) & valid)
            boxes.append(box)
            masks.append(mask)
            qualities.append(quality)
        quality = np.array(qualities, np.float32)
        scores = found.scores.float().cpu().numpy()
        scores = scores * quality if self.network.config.mask_scores else scores * (quality > 0)
        kept = np.flatnonzero(scores >= max(self.spec.score_threshold, 1e-6))
        kept = kept[np.argsort(-scores[kept], kind="stable")]
        return Instances(
            boxes=np.array([boxes[i] for i in kept], np.int32).reshape(-1, 4),
            masks=[masks[i] for i in kept],
            scores=scores[kept].astype(np.float32),
            labels=found.labels.cpu().numpy()[kept].astype(np.int64),
        )
