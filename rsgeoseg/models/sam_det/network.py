"""SAM-det: the boxes of a detector prompt SAM (RSPrompter paper section III-C3, Eq. 12).

Source: Chen et al., "RSPrompter", IEEE TGRS 2024; constants of KyanChen/RSPrompter, branch release, f4e73c3,
``configs/rsprompter/_base_/samdet.py``. The detector sees chips as they are, SAM sees them
resized to its square, as it was trained; where SAM's encoder is the detector's trunk, both see them padded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812  (torch's own name for it)
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from rsgeoseg.backbones.chips import normalise
from rsgeoseg.backbones.prompt_loss import PromptLoss, prompt_losses
from rsgeoseg.backbones.promptable import PromptableSam, SamScene, sam_decoder
from rsgeoseg.nn.box_detector import BoxDetector
from rsgeoseg.nn.enhancer import PlainEnhancer, PyramidFpn

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from rsgeoseg.backbones.features import Encoder, EncoderSpec, Features
    from rsgeoseg.models.sam_det.config import DetConfig
    from rsgeoseg.nn.targets import Target


class Fpn(nn.Module):
    """Faster R-CNN's pyramid on a ResNet: torchvision's FPN, a fifth map by subsampling.

    Args:
        channels_in: channels at strides 4, 8, 16, 32.
        channels: of every output.
    """

    def __init__(self, channels_in: Sequence[int], *, channels: int) -> None:
        super().__init__()
        self.fpn = FeaturePyramidNetwork(list(channels_in), channels, extra_blocks=LastLevelMaxPool())

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Turn (B, C_i, h_i, w_i) into five maps at strides 4 to 64."""
        return list(self.fpn({str(index): x for index, x in enumerate(maps)}).values())


class SamDet(PromptableSam):
    """The network: SAM, and a detector on a trunk of its own or on SAM's encoder.

    Args:
        encoder: SAM's image encoder.
        config: sizes and options.
        trunk: the detector's ResNet; None = SAM's encoder is the trunk.
    """

    def __init__(self, encoder: Encoder, config: DetConfig, trunk: Encoder | None) -> None:
        super().__init__(encoder, sam_decoder(encoder.spec), PromptLoss(ways=("boxes",)))
        self.config = config
        self.trunk = trunk
        if not config.train_sam:
            self.encoder.requires_grad_(requires_grad=False)
            self.sam.requires_grad_(requires_grad=False)
        spec, width = (trunk or encoder).spec, config.width
        channels = [level.channels for level in spec.hidden]
        self.neck: nn.Module
        if trunk is not None:
            self.neck = Fpn(channels, channels=width)
        else:
            self.neck = (PyramidFpn if spec.is_pyramid else PlainEnhancer)(channels, channels=width)
        self.detector = BoxDetector(
            len(config.classes),
            width=width,
            hidden=config.box_hidden,
            anchor_scales=config.anchor_scales,
            samples=config.samples,
            proposals=config.proposals,
        )

    def pyramid(self, features: Features) -> list[Tensor]:
        """Maps (B, width, h, w) at strides 4 to 64 that the detector reads, from its trunk's features."""
        return list(self.neck(features.hidden))

    def scene(self, features: Features, size: tuple[int, int], origin: tuple[float, float] = (0.0, 0.0)) -> SamScene:
        """What SAM's decoder sees of images of ``size`` H, W whose encoder features are known."""
        h, w = features.embedding.shape[-2:]
        stride = self.encoder.spec.embedding.stride
        return SamScene(
            embedding=features.embedding,
            embedding_pe=self.sam.image_pe(h, w, (origin[0] / stride, origin[1] / stride)),
            skips=None if features.skips is None else self.sam.project_skips(features.skips),
            size=size,
            origin=origin,
        )

    def loss(self, images: Tensor, targets: Sequence[Target]) -> dict[str, Tensor]:
        """Compute the training loss (``train.Trainable``): the detector's, and SAM's where it is trained along.

        Args:
            images: (B, 3, H, W) uint8, H and W multiples of 64; padded where a trunk has a fixed size.
            targets: one per image.

        Returns:
            Named terms; their sum is minimised.
        """
        if self.trunk is not None:
            alone = _prepared(images, self.trunk.spec)
            terms = self.detector.losses(self.pyramid(self.trunk(alone)), _size(alone), targets)
            return terms | super().loss(images, targets) if self.config.train_sam else terms
        seen = _prepared(images, self.encoder.spec)
        features = self.encoder(seen)
        terms = self.detector.losses(self.pyramid(features), _size(seen), targets)
        if self.config.train_sam:
            scene = self.scene(features, _size(seen), self._origin(images))
            terms |= prompt_losses(self, scene, targets, self.loss_config)
        return terms

    def _origin(self, images: Tensor) -> tuple[float, float]:
        """A random place of the positional frame, where crops may lie anywhere in a full-size image."""
        spec = self.encoder.spec
        if spec.fixed_size:
            return 0.0, 0.0
        room = torch.tensor([spec.image_size - images.shape[-1], spec.image_size - images.shape[-2]]).clamp(min=0)
        x, y = (torch.rand(2) * room).tolist()
        return x, y


def _size(images: Tensor) -> tuple[int, int]:
    return images.shape[-2], images.shape[-1]


def _prepared(images: Tensor, spec: EncoderSpec) -> Tensor:
    """Normalise (B, 3, H, W) uint8 and pad to a fixed size where there is one."""
    normed = normalise(images, spec)
    if not spec.fixed_size:
        return normed
    return F.pad(normed, (0, spec.image_size - images.shape[-1], 0, spec.image_size - images.shape[-2]))
