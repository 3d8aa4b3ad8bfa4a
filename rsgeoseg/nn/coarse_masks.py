"""Small masks from the features inside boxes, and their place in the image."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812  (torch's own name for it)
from torchvision.ops import roi_align

if TYPE_CHECKING:
    from torch import Tensor

OUTSIDE = -4.0
"""Logit outside a box: a probability of 0.018, low but not beyond what a decoder can correct."""


class CoarseMaskHead(nn.Sequential):
    """(R, C, s, s) features to (R, 1, 2s, 2s) logits: Mask R-CNN's head with fewer layers, one mask for all classes."""

    def __init__(self, channels: int, layers: int = 2) -> None:
        convs = [
            part for _ in range(layers) for part in (nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU(inplace=True))
        ]
        super().__init__(
            *convs,
            nn.ConvTranspose2d(channels, channels // 2, 2, stride=2),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels // 2, 1, 1),
        )


def place_logits(logits: Tensor, boxes: Tensor, shape: tuple[int, int], *, stride: int) -> Tensor:
    """Put masks of boxes where the boxes are.

    Args:
        logits: (R, s, s), s x s samples over each box.
        boxes: (R, 4) x0 y0 x1 y1 pixels.
        shape: h, w of the result in cells.
        stride: pixels per cell of the result.

    Returns:
        (R, h, w): logits read bilinearly at the cells' centres, ``OUTSIDE`` away from the box.
    """
    h, w = shape
    xs = (torch.arange(w, device=boxes.device) + 0.5) * stride
    ys = (torch.arange(h, device=boxes.device) + 0.5) * stride
    sides = (boxes[:, 2:] - boxes[:, :2]).clamp(min=1.0)
    u = 2 * (xs - boxes[:, 0:1]) / sides[:, 0:1] - 1
    v = 2 * (ys - boxes[:, 1:2]) / sides[:, 1:2] - 1
    grid = torch.stack([u[:, None, :].expand(-1, h, -1), v[:, :, None].expand(-1, -1, w)], -1)
    placed = F.grid_sample((logits.float() - OUTSIDE).unsqueeze(1), grid, align_corners=False)
    return placed.squeeze(1) + OUTSIDE


def masks_in_boxes(masks: Tensor, which: Tensor, boxes: Tensor, size: int) -> Tensor:
    """Cut binary masks out by boxes and resize them, as targets of a mask head.

    Args:
        masks: (M, H, W) uint8.
        which: (R,) int64 row of each box's mask.
        boxes: (R, 4) x0 y0 x1 y1 pixels.
        size: side of the result.

    Returns:
        (R, size, size) float32 in {0, 1}.
    """
    rois = torch.cat([which[:, None].to(boxes.dtype), boxes], 1)
    cut: Tensor = roi_align(masks[:, None].float(), rois, size, sampling_ratio=2, aligned=True)
    return (cut[:, 0] >= 0.5).float()
