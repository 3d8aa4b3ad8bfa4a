"""A learned ellipse around each query's centre: the term that keeps equal-looking objects apart.

Two equal aeroplanes have equal features, so a dot product alone gives both one mask until positions are learned; a term
that falls with the distance parts them from the start. Ours, not the paper's (``docs/decisions/0002``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor


def ellipse_logits(ellipses: Tensor, points: Tensor, sides: Tensor, xs: Tensor, ys: Tensor) -> Tensor:
    """Logits that fall with the elliptic distance from a centre: positive inside, slowly ever more negative outside.

    Args:
        ellipses: (..., 5) two log-scales around a shear, and a shift of the centre in half sides.
        points: (..., 2) x y in pixels.
        sides: (...) reference side in pixels.
        xs: where to evaluate, pixels; broadcast against (..., 1), so (P,) for points or (w,) for columns.
        ys: likewise; (P,) for points or (h, 1) for rows.

    Returns:
        (..., P) or (..., h, w) float32.
    """
    lead = (..., *(None,) * max(xs.ndim, ys.ndim))
    half = (sides / 2)[lead]
    dx = xs - (points[..., 0][lead] + half * ellipses[..., 3].tanh()[lead])
    dy = ys - (points[..., 1][lead] + half * ellipses[..., 4].tanh()[lead])
    along_x = ellipses[..., 0].clamp(-4, 4).exp()[lead] / half
    along_y = ellipses[..., 2].clamp(-4, 4).exp()[lead] / half
    shear = ellipses[..., 1][lead] / half
    distance = (along_x * dx + shear * dy).square() + (along_y * dy).square()
    return 3 * (1 - torch.log1p(distance))


def ellipse_map(ellipses: Tensor, points: Tensor, sides: Tensor, *, shape: tuple[int, int], stride: float) -> Tensor:
    """``ellipse_logits`` at the cells of a map (h, w) with ``stride`` pixels per cell: (..., h, w)."""
    h, w = shape
    xs = (torch.arange(w, device=points.device) + 0.5) * stride
    ys = (torch.arange(h, device=points.device) + 0.5) * stride
    return ellipse_logits(ellipses, points, sides, xs[None, :], ys[:, None])
