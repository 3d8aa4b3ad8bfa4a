"""SAM and SAM 2 as a network that looks once and is asked many times: with points, boxes and masks.

Sources: segment-anything (commit dca509f) ``predictor.py``, facebookresearch/sam2 ``sam2_image_predictor.py``. Unlike
theirs, this has no state: what was seen is a value that the caller keeps, and prompts of many images go together.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812  (torch's own name for it)

from rsgeoseg.backbones.build import SAM2_BACKBONES, build_encoder, start_from_sam
from rsgeoseg.backbones.chips import images_of, normalise
from rsgeoseg.backbones.drawn_prompts import draw_prompts, under_prompts
from rsgeoseg.backbones.prompt_loss import PromptLoss, prompt_losses
from rsgeoseg.backbones.sam2_parts import Sam2PromptedDecoder
from rsgeoseg.backbones.sam_fit import SamFit, fitted_images
from rsgeoseg.backbones.sam_parts import MULTIPLE, Attended, SamPromptedDecoder
from rsgeoseg.backbones.shared import load_network
from rsgeoseg.nn.masks import CELL

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from torch import Tensor

    from rsgeoseg.backbones.features import Encoder, EncoderSpec
    from rsgeoseg.contract import Chip
    from rsgeoseg.nn.targets import Target
    from rsgeoseg.weights.files import WeightsFile

MASKS = 4
"""Mask tokens of SAM's decoder."""
_LITE_MLP = 512
"""Hidden width of the two-way transformer's MLP on `lite`; 2048 in SAM."""


@dataclass(frozen=True, slots=True)
class SamScene:
    """What a batch of B images looks like to SAM's decoder."""

    embedding: Tensor
    """(B, C, h, w) image embeddings."""
    embedding_pe: Tensor
    """(1, C, h, w) their positions."""
    skips: tuple[Tensor, Tensor] | None
    """(B, C/8, 4h, 4w) and (B, C/4, 2h, 2w) where the decoder has skip connections, already projected."""
    size: tuple[int, int]
    """H, W of the images as the encoder got them, padding included, pixels."""
    origin: tuple[float, float] = (0.0, 0.0)
    """x y of the images' corner in the positional frame, pixels."""
    fit: SamFit | None = None
    """How chips were resized to ``size``; None = they were not. Prompts are given in pixels of the chip."""

    @property
    def device(self) -> torch.device:
        """Where it lies."""
        return self.embedding.device

    def one(self, index: int) -> SamScene:
        """Take one image of the batch, B = 1: its prompts then share what is computed for the image."""
        part = slice(index, index + 1)
        skips = None if self.skips is None else (self.skips[0][part], self.skips[1][part])
        return replace(self, embedding=self.embedding[part], skips=skips)


@dataclass(frozen=True, slots=True)
class DecodedMasks:
    """Answers to P prompts."""

    logits: Tensor
    """(P, M, H/4, W/4) float32 mask logits, the images' padding included; positive = object."""
    iou: Tensor
    """(P, M) float32 predicted IoU with what was meant; SAM's may leave [0, 1]."""

    def best(self) -> DecodedMasks:
        """Keep the mask with the highest predicted IoU of each prompt: M = 1."""
        rows = torch.arange(len(self.iou), device=self.iou.device)
        first = self.iou.argmax(1)
        return DecodedMasks(self.logits[rows, first].unsqueeze(1), self.iou[rows, first].unsqueeze(1))


class PromptableSam(nn.Module):
    """An image encoder and SAM's decoder.

    Args:
        encoder: any image encoder.
        sam: a decoder that fits it; see :func:`sam_decoder`.
        loss_config: how prompts are simulated and weighed in training.
    """

    def __init__(self, encoder: Encoder, sam: SamPromptedDecoder, loss_config: PromptLoss | None = None) -> None:
        super().__init__()
        self.encoder = encoder
        self.sam = sam
        self.loss_config = loss_config or PromptLoss()
        self.draws_prompts = encoder.spec.name == "lite"
        """True where prompts are also drawn as maps (:mod:`rsgeoseg.backbones.drawn_prompts`)."""

    def look(self, images: Tensor, origin: tuple[float, float] = (0.0, 0.0)) -> SamScene:
        """Encode images.

        Args:
            images: (B, 3, H, W), normalised and padded or resized; for chips use :meth:`see`.
            origin: x y of their corner in the positional frame, pixels; (0, 0) but in training.
        """
        features = self.encoder(images)
        h, w = features.embedding.shape[-2:]
        stride = self.encoder.spec.embedding.stride
        return SamScene(
            embedding=features.embedding,
            embedding_pe=self.sam.image_pe(h, w, (origin[0] / stride, origin[1] / stride)),
            skips=None if features.skips is None else self.sam.project_skips(features.skips),
            size=(images.shape[-2], images.shape[-1]),
            origin=origin,
        )

    def see(self, chips: Sequence[Chip]) -> SamScene:
        """Encode chips of one size, resized where the encoder has a fixed size and was trained so (SAM, SAM 2)."""
        spec, device = self.encoder.spec, next(self.parameters()).device
        fit = SamFit.of(chips[0].valid.shape, spec)
        if fit is None:
            return self.look(images_of(chips, spec, device))
        return replace(self.look(fitted_images(chips, spec, fit, device)), fit=fit)

    def attend(
        self,
        scene: SamScene,
        image_index: Tensor,
        *,
        points: Tensor | None = None,
        point_labels: Tensor | None = None,
        boxes: Tensor | None = None,
        masks: Tensor | None = None,
    ) -> Attended:
        """Let prompts look at their images without drawing masks yet; arguments as of :meth:`decode`."""
        shift = torch.tensor(scene.origin, device=scene.device)
        if scene.fit is not None:
            scale = scene.fit.scale(scene.device)
            points = None if points is None else points * scale
            boxes = None if boxes is None else boxes * scale.repeat(2)
        if points is None and boxes is None:
            sparse = scene.embedding.new_zeros(len(image_index), 0, self.sam.dim)
        else:
            sparse = self.sam.sparse_prompts(
                points=None if points is None else points + shift,
                point_labels=point_labels,
                boxes=None if boxes is None else boxes + shift.repeat(2),
            )
        given, drawn = None if masks is None else masks.squeeze(1), None
        if self.draws_prompts and (points is not None or boxes is not None):
            shape = (scene.size[0] // CELL, scene.size[1] // CELL)
            drawn = draw_prompts(shape, points=points, point_labels=point_labels, boxes=boxes)
            given = drawn if given is None else given + drawn
        dense = self.sam.no_mask() if given is None else self.sam.dense_prompts(given)
        if masks is None and drawn is not None:
            dense = dense + self.sam.no_mask()
        attended = self.sam.attend(scene.embedding, scene.embedding_pe, image_index, sparse, dense, scene.skips)
        return attended if drawn is None else self._told(attended, drawn)

    def _told(self, attended: Attended, drawn: Tensor) -> Attended:
        """Add what lies under drawn prompts (P, H/4, W/4) to the tokens of quality and masks."""
        seen = under_prompts(attended.image, drawn).unsqueeze(1)
        own = self.sam.iou_token + 1 + MASKS
        told = torch.cat([attended.tokens[:, :own] + seen, attended.tokens[:, own:]], 1)
        return replace(attended, tokens=told)

    def decode(
        self,
        scene: SamScene,
        image_index: Tensor,
        *,
        points: Tensor | None = None,
        point_labels: Tensor | None = None,
        boxes: Tensor | None = None,
        masks: Tensor | None = None,
        multimask: bool = False,
    ) -> DecodedMasks:
        """Answer P prompts; what belongs to one prompt has the same row in every argument.

        Coordinates are those of the packages, which add half a pixel: integers are pixel centres.

        Args:
            scene: what ``look`` gave.
            image_index: (P,) int64, which image a prompt belongs to.
            points: (P, N, 2) x y chip pixels.
            point_labels: (P, N) int64: 1 = object, 0 = background, -1 = no point.
            boxes: (P, 4) x0 y0 x1 y1 chip pixels.
            masks: (P, 1, H/4, W/4) logits of an earlier answer.
            multimask: three masks per prompt, for one that may mean a part, a thing or a group; else one.
        """
        attended = self.attend(scene, image_index, points=points, point_labels=point_labels, boxes=boxes, masks=masks)
        if multimask:
            logits, iou = self.sam.masks(attended, MULTIPLE), self.sam.qualities(attended.tokens)[:, MULTIPLE]
        else:
            logits, iou = self.sam.single(attended)
        return DecodedMasks(logits.float(), iou)

    def loss(self, images: Tensor, targets: Sequence[Target]) -> dict[str, Tensor]:
        """Loss on simulated prompts; see :func:`rsgeoseg.backbones.prompt_loss.prompt_losses`.

        Args:
            images: (B, 3, H, W) uint8, H and W multiples of 64; resized where the encoder has a fixed size.
            targets: what each image shows, on the images' device.
        """
        spec = self.encoder.spec
        normed, origin = normalise(images, spec), (0.0, 0.0)
        room = torch.tensor([spec.image_size - images.shape[-1], spec.image_size - images.shape[-2]]).clamp(min=0)
        fit = SamFit.of(images.shape[-2:], spec)
        if fit is not None:
            normed, targets = fit.images(normed), [fit.target(target) for target in targets]
        elif spec.fixed_size:
            normed = F.pad(normed, (0, int(room[0]), 0, int(room[1])))
        else:  # a crop may be any part of a full-size image: every position is trained
            x, y = (torch.rand(2) * room).tolist()
            origin = (x, y)
        return prompt_losses(self, self.look(normed, origin), targets, self.loss_config)


def sam_decoder(spec: EncoderSpec) -> SamPromptedDecoder:
    """Build the decoder that fits an encoder: SAM 2's for Hiera, SAM's for the others, small for `lite`."""
    grid = spec.image_size // spec.embedding.stride
    dim = spec.embedding.channels
    if spec.name in SAM2_BACKBONES:
        assert spec.skip_channels is not None
        return Sam2PromptedDecoder(dim=dim, grid=grid, skip_channels=spec.skip_channels)
    small = {"mlp_dim": _LITE_MLP} if spec.name == "lite" else {}
    return SamPromptedDecoder(dim=dim, grid=grid, skip_channels=spec.skip_channels, **small)


def build_promptable(
    backbone: str,
    *,
    pretrained: bool = True,
    sam_checkpoint: Path | None = None,
    image_size: int = 1024,
    loss_config: PromptLoss | None = None,
) -> PromptableSam:
    """Build the network.

    Args:
        backbone: one of ``rsgeoseg.backbones.build.BACKBONES``.
        pretrained: start `lite` from ImageNet weights.
        sam_checkpoint: file of SAM or SAM 2; its encoder is frozen. None = random weights.
        image_size: input side of a SAM encoder, pixels.
        loss_config: how prompts are simulated and weighed in training.

    Raises:
        ModelError: the backbone is unknown, or takes no SAM file.
        WeightsError: the file is missing, damaged, or of another size.
    """
    encoder = build_encoder(backbone, pretrained=pretrained, image_size=image_size, layers=())
    network = PromptableSam(encoder, sam_decoder(encoder.spec), loss_config)
    if sam_checkpoint is not None:
        start_from_sam(network, sam_checkpoint)
    return network


def load_promptable(file: WeightsFile, path: Path, device: torch.device) -> PromptableSam:
    """Build the network of a weights file, ready to be asked.

    A SAM encoder is the process's only one with these weights on this device: do not train or move it.

    Args:
        file: of `sam-prompt`, `sam2-prompt`, or plain SAM or SAM 2.
        path: where it was read, for messages.
        device: where the network goes.

    Raises:
        WeightsError: tensors are missing, unknown, or of another shape.
    """
    return load_network(build_promptable(file.description["backbone"], pretrained=False), file, path, device)
