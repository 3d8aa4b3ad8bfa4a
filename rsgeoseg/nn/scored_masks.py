"""Instances from scored masks: of queries (class probability times mask quality), or of masks at chip size."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from rsgeoseg.contract import Instances
from rsgeoseg.nn.masks import crop_masks, tight

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

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
    cropped = crop_masks(masks, valid)
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


def whole_masks(
    found: Iterable[tuple[NDArray[np.bool_], float, int]], valid: NDArray[np.bool_], *, score_threshold: float
) -> Instances:
    """Turn masks of a chip's size into instances, best first; masks without a valid pixel are left out.

    Args:
        found: mask (h, w), score and label of each; taken one by one, so that one mask at a time is whole.
        valid: (h, w) of the chip.
        score_threshold: lowest score.
    """
    kept = []
    for mask, score, label in found:
        inside = mask & valid
        if score >= max(score_threshold, LOWEST_SCORE) and inside.any():
            kept.append((*tight(inside, (0, 0)), score, label))
    kept.sort(key=lambda one: -one[2])
    return Instances(
        boxes=np.array([box for box, *_ in kept], np.int32).reshape(-1, 4),
        masks=[mask for _, mask, *_ in kept],
        scores=np.array([score for *_, score, _ in kept], np.float32),
        labels=np.array([label for *_, label in kept], np.int64),
    )
