"""Which result is which true object, and how precision falls as recall grows: COCO's rules, for masks and for polygons.

Source: the matching and interpolation rules of the COCO evaluation (Lin et al., Microsoft COCO, 2014): greedy by score,
IoU thresholds 0.50:0.05:0.95, precision made monotone and read at 101 recalls.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

THRESHOLDS = np.linspace(0.5, 0.95, 10)
"""IoU thresholds."""
RECALLS = np.linspace(0.0, 1.0, 101)
"""Recalls at which precision is read."""


@dataclass(frozen=True, slots=True, eq=False)
class Overlaps:
    """Pairs of a result and a true object that share area, sorted by result, then by true object."""

    found: NDArray[np.int64]
    """(P,) index of the result, 0 = best score."""
    truth: NDArray[np.int64]
    """(P,) index of the true object."""
    iou: NDArray[np.float64]
    """(P,) intersection over union."""
    inside: NDArray[np.float64]
    """(P,) share of the result's area that lies in the true object."""

    @classmethod
    def sort(
        cls,
        found: NDArray[np.int64],
        truth: NDArray[np.int64],
        iou: NDArray[np.float64],
        inside: NDArray[np.float64],
    ) -> Overlaps:
        """Bring pairs into order and leave out those that share nothing."""
        order = np.lexsort((truth, found))
        order = order[iou[order] > 0]
        return cls(found[order], truth[order], iou[order], inside[order])

    def select(self, pairs: NDArray[np.bool_]) -> Overlaps:
        """Keep some of the pairs (P,)."""
        return Overlaps(self.found[pairs], self.truth[pairs], self.iou[pairs], self.inside[pairs])


def match_greedy(
    overlaps: Overlaps, n_truth: int, n_found: int, threshold: float, spare: NDArray[np.bool_] | None = None
) -> NDArray[np.int64]:
    """Give each result, best score first, the free true object that it overlaps most.

    Args:
        overlaps: pairs.
        n_truth: true objects.
        n_found: results.
        threshold: smallest IoU of a pair.
        spare: (n_truth,) True for objects that do not count and are taken only where no other will do; default none.

    Returns:
        (n_found,) index of the true object, -1 = none.
    """
    spare = np.zeros(n_truth, bool) if spare is None else spare
    partner = np.full(n_found, -1, np.int64)
    taken = np.zeros(n_truth, bool)
    best = np.zeros(n_found)
    order = np.lexsort((overlaps.truth, spare[overlaps.truth], overlaps.found))
    pairs = (overlaps.found[order].tolist(), overlaps.truth[order].tolist(), overlaps.iou[order].tolist())
    for f, t, iou in zip(*pairs, strict=True):
        # A result's pairs follow each other, so its partner is final only when the next result begins.
        if iou < min(threshold, 1 - 1e-10) or iou < best[f] or taken[t]:
            continue
        if partner[f] >= 0:
            if spare[t] and not spare[partner[f]]:
                continue
            taken[partner[f]] = False
        partner[f], best[f], taken[t] = t, iou, True
    return partner


def precision_curve(hit: NDArray[np.bool_], n_truth: int) -> NDArray[np.float64]:
    """Read interpolated precision at 101 recalls.

    Args:
        hit: (M,) True where a result has a partner, best score first.
        n_truth: true objects.

    Returns:
        (101,) 0-1; NaN where there is no true object.
    """
    if not n_truth:
        return np.full(len(RECALLS), math.nan)
    if not len(hit):
        return np.zeros(len(RECALLS))
    true_positive = np.cumsum(hit)
    recall = true_positive / n_truth
    precision = true_positive / np.arange(1, len(hit) + 1)
    monotone = np.maximum.accumulate(precision[::-1])[::-1]
    at = np.searchsorted(recall, RECALLS, side="left")
    return np.asarray(np.where(at < len(hit), monotone[np.minimum(at, len(hit) - 1)], 0.0), np.float64)


def average_precision(hit: NDArray[np.bool_], n_truth: int) -> float:
    """Area under the interpolated precision-recall curve, 0-1; NaN where there is no true object.

    Args:
        hit: (M,) True where a result has a partner, best score first.
        n_truth: true objects.
    """
    return float(precision_curve(hit, n_truth).mean())
