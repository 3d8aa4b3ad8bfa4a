"""Optimal one-to-one matching of predictions and objects (RSPrompter paper Eq. 8; DETR's Hungarian matching)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch.nn import functional as F  # noqa: N812  (torch's own name for it)

if TYPE_CHECKING:
    from torch import Tensor

CLASS_COST, MASK_COST, DICE_COST = 2.0, 5.0, 5.0
"""Weights of KyanChen/RSPrompter f4e73c3; the paper adds the terms without naming any."""


@torch.no_grad()
def matching_cost(class_logits: Tensor, predicted: Tensor, labels: Tensor, truth: Tensor) -> Tensor:
    """Cost of giving each object to each query.

    Args:
        class_logits: (Q, C + 1), the last one background.
        predicted: (Q, P) mask logits at points.
        labels: (N,) int64.
        truth: (N, P) masks in [0, 1] at the same points.

    Returns:
        (Q, N) float32.
    """
    probability = class_logits.float().softmax(-1)[:, labels]
    bce = (F.softplus(-predicted) @ truth.T + F.softplus(predicted) @ (1 - truth).T) / predicted.shape[1]
    soft = predicted.sigmoid()
    dice = 1 - (2 * soft @ truth.T + 1) / (soft.sum(-1)[:, None] + truth.sum(-1)[None] + 1)
    return MASK_COST * bce + DICE_COST * dice - CLASS_COST * probability


def match(cost: Tensor) -> tuple[Tensor, Tensor]:
    """Solve the assignment.

    Args:
        cost: (Q, N); not finite entries count as very dear.

    Returns:
        Query indices and object indices, (min(Q, N),) int64 each, on the cost's device.
    """
    table = np.nan_to_num(cost.cpu().numpy(), nan=1e6, posinf=1e6, neginf=-1e6)
    queries, objects = linear_sum_assignment(table)
    return torch.as_tensor(queries, device=cost.device), torch.as_tensor(objects, device=cost.device)
