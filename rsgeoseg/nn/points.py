"""Masks compared at points instead of everywhere (PointRend, as Mask2Former uses it)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F  # noqa: N812  (torch's own name for it)

if TYPE_CHECKING:
    from torch import Tensor


def sample_points(maps: Tensor, points: Tensor) -> Tensor:
    """Read maps at points bilinearly.

    Args:
        maps: (N, H, W) float.
        points: (N, P, 2) or (1, P, 2) x y in [0, 1].

    Returns:
        (N, P).
    """
    grid = (2 * points - 1).expand(maps.shape[0], -1, -1).unsqueeze(2)
    return F.grid_sample(maps.unsqueeze(1), grid.to(maps.dtype), align_corners=False).squeeze(1).squeeze(-1)


def read_masks(masks: Tensor, which: Tensor, points: Tensor) -> Tensor:
    """Read binary masks at the pixel each point falls into.

    Source: Mask2Former reads its masks bilinearly; the pixel itself costs no copy of the full-size masks and differs
    only within half a pixel of a border.

    Args:
        masks: (M, H, W) uint8.
        which: (N,) int64 row of each mask.
        points: (N, P, 2) or (1, P, 2) x y in [0, 1).

    Returns:
        (N, P) float32 in {0, 1}.
    """
    height, width = masks.shape[-2:]
    x = (points[..., 0] * width).long().clamp(max=width - 1)
    y = (points[..., 1] * height).long().clamp(max=height - 1)
    flat = (which.unsqueeze(-1) * height + y) * width + x
    return masks.reshape(-1)[flat].float()


@torch.no_grad()
def uncertain_points(
    logits: Tensor, count: int, *, oversample: float = 3.0, importance: float = 0.75, generator: torch.Generator | None
) -> Tensor:
    """Choose points where the logits are nearest to zero, and some at random.

    Source: PointRend section 3.2; constants of KyanChen/RSPrompter f4e73c3 (oversample 3, importance 0.75).

    Args:
        logits: (N, H, W).
        count: points per mask, P.
        oversample: how many more candidates than points.
        importance: share of the points taken by uncertainty.
        generator: random source; None = torch's global one.

    Returns:
        (N, P, 2) x y in [0, 1].
    """
    masks = logits.shape[0]
    candidates = torch.rand(masks, int(count * oversample), 2, device=logits.device, generator=generator)
    certain = sample_points(logits, candidates).abs()
    important = int(importance * count)
    nearest = certain.topk(important, dim=1, largest=False).indices
    chosen = candidates.gather(1, nearest.unsqueeze(-1).expand(-1, -1, 2))
    rest = torch.rand(masks, count - important, 2, device=logits.device, generator=generator)
    return torch.cat([chosen, rest], dim=1)
