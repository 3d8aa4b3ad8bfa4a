"""Losses that several methods share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F  # noqa: N812  (torch's own name for it)

if TYPE_CHECKING:
    from torch import Tensor


def dice_loss(logits: Tensor, truth: Tensor) -> Tensor:
    """One minus the soft Dice coefficient, per mask.

    Source: mmdet ``DiceLoss`` with ``naive_dice`` and eps 1.

    Args:
        logits: (N, P).
        truth: (N, P) in [0, 1].

    Returns:
        (N,).
    """
    soft = logits.sigmoid()
    return 1 - (2 * (soft * truth).sum(-1) + 1) / (soft.sum(-1) + truth.sum(-1) + 1)


def class_loss(logits: Tensor, targets: Tensor, *, background_weight: float) -> Tensor:
    """Cross-entropy over C + 1 classes, the last one background, averaged by the sum of the class weights.

    Args:
        logits: (N, C + 1).
        targets: (N,) int64; C = background, -1 = ignored.
        background_weight: weight of the background class.
    """
    weights = torch.ones(logits.shape[-1], device=logits.device)
    weights[-1] = background_weight
    return F.cross_entropy(logits.float(), targets, weight=weights, ignore_index=-1)


def centre_focal_loss(logits: Tensor, heat: Tensor) -> Tensor:
    """Penalty-reduced focal loss of a centre map, summed.

    Source: CornerNet Eq. 1, CenterNet Eq. 1 (alpha 2, beta 4).

    Args:
        logits: any shape.
        heat: same shape, 1 at centres, falling around them.
    """
    logits = logits.float()
    probability = logits.sigmoid()
    is_centre = heat == 1
    positive = F.logsigmoid(logits) * (1 - probability).square()
    negative = F.logsigmoid(-logits) * probability.square() * (1 - heat).pow(4)
    return -torch.where(is_centre, positive, negative).sum()
