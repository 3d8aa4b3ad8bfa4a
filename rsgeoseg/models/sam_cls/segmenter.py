"""From chips to instances with SAM-cls: the engine's side of the model.

Everything mode's masks, each named by the labeller from its crop. Source: KyanChen/RSPrompter, branch lightning,
``get_sam_cls_metrics.py``. Two slips of it are an option (``numerics="released"``): probabilities went through a second
softmax, and pairs of mask and class compete. A third is not: images with fewer than 100 pairs were skipped.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from rsgeoseg.backbones.everything import EverythingConfig, find_everything
from rsgeoseg.backbones.network_segmenter import NetworkSegmenter
from rsgeoseg.contract import Chip, Instances
from rsgeoseg.models.sam_cls.crops import MaskCrops
from rsgeoseg.models.sam_cls.network import SamCls

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from rsgeoseg.models.sam_cls.config import ClsConfig
    from rsgeoseg.nn.enhancer import Numerics

CROPS_AT_ONCE = 32
"""Crops per call of the labeller: bounds its memory."""


class ClsSegmenter(NetworkSegmenter[SamCls]):
    """SAM-cls as the engine calls it."""

    def _forward(self, chips: list[Chip]) -> list[Instances]:
        network = self.network
        scene = network.see(chips)
        config = everything_config(network.config)
        found = [find_everything(network, scene.one(i), chip.valid, config) for i, chip in enumerate(chips)]
        return [self._named(chip, masks) for chip, masks in zip(chips, found, strict=True)]

    def _named(self, chip: Chip, found: Instances) -> Instances:
        """Label the masks of one chip; those that are no object are left out."""
        config = self.network.config
        large = np.flatnonzero((found.boxes[:, 2:] - found.boxes[:, :2]).min(1, initial=1 << 30) >= config.smallest_box)
        boxes = [_box(found.boxes[i]) for i in large]
        objects = [(box, found.masks[i]) for box, i in zip(boxes, large, strict=True)]
        crops = MaskCrops(chip.image).resized(objects, self.network.crop_side)  # type: ignore[arg-type]
        quality = found.scores[large] if config.quality_scores else np.ones(len(large), np.float32)
        parts = torch.split(torch.from_numpy(crops).to(self.device), CROPS_AT_ONCE) if len(crops) else ()
        logits = [self.network.label(part) for part in parts]
        if not logits:
            return Instances.empty()
        scores, labels, rows = ranked(torch.cat(logits), config.numerics, quality)
        kept = np.flatnonzero(scores >= max(self.lowest, 1e-6))[: self.max_instances]
        return Instances(
            boxes=found.boxes[large][rows[kept]],
            masks=[objects[row][1] for row in rows[kept]],
            scores=scores[kept],
            labels=labels[kept],
        )


def everything_config(config: ClsConfig) -> EverythingConfig:
    """Say what everything mode asks and keeps."""
    return EverythingConfig(
        points_per_side=config.points_per_side,
        pred_iou=config.pred_iou,
        stability=config.stability,
        nms=config.nms,
        min_region=config.min_region,
    )


def ranked(
    logits: Tensor, numerics: Numerics, quality: NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.int64]]:
    """Turn class logits into scores, best first.

    Args:
        logits: (N, C + 1), background last.
        numerics: "paper": one class per mask; "released": every pair of mask and class, softmax taken twice.
        quality: (N,) what a mask's score is multiplied by.

    Returns:
        Scores, labels, and rows of ``logits``; (N,) each, or (N C,).
    """
    probability = logits.float().softmax(-1)
    if numerics == "released":
        probability = probability.softmax(-1)
    scores = probability[:, :-1].cpu().numpy() * quality[:, None]
    if numerics == "paper":
        rows, labels = np.arange(len(scores)), scores.argmax(1)
    else:
        rows, labels = (axis.ravel() for axis in np.indices(scores.shape))
    values = scores[rows, labels].astype(np.float32)
    order = np.argsort(-values, kind="stable")
    return values[order], labels[order].astype(np.int64), rows[order]


def _box(row: NDArray[np.int32]) -> tuple[int, int, int, int]:
    x0, y0, x1, y1 = row.tolist()
    return x0, y0, x1, y1
