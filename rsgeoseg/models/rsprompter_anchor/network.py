"""RSPrompter-anchor: boxes of a two-stage detector prompt SAM's mask decoder (paper section III-B3, Fig. 5, Eq. 4-5).

Source: Chen et al., "RSPrompter", IEEE TGRS 2024; facts of the released code from KyanChen/RSPrompter, branch release
(2024, commit f4e73c3, ``RSPrompterAnchorRoIPromptHead``) and branches lightning and huggingface (2023). The names of
modules give the released files' names under ``weights``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812  (torch's own name for it)

from rsgeoseg.backbones.chips import normalise
from rsgeoseg.backbones.sam_parts import SamPromptedDecoder
from rsgeoseg.models.rsprompter_anchor.config import LossConfig
from rsgeoseg.models.rsprompter_anchor.loss import anchor_losses
from rsgeoseg.models.rsprompter_anchor.neck import Enhancer2023
from rsgeoseg.nn.box_head import BoxHead
from rsgeoseg.nn.coarse_masks import CoarseMaskHead, place_logits
from rsgeoseg.nn.enhancer import EmbeddingEnhancer, PlainEnhancer, PyramidFpn
from rsgeoseg.nn.norm import set_norm_eps
from rsgeoseg.nn.positions import cell_positions
from rsgeoseg.nn.prompt_embeddings import prompt_embeddings, raw_width
from rsgeoseg.nn.roi_features import roi_features
from rsgeoseg.nn.rpn import build_rpn

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from rsgeoseg.backbones.features import Encoder, Features
    from rsgeoseg.models.rsprompter_anchor.config import AnchorConfig
    from rsgeoseg.nn.targets import Target

BOX_SIZE = 7
"""Samples per side of a box's features for the box head."""
PROMPT_SIZE = 14
"""Samples per side of a box's features for the prompt head."""


@dataclass(frozen=True, slots=True)
class Scene:
    """What all boxes of a batch look at."""

    embedding: Tensor
    """(B, D, h, w) SAM's image embedding."""
    embedding_pe: Tensor
    """(1, D, h, w)."""
    skips: tuple[Tensor, Tensor] | None
    """Maps at stride 4 and 8."""
    maps: list[Tensor]
    """The pyramid, (B, C, h, w) per stride: what proposals are made from."""
    placed: list[Tensor]
    """The pyramid's levels down to stride 32 with positions added: what boxes are read from."""
    size: tuple[int, int]
    """H, W of the network's input."""


class PromptHead(nn.Module):
    """Features of a box to the raw numbers of its prompts (Eq. 4; layer numbers of the released files).

    Args:
        channels: of the features.
        raw: numbers per box.
    """

    def __init__(self, channels: int, raw: int) -> None:
        super().__init__()
        side = PROMPT_SIZE // 2
        self.point_emb = nn.Sequential(
            nn.Conv2d(channels, channels, 3, stride=2, padding=1),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
            nn.Flatten(),
            nn.Linear(channels * side * side, channels),
            nn.ReLU(inplace=True),
            nn.Linear(channels, channels),
            nn.ReLU(inplace=True),
            nn.Linear(channels, raw),
        )

    def forward(self, features: Tensor) -> Tensor:
        """Turn (R, channels, 14, 14) into (R, raw)."""
        raw: Tensor = self.point_emb(features)
        return raw


class RSPrompterAnchor(nn.Module):
    """The network: encoder, enhancer, proposals, box head, prompt head, SAM's mask decoder.

    Args:
        encoder: any image encoder.
        config: sizes and options.
        loss_config: weights and options of the training loss.
    """

    def __init__(self, encoder: Encoder, config: AnchorConfig, loss_config: LossConfig | None = None) -> None:
        super().__init__()
        self.encoder = encoder
        self.config = config
        self.loss_config = loss_config or LossConfig()
        spec, width = encoder.spec, config.width
        channels = [level.channels for level in spec.hidden]
        self.neck: nn.Module
        if config.aggregate == "embedding":
            self.neck = EmbeddingEnhancer(spec.embedding.channels)
        elif spec.is_pyramid:
            self.neck = PyramidFpn(channels, channels=width)
        elif config.generation == "2023":
            self.neck = Enhancer2023(channels, channels=width)
        else:
            self.neck = PlainEnhancer(channels, channels=width, numerics=config.numerics)
        self.rpn = build_rpn(
            width, strides=config.strides, scales=config.anchor_scales, after_nms=(1000, config.proposals)
        )
        self.box_head = BoxHead(width, BOX_SIZE, len(config.classes), config.box_hidden)
        self.prompt_head = PromptHead(
            width, raw_width(config.prompts_per_roi, spec.embedding.channels, config.numerics)
        )
        self.sam = SamPromptedDecoder(
            dim=spec.embedding.channels,
            mlp_dim=config.decoder_mlp,
            grid=spec.image_size // spec.embedding.stride,
            skip_channels=spec.skip_channels if config.skips else None,
        )
        if config.numerics == "released" and config.generation == "2024":  # Hugging Face's SAM, all but the last norm
            set_norm_eps(self.sam.mask_decoder.transformer.layers, 1e-6)
        if config.coarse_masks:
            self.coarse_head = CoarseMaskHead(width)
            last = self.sam.mask_decoder.output_hypernetworks_mlps[0].layers[-1]
            nn.init.zeros_(last.weight)  # start from the coarse mask: the decoder adds nothing yet
            nn.init.zeros_(last.bias)

    def loss(self, images: Tensor, targets: Sequence[Target]) -> dict[str, Tensor]:
        """Compute the training loss (``train.Trainable``).

        The crop lies at a random place of the positional frame where the encoder takes any size, so that a network
        trained on small crops knows all places of a large chip.

        Args:
            images: (B, 3, H, W) uint8, H and W multiples of 64.
            targets: one per image.

        Returns:
            Named terms; their sum is minimised.
        """
        origin = (0.0, 0.0)
        if not self.encoder.spec.fixed_size:
            extent = self.encoder.spec.image_size
            room = torch.tensor([extent - images.shape[-1], extent - images.shape[-2]]).clamp(min=0)
            x, y = (torch.rand(2) * room).tolist()
            origin = (x, y)
        return anchor_losses(self, normalise(images, self.encoder.spec), targets, self.loss_config, origin=origin)

    def look(self, images: Tensor, origin: tuple[float, float] = (0.0, 0.0)) -> Scene:
        """Encode images (B, 3, H, W), normalised, H and W multiples of 64.

        Args:
            images: the batch.
            origin: x y of the images' corner in the positional frame, pixels.
        """
        return self.describe(self.encoder(images), (images.shape[-2], images.shape[-1]), origin)

    def describe(self, features: Features, size: tuple[int, int], origin: tuple[float, float] = (0.0, 0.0)) -> Scene:
        """Enhance the encoder's features (Eq. 3) of images of ``size`` H, W, and add positions."""
        maps = list(self.neck((features.embedding,) if self.config.aggregate == "embedding" else features.hidden))
        read = [x for x, stride in zip(maps, self.config.strides, strict=True) if stride <= 32]
        position = self._positions(read, origin)
        stride = self.encoder.spec.embedding.stride
        h, w = features.embedding.shape[-2:]
        return Scene(
            embedding=features.embedding,
            embedding_pe=self.sam.image_pe(h, w, (origin[0] / stride, origin[1] / stride)),
            skips=features.skips if self.config.skips else None,
            maps=maps,
            placed=[x + F.interpolate(position, size=x.shape[-2:], mode="bilinear", align_corners=False) for x in read],
            size=size,
        )

    def _positions(self, maps: list[Tensor], origin: tuple[float, float]) -> Tensor:
        """Sine positions of one level, which the others resize: the finest (2024), the coarsest (2023)."""
        level = -1 if self.config.generation == "2023" else 0
        (h, w), stride = maps[level].shape[-2:], self.config.strides[: len(maps)][level]
        rows = cell_positions(
            h,
            w,
            stride=stride,
            extent=self.encoder.spec.image_size,
            features=self.config.width // 2,
            device=maps[level].device,
            origin=origin,
        )
        return rows.T.reshape(1, -1, h, w)

    def read_boxes(self, scene: Scene, boxes: Sequence[Tensor], size: int) -> Tensor:
        """Read the features inside boxes (R_i, 4) per image: (R, C, size, size)."""
        return roi_features(scene.placed, boxes, strides=self.config.strides[: len(scene.placed)], size=size)

    def classify(self, scene: Scene, boxes: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Class logits (R, C + 1) and deltas (R, 4 C) of boxes, images in a row."""
        found: tuple[Tensor, Tensor] = self.box_head(self.read_boxes(scene, boxes, BOX_SIZE))
        return found

    def sparse_prompts(self, features: Tensor) -> Tensor:
        """Prompt embeddings (R, K_p, D) from features (R, C, 14, 14) (Eq. 4)."""
        return prompt_embeddings(self.prompt_head(features), self.config.prompts_per_roi, self.config.numerics)

    def coarse_masks(self, scene: Scene, boxes: Sequence[Tensor]) -> Tensor:
        """Coarse mask logits (R, 28, 28) of boxes (R_i, 4) per image, without SAM's decoder."""
        return self._coarse(self.read_boxes(scene, boxes, PROMPT_SIZE))

    def _coarse(self, features: Tensor) -> Tensor:
        coarse: Tensor = self.coarse_head(features).squeeze(1).float()
        return coarse

    def masks(self, scene: Scene, boxes: Sequence[Tensor]) -> tuple[Tensor, Tensor | None]:
        """Decode the masks of boxes (Eq. 5).

        Args:
            scene: what ``look`` gave.
            boxes: (R_i, 4) x0 y0 x1 y1 pixels, one tensor per image.

        Returns:
            Mask logits (R, H/4, W/4) float32, images in a row, and the coarse masks (R, 28, 28) where there are some.
        """
        image = torch.cat([torch.full((len(b),), i, device=b.device) for i, b in enumerate(boxes)])
        features = self.read_boxes(scene, boxes, PROMPT_SIZE)
        sparse = self.sparse_prompts(features)
        if not self.config.coarse_masks:
            decoded, _ = self.sam(scene.embedding, scene.embedding_pe, image, sparse, self.sam.no_mask(), scene.skips)
            return decoded.float(), None
        coarse = self._coarse(features)
        h, w = scene.size
        given = place_logits(coarse.detach(), torch.cat(list(boxes)), (h // 4, w // 4), stride=4)
        dense = self.sam.dense_prompts(given)
        decoded, _ = self.sam(scene.embedding, scene.embedding_pe, image, sparse, dense, scene.skips)
        return given + self.config.decoder_share * decoded.float(), coarse
