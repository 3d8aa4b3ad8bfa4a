"""Faster R-CNN on a feature pyramid: proposals, then classes and refined boxes.

Source: Ren et al., Faster R-CNN, on Lin et al., FPN; constants of mmdet as KyanChen/RSPrompter configures it (f4e73c3,
``configs/rsprompter/_base_/samdet.py``). Its parts are torchvision's (:mod:`rsgeoseg.nn.rpn`,
:mod:`rsgeoseg.nn.box_head`), without torchvision's ``GeneralizedRCNNTransform``: images are never resized.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from rsgeoseg.nn.box_head import BoxHead, Detections, box_losses, detect, sample_proposals
from rsgeoseg.nn.roi_features import roi_features
from rsgeoseg.nn.rpn import build_rpn

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from rsgeoseg.nn.targets import Target

STRIDES = (4, 8, 16, 32, 64)
"""Of the pyramid; proposals come from all levels, boxes read all but the coarsest."""
BOX_SIZE = 7
"""Samples per side of a box's features."""


class BoxDetector(nn.Module):
    """Both stages.

    Args:
        classes: number of classes C without background.
        width: channels of every map.
        hidden: width of the box head.
        anchor_scales: sides of the anchors in cells.
        samples: proposals per image in the loss of the box head.
        proposals: per image when testing.
    """

    def __init__(
        self,
        classes: int,
        *,
        width: int = 256,
        hidden: int = 1024,
        anchor_scales: Sequence[float] = (8.0,),
        samples: int = 512,
        proposals: int = 1000,
    ) -> None:
        super().__init__()
        self.classes, self.samples = classes, samples
        self.rpn = build_rpn(width, strides=STRIDES, scales=anchor_scales, after_nms=(1000, proposals))
        self.box_head = BoxHead(width, BOX_SIZE, classes, hidden)

    def losses(self, maps: Sequence[Tensor], size: tuple[int, int], targets: Sequence[Target]) -> dict[str, Tensor]:
        """Compute the four terms of Faster R-CNN's loss, all of weight one.

        Args:
            maps: (B, width, h, w) at strides 4 to 64.
            size: h, w of the images, pixels.
            targets: one per image.
        """
        proposals, terms = self.rpn.propose(maps, size, targets)
        samples = sample_proposals(
            [boxes.detach() for boxes in proposals], targets, background=self.classes, samples=self.samples
        )
        return terms | box_losses(*self.classify(maps, samples.boxes), samples)

    def classify(self, maps: Sequence[Tensor], boxes: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Class logits (R, C + 1), background last, and deltas (R, 4 C) of boxes (R_i, 4) per image, in a row."""
        features = roi_features(maps[:-1], boxes, strides=STRIDES[:-1], size=BOX_SIZE)
        found: tuple[Tensor, Tensor] = self.box_head(features)
        return found

    def find(
        self, maps: Sequence[Tensor], size: tuple[int, int], *, score_threshold: float, most: int
    ) -> list[Detections]:
        """Find boxes, in evaluation mode: class-wise NMS at IoU 0.5.

        Args:
            maps: (B, width, h, w) at strides 4 to 64.
            size: h, w of the images, pixels.
            score_threshold: boxes must score higher.
            most: most boxes per image.

        Returns:
            One per image, best first.
        """
        proposals, _ = self.rpn.propose(maps, size)
        class_logits, deltas = self.classify(maps, proposals)
        counts = [len(boxes) for boxes in proposals]
        return [
            detect(*parts, size, score_threshold=score_threshold, most=most)
            for parts in zip(torch.split(class_logits, counts), torch.split(deltas, counts), proposals, strict=True)
        ]
