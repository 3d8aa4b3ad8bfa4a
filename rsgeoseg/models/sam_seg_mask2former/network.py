"""SAM-seg with Mask2Former's head on SAM's frozen encoder (RSPrompter paper section III-C, Eq. 10).

Source: Chen et al., "RSPrompter", IEEE TGRS 2024; Cheng et al., Mask2Former; constants of KyanChen/RSPrompter, branch
release, f4e73c3, ``configs/rsprompter/_base_/samseg-mask2former.py``. The released code trains the encoder by a slip
(its freeze test never holds); this follows the paper, where it is frozen.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812  (torch's own name for it)

from rsgeoseg.backbones.chips import normalise
from rsgeoseg.nn.enhancer import PlainEnhancer, PyramidEnhancer
from rsgeoseg.nn.masked_attention import MaskedDecoderLayer
from rsgeoseg.nn.mlp import mlp
from rsgeoseg.nn.pixel_decoder import PixelDecoder
from rsgeoseg.nn.points import read_masks, sample_points, uncertain_points
from rsgeoseg.nn.query_memory import Memory, blocked_cells, query_memories
from rsgeoseg.nn.set_prediction import match_queries, point_losses, set_class_loss
from rsgeoseg.nn.steady import draw_masks

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from rsgeoseg.backbones.features import Encoder
    from rsgeoseg.models.sam_seg_mask2former.config import Mask2FormerConfig
    from rsgeoseg.nn.set_prediction import Pairs
    from rsgeoseg.nn.targets import Target

CLASS_WEIGHT, MASK_WEIGHT, DICE_WEIGHT = 2.0, 5.0, 5.0
"""Weights of the loss terms."""
BACKGROUND_WEIGHT = 0.1
"""Class weight of background."""


@dataclass(frozen=True, slots=True)
class Scene:
    """What all queries of a batch look at."""

    mask_feature: Tensor
    """(B, width, H/4, W/4) float32."""
    memories: tuple[Memory, ...]
    """Maps at strides 64, 32, 16."""


@dataclass(frozen=True, slots=True)
class PredictionSet:
    """What the queries say after one decoder layer (set 0: before the first)."""

    class_logits: Tensor
    """(B, Q, C + 1) float32, background last."""
    kernels: Tensor
    """(B, Q, width) float32: dot product with the mask feature gives mask logits."""


class SamSegMask2Former(nn.Module):
    """The network: encoder, enhancer, pixel decoder, query decoder.

    Args:
        encoder: any image encoder.
        config: sizes and options.
    """

    def __init__(self, encoder: Encoder, config: Mask2FormerConfig) -> None:
        super().__init__()
        self.encoder = encoder
        self.config = config
        spec, width = encoder.spec, config.width
        channels = [level.channels for level in spec.hidden]
        self.neck = (
            PyramidEnhancer(channels, channels=width)
            if spec.is_pyramid
            else PlainEnhancer(channels, channels=width, numerics=config.numerics)
        )
        self.pixel_decoder = PixelDecoder(
            self.neck.channels,
            width=width,
            mask_channels=width,
            layers=config.encoder_layers,
            heads=config.heads,
            hidden=config.encoder_hidden,
            extent=spec.image_size,
        )
        self.level_embed = nn.Embedding(PixelDecoder.encoded_levels, width)
        self.query_feat = nn.Embedding(config.num_queries, width)
        self.query_embed = nn.Embedding(config.num_queries, width)
        self.layers = nn.ModuleList(
            MaskedDecoderLayer(width, heads=config.heads, hidden=config.decoder_hidden)
            for _ in range(config.decoder_layers)
        )
        self.post_norm = nn.LayerNorm(width)
        self.cls_embed = nn.Linear(width, len(config.classes) + 1)
        self.mask_embed = mlp(width, width, width, width)

    def loss(self, images: Tensor, targets: Sequence[Target]) -> dict[str, Tensor]:
        """Compute the training loss (``train.Trainable``), summed over the prediction sets.

        The crop lies at a random place of the positional frame where the encoder takes any size, so that a network
        trained on small crops knows all places of a large chip.

        Args:
            images: (B, 3, H, W) uint8, H and W multiples of 64.
            targets: one per image.

        Returns:
            Named terms; their sum is minimised.
        """
        spec, origin = self.encoder.spec, (0.0, 0.0)
        if not spec.fixed_size:
            room = torch.tensor([spec.image_size - images.shape[-1], spec.image_size - images.shape[-2]]).clamp(min=0)
            x, y = (torch.rand(2) * room).tolist()
            origin = (x, y)
        scene = self.look(normalise(images, spec), origin)
        terms: dict[str, Tensor] = {}
        for prediction in self.decode(scene):
            read = partial(self.mask_logits_at, scene, prediction)
            pairs = match_queries(prediction.class_logits, read, targets, points=self.config.points)
            class_term = set_class_loss(prediction.class_logits, pairs, targets, background_weight=BACKGROUND_WEIGHT)
            mask_term, dice_term = self._mask_terms(scene, prediction, pairs, targets)
            weighted = {
                "class": CLASS_WEIGHT * class_term,
                "mask": MASK_WEIGHT * mask_term,
                "dice": DICE_WEIGHT * dice_term,
            }
            terms = {name: terms[name] + term if terms else term for name, term in weighted.items()}
        return terms

    def _mask_terms(
        self, scene: Scene, prediction: PredictionSet, pairs: Pairs, targets: Sequence[Target]
    ) -> tuple[Tensor, Tensor]:
        if not len(pairs.image):
            nothing = prediction.kernels.sum() * 0 + scene.mask_feature.sum() * 0
            return nothing, nothing
        logits = self.mask_logits(scene, prediction, pairs.image, pairs.query)
        points = uncertain_points(logits.detach(), self.config.points, generator=None)
        masks = torch.cat([target.masks for target in targets])
        return point_losses(logits, read_masks(masks, pairs.mask_rows(targets), points), points)

    def look(self, images: Tensor, origin: tuple[float, float] = (0.0, 0.0)) -> Scene:
        """Encode images (B, 3, H, W), normalised, H and W multiples of 64.

        Args:
            images: the batch.
            origin: x y of the images' corner in the positional frame, pixels.
        """
        mask_feature, refined = self.pixel_decoder(self.neck(self.encoder(images).hidden), origin)
        extent = self.encoder.spec.image_size
        memories = query_memories(refined[:3], self.level_embed.weight, extent=extent, origin=origin)
        return Scene(mask_feature=mask_feature.float(), memories=memories)

    def decode(self, scene: Scene) -> list[PredictionSet]:
        """Run the query decoder: ``decoder_layers + 1`` prediction sets, the last one the result."""
        batch = scene.mask_feature.shape[0]
        state = self.query_feat.weight.expand(batch, -1, -1)
        position = self.query_embed.weight.expand(batch, -1, -1)
        sets = [self._predict(state)]
        for index, layer in enumerate(self.layers):
            memory = scene.memories[index % len(scene.memories)]
            blocked = self._blocked(scene, sets[-1], memory.shape)
            state = layer(state, position, memory.tokens, memory.positions, blocked)
            sets.append(self._predict(state))
        return sets

    def _predict(self, state: Tensor) -> PredictionSet:
        normed = self.post_norm(state)
        return PredictionSet(self.cls_embed(normed).float(), self.mask_embed(normed).float())

    @torch.no_grad()
    def _blocked(self, scene: Scene, prediction: PredictionSet, shape: tuple[int, int]) -> Tensor:
        """Cells outside each query's mask (B, Q, L): resizing the mask feature resizes every mask."""
        reduced = F.interpolate(scene.mask_feature, size=shape, mode="bilinear", align_corners=False)
        return blocked_cells(torch.einsum("bqc,bchw->bqhw", prediction.kernels, reduced))

    def mask_logits(self, scene: Scene, prediction: PredictionSet, image: Tensor, query: Tensor) -> Tensor:
        """Masks (P, H/4, W/4) float32 logits of chosen queries, image and query (P,) int64 each."""
        kernels = prediction.kernels[image, query]
        logits = kernels.new_zeros(len(image), *scene.mask_feature.shape[-2:])
        for index in torch.unique(image).tolist():
            here = (image == index).nonzero().squeeze(1)
            drawn = draw_masks(kernels[here], scene.mask_feature[index]).float()
            logits = logits.index_copy(0, here, drawn)
        return logits

    def mask_logits_at(self, scene: Scene, prediction: PredictionSet, image: int, points: Tensor) -> Tensor:
        """Mask logits (Q, P) of all queries of one image at points (P, 2) x y in [0, 1]."""
        return prediction.kernels[image] @ sample_points(scene.mask_feature[image], points.unsqueeze(0))
