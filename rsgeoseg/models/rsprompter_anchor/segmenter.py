"""From chips to instances with RSPrompter-anchor: the engine's side of the model.

Score = class probability (times the mean mask probability where the config says so); pairs of box and class above the
threshold, class-wise NMS at 0.5, the best 100 (KyanChen/RSPrompter f4e73c3, ``test_cfg``). Where the config resizes
chips, masks go back to them as in the authors' code (``released``).
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from rsgeoseg.backbones.chips import images_of
from rsgeoseg.backbones.fitted import Fit, fit_images
from rsgeoseg.backbones.network_segmenter import NetworkSegmenter
from rsgeoseg.contract import Chip, Instances
from rsgeoseg.models.rsprompter_anchor.network import RSPrompterAnchor
from rsgeoseg.models.rsprompter_anchor.released import released_masks
from rsgeoseg.nn.box_head import Detections, detect
from rsgeoseg.nn.masks import crop_masks
from rsgeoseg.nn.scored_masks import whole_masks

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray
    from torch import Tensor

    from rsgeoseg.models.rsprompter_anchor.network import Scene

BOXES_AT_ONCE = 16
"""Boxes per call of SAM's decoder: more at once is slower on a CPU (caches), and no faster on a GPU per box."""
LOWEST_SCORE = 0.05
"""Lowest class probability of a detection (released ``test_cfg``)."""


class AnchorSegmenter(NetworkSegmenter[RSPrompterAnchor]):
    """RSPrompter-anchor as the engine calls it."""

    def _forward(self, chips: list[Chip]) -> list[Instances]:
        network, encoder = self.network, self.network.encoder.spec
        fit = Fit.of(chips[0].valid.shape, encoder.image_size, network.config.resize)
        images = images_of(chips, encoder, self.device) if fit is None else fit_images(chips, encoder, fit, self.device)
        scene = network.look(images)
        results = []
        for found, logits, chip in zip(*self._detect(scene), chips, strict=True):
            if fit is None:
                results.append(self._instances(found, logits, chip.valid))
            else:
                masks = self._released(found, logits, fit)
                results.append(whole_masks(masks, chip.valid, score_threshold=self.lowest))
        return results

    def _detect(self, scene: Scene) -> tuple[list[Detections], list[list[Tensor]]]:
        """Boxes of each image, and the mask logits (H/4, W/4) of each box.

        Boxes and classes in float32: bfloat16 moves scores across the thresholds that decide which objects there are.
        """
        network = self.network
        with torch.autocast(self.device.type, enabled=False):
            exact = replace(scene, maps=[x.float() for x in scene.maps], placed=[x.float() for x in scene.placed])
            proposals, _ = network.rpn.propose(exact.maps, exact.size)
            class_logits, deltas = network.classify(exact, proposals)
        counts = [len(boxes) for boxes in proposals]
        found = [
            detect(
                *parts,
                scene.size,
                score_threshold=max(self.lowest, LOWEST_SCORE),
                most=self.max_instances,
                flat=network.config.numerics == "released",
            )
            for parts in zip(torch.split(class_logits, counts), torch.split(deltas, counts), proposals, strict=True)
        ]
        masks: list[list[Tensor]] = []
        for index, detections in enumerate(found):
            nothing = [detections.boxes[:0] for _ in found]
            masks.append([])
            for part in torch.split(detections.boxes, BOXES_AT_ONCE) if len(detections.boxes) else ():
                logits, _ = network.masks(scene, [*nothing[:index], part, *nothing[index + 1 :]])
                masks[-1] += list(logits)
        return found, masks

    def _released(
        self, found: Detections, logits: list[Tensor], fit: Fit
    ) -> Iterator[tuple[NDArray[np.bool_], float, int]]:
        """Masks of the image's size, scores and labels, as the authors' code gives them."""
        pairs = zip(found.scores.tolist(), found.labels.tolist(), logits, strict=True)
        for score, label, mask_logits in pairs:
            mask = released_masks(mask_logits.unsqueeze(0), fit, self.network.config.generation)[0]
            yield mask.cpu().numpy(), score, label

    def _instances(self, found: Detections, logits: list[Tensor], valid: NDArray[np.bool_]) -> Instances:
        cropped = crop_masks(logits, valid)
        factor = np.array([quality for *_, quality in cropped], np.float32)
        scores = found.scores.float().cpu().numpy()
        scores = scores * (factor if self.network.config.mask_scores else factor > 0)
        kept = np.flatnonzero(scores >= max(self.lowest, 1e-6))
        kept = kept[np.argsort(-scores[kept], kind="stable")]
        return Instances(
            boxes=np.array([cropped[i][0] for i in kept], np.int32).reshape(-1, 4),
            masks=[cropped[i][1] for i in kept],
            scores=scores[kept].astype(np.float32),
            labels=found.labels.cpu().numpy()[kept].astype(np.int64),
        )
