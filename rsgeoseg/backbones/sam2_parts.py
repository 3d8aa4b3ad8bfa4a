"""SAM 2's form of the prompt encoder and mask decoder, for single images.

Source: facebookresearch/sam2 ``modeling/sam/mask_decoder.py``, ``sam2_image_predictor.py``, and the settings of
``build_sam2`` for images. It is SAM's decoder with maps at stride 4 and 8 added while a mask is upscaled, a token that
says whether there is an object at all, qualities through a sigmoid, box corners before the points, and, where the
single mask is not stable, the best of the three others in its place.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch
from segment_anything.modeling.mask_decoder import MLP
from torch import nn

from rsgeoseg.backbones.sam_parts import Attended, SamPromptedDecoder

if TYPE_CHECKING:
    from torch import Tensor

STABILITY_DELTA = 0.05
"""Shift of the mask threshold up and down to measure stability (``dynamic_multimask_stability_delta``)."""
STABLE = 0.98
"""IoU of the two masks from which a single mask counts as stable (``dynamic_multimask_stability_thresh``)."""


class Sam2PromptedDecoder(SamPromptedDecoder):
    """Prompt encoder, positional encoding and mask decoder of SAM 2.

    Args:
        skip_channels: channels of the encoder's maps at stride 4 and 8.
        dim: channels of the image embedding.
        mlp_dim: hidden width of the two-way transformer's MLP.
        grid: side of the image embedding for a full-size image.
    """

    iou_token: ClassVar[int] = 1

    def __init__(self, *, skip_channels: tuple[int, int], dim: int = 256, mlp_dim: int = 2048, grid: int = 64) -> None:
        super().__init__(dim=dim, mlp_dim=mlp_dim, grid=grid, skip_channels=skip_channels)
        self.obj_score_token = nn.Embedding(1, dim)
        self.pred_obj_score_head = MLP(dim, dim, 1, 3)

    def sparse_prompts(
        self, *, points: Tensor | None = None, point_labels: Tensor | None = None, boxes: Tensor | None = None
    ) -> Tensor:
        """Embed points and boxes as SAM 2 does: box corners, points, and always one "not a point".

        Arguments and result as of :meth:`SamPromptedDecoder.sparse_prompts`, with K = N + 1, 3, or N + 3.
        """
        parts = [] if boxes is None else [self._corners(boxes)]
        if points is not None and point_labels is not None:
            parts.append(self._labelled(points, point_labels))
        if not parts:
            msg = "sparse prompts need points with labels, or boxes"
            raise ValueError(msg)
        return torch.cat([*parts, self._no_point(len(parts[0]))], dim=1)

    def qualities(self, tokens: Tensor) -> Tensor:
        """Predict each mask's IoU with what the prompt means: (P, 4) float32 in [0, 1]."""
        return super().qualities(tokens).sigmoid()

    def presence(self, tokens: Tensor) -> Tensor:
        """Say whether there is an object at all: logits (P,) float32. On images SAM 2 does not use it."""
        with torch.autocast(tokens.device.type, enabled=False):
            logits: Tensor = self.pred_obj_score_head(tokens[:, 0].float())
            return logits.squeeze(1)

    def single(self, attended: Attended) -> tuple[Tensor, Tensor]:
        """Draw one mask per prompt, logits (P, 1, 4h, 4w), with its predicted IoU (P, 1).

        Out of training an unstable single mask is replaced by the best of the three others.
        """
        if self.training:
            return super().single(attended)
        logits, quality = self.masks(attended, slice(None)), self.qualities(attended.tokens)
        first = logits[:, 0].flatten(1)
        inside = (first > STABILITY_DELTA).sum(1)
        around = (first > -STABILITY_DELTA).sum(1)
        stable = inside >= STABLE * around
        chosen = torch.where(stable, 0, 1 + quality[:, 1:].argmax(1))
        rows = torch.arange(len(chosen), device=chosen.device)
        return logits[rows, chosen].unsqueeze(1), quality[rows, chosen].unsqueeze(1)

    def _output_tokens(self) -> Tensor:
        """Learned tokens that stand before the prompts, (6, C): object, quality, four masks."""
        return torch.cat([self.obj_score_token.weight, super()._output_tokens()])
