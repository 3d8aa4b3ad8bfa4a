"""SAM-seg with Mask R-CNN's heads on SAM's frozen encoder (RSPrompter paper section III-C, Eq. 10).

Source: Chen et al., "RSPrompter", IEEE TGRS 2024; constants of KyanChen/RSPrompter, branch release, f4e73c3,
``configs/rsprompter/_base_/samseg-maskrcnn.py``. The released code trains the encoder by a slip (its freeze test never
holds); this follows the paper, where it is frozen.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

from rsgeoseg.backbones.chips import normalise
from rsgeoseg.nn.box_detector import STRIDES, BoxDetector
from rsgeoseg.nn.box_head import box_losses, sample_proposals
from rsgeoseg.nn.enhancer import PlainEnhancer, PyramidFpn
from rsgeoseg.nn.mask_head import MaskHead, mask_loss, positive_boxes
from rsgeoseg.nn.roi_features import roi_features

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from rsgeoseg.backbones.features import Encoder
    from rsgeoseg.models.sam_seg_maskrcnn.config import MaskRcnnConfig
    from rsgeoseg.nn.box_head import Detections
    from rsgeoseg.nn.targets import Target

MASK_SIZE = 14
"""Samples per side of a box's features for the mask head."""


@dataclass(frozen=True, slots=True)
class Scene:
    """What all boxes of a batch look at."""

    maps: list[Tensor]
    """The pyramid, (B, C, h, w) per stride."""
    size: tuple[int, int]
    """H, W of the network's input."""


class SamSegMaskRcnn(nn.Module):
    """The network: encoder, enhancer, proposals, box head, mask head.

    Args:
        encoder: any image encoder.
        config: sizes and options.
    """

    def __init__(self, encoder: Encoder, config: MaskRcnnConfig) -> None:
        super().__init__()
        self.encoder = encoder
        self.config = config
        width, channels = config.width, [level.channels for level in encoder.spec.hidden]
        self.neck = (
            PyramidFpn(channels, channels=width)
            if encoder.spec.is_pyramid
            else PlainEnhancer(channels, channels=width, numerics=config.numerics)
        )
        self.detector = BoxDetector(
            len(config.classes),
            width=width,
            hidden=config.box_hidden,
            samples=config.samples,
            proposals=config.proposals,
        )
        self.mask_head = MaskHead(width, len(config.classes))

    def loss(self, images: Tensor, targets: Sequence[Target]) -> dict[str, Tensor]:
        """Compute the training loss (``train.Trainable``): Mask R-CNN's five terms, all of weight one.

        Args:
            images: (B, 3, H, W) uint8, H and W multiples of 64.
            targets: one per image.

        Returns:
            Named terms; their sum is minimised.
        """
        scene = self.look(normalise(images, self.encoder.spec))
        proposals, losses = self.detector.rpn.propose(scene.maps, scene.size, targets)
        background = len(self.config.classes)
        samples = sample_proposals(
            [boxes.detach() for boxes in proposals], targets, background=background, samples=self.config.samples
        )
        losses |= box_losses(*self.detector.classify(scene.maps, samples.boxes), samples)
        logits = self.masks(scene, positive_boxes(samples, background))
        return losses | {"mask": mask_loss(logits, samples, targets)}

    def look(self, images: Tensor) -> Scene:
        """Encode and enhance images (B, 3, H, W), normalised, H and W multiples of 64."""
        maps = list(self.neck(self.encoder(images).hidden))
        return Scene(maps=maps, size=(images.shape[-2], images.shape[-1]))

    def detect(self, scene: Scene, *, score_threshold: float, most: int) -> list[Detections]:
        """Find the boxes of each image in evaluation mode; see ``BoxDetector.find``."""
        return self.detector.find(scene.maps, scene.size, score_threshold=score_threshold, most=most)

    def masks(self, scene: Scene, boxes: Sequence[Tensor]) -> Tensor:
        """Mask logits (R, C, 28, 28) of boxes (R_i, 4) per image, images in a row."""
        features = roi_features(scene.maps[:-1], boxes, strides=STRIDES[:-1], size=MASK_SIZE)
        logits: Tensor = self.mask_head(features)
        return logits
