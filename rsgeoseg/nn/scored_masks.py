"""Instances from queries: class probability times mask quality, the best pairs of query and class."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from rsgeoseg.contract import Instances
from rsgeoseg.nn.masks import crop_mask

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from torch import Tensor

LOWEST_SCORE = 1e-6
"""Pairs that score less are never kept: an empty mask scores zero."""


def scored_masks(
    masks: Sequence[Tensor], probability: Tensor, valid: NDArray[np.bool_], *, score_threshold: float, most: int
) -> Instances:
    """Turn the masks of one chip into instances, best first.

    Source: Mask2Former's inference as mmdet's ``MaskFormerFusionHead`` does it: score = class probability times the
    mean mask probability over the mask's pixels; no NMS.

    Args:
        masks: P of (h/4, w/4) logits, the chip's padding included.
        probability: (P, C) class probabilities.
        valid: (h, w) of the chip.
        score_threshold: lowest score.
        most: most instances.
    """
    cropped = [crop_mask(logits, valid) for logits in masks]
    quality = np.array([quality for *_, quality in cropped], np.float32).reshape(-1, 1)
    scores = probability.float().cpu().numpy() * quality
    rows, columns = np.nonzero(scores >= max(score_threshold, LOWEST_SCORE))
    order = np.argsort(-scores[rows, columns], kind="stable")[:most]
    rows, columns = rows[order], columns[order]
    return Instances(
        boxes=np.array([cropped[i][0] for i in rows], np.int32).reshape(-1, 4),
        masks=[cropped[i][1] for i in rows],
        scores=scores[rows, columns].astype(np.float32),
        labels=columns.astype(np.int64),
    )
