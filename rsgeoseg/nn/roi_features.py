"""The features inside boxes, from the level of a pyramid that fits each box."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torchvision.ops import roi_align

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

FINEST_BOX = 56.0
"""Boxes with a smaller side (root of the area, pixels) than twice this read the finest level."""


def box_levels(boxes: Tensor, levels: int) -> Tensor:
    """Choose a level for each box: one coarser whenever its side doubles.

    Source: FPN Eq. 1, with the constants of mmdet ``SingleRoIExtractor`` (``finest_scale`` 56).

    Args:
        boxes: (R, 4) x0 y0 x1 y1 pixels.
        levels: number of levels.

    Returns:
        (R,) int64, 0 = finest.
    """
    side = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).clamp(min=0).sqrt()
    return torch.log2(side / FINEST_BOX + 1e-6).floor().clamp(0, levels - 1).long()


def roi_features(maps: Sequence[Tensor], boxes: Sequence[Tensor], *, strides: Sequence[int], size: int) -> Tensor:
    """Read the features inside boxes by RoIAlign (aligned, as many samples as the box has cells).

    Args:
        maps: (B, C, h, w) per level, fine to coarse.
        boxes: (R_i, 4) x0 y0 x1 y1 pixels, one tensor per image.
        strides: pixels per cell of each level.
        size: side of the result in samples.

    Returns:
        (R, C, size, size) float32, boxes of all images in a row.
    """
    image = torch.cat([torch.full((len(b), 1), float(i), device=b.device) for i, b in enumerate(boxes)])
    rois = torch.cat([image, torch.cat(list(boxes)).float()], 1)
    level = box_levels(rois[:, 1:], len(maps))
    result = maps[0].new_zeros((len(rois), maps[0].shape[1], size, size), dtype=torch.float32)
    for index, (x, stride) in enumerate(zip(maps, strides, strict=True)):
        here = (level == index).nonzero().squeeze(1)
        if len(here):
            read = roi_align(x.float(), rois[here], size, spatial_scale=1 / stride, sampling_ratio=-1, aligned=True)
            result = result.index_copy(0, here, read)
    return result
