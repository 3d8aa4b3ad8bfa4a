"""Precision at every recall, class by class."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from rsgeoseg.evaluate.matching import precision_curve

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from rsgeoseg.evaluate.comparison import Comparison


def precision_recall(
    comparisons: Iterable[Comparison], classes: Sequence[str], *, iou: float
) -> dict[str, NDArray[np.float64]]:
    """Read each class's precision at the recalls 0, 0.01, ... 1.

    Args:
        comparisons: images or a map; labels index ``classes``.
        classes: class names.
        iou: smallest IoU of a pair.

    Returns:
        By class name: (101,) 0-1; the mean is COCO's AP at that IoU. NaN where the truth has no such object.
    """
    hits, scores, labels = [np.zeros(0, bool)], [np.zeros(0)], [np.zeros(0, np.int64)]
    n_truth = np.zeros(len(classes), np.int64)
    for each in comparisons:
        partner = each.match(iou)
        counts = (partner >= 0) | (each.in_crowd < iou)
        hits.append(partner[counts] >= 0)
        scores.append(each.scores[counts])
        labels.append(each.found_labels[counts])
        n_truth += np.bincount(each.true_labels, minlength=len(classes))
    order = np.argsort(-np.concatenate(scores), kind="mergesort")
    hit, label = np.concatenate(hits)[order], np.concatenate(labels)[order]
    return {name: precision_curve(hit[label == i], int(n_truth[i])) for i, name in enumerate(classes)}
