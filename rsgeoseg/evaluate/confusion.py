"""Which class was taken for which: true classes down, found classes across, and what was missed or made up."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from rsgeoseg.evaluate.comparison import MATCH_IOU

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from rsgeoseg.evaluate.comparison import Comparison


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Confusion:
    """Pairs of true and found objects by class."""

    classes: tuple[str, ...]
    """K class names."""
    counts: NDArray[np.int64]
    """(K + 1, K + 1) objects. Row = true class, the last row: nothing is there (false alarms). Column = found class,
    the last column: nothing was found (missed). The last corner is 0."""
    score: float
    """Results with lower scores are left out."""
    iou: float
    """Smallest IoU of a pair; the class does not matter for being one."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values: ``counts`` by rows."""
        return {
            "rows": [*self.classes, "false alarm"],
            "columns": [*self.classes, "missed"],
            "counts": self.counts.tolist(),
            "score": self.score,
            "iou": self.iou,
        }


def confusion_matrix(
    comparisons: Iterable[Comparison], classes: Sequence[str], *, score: float, iou: float = MATCH_IOU
) -> Confusion:
    """Count which class was taken for which.

    Results, best score first, take the free true object that they overlap most, of whatever class.

    Args:
        comparisons: images or a map; labels index ``classes``.
        classes: class names.
        score: results below are left out.
        iou: smallest IoU of a pair.
    """
    nothing = len(classes)
    counts = np.zeros((nothing + 1, nothing + 1), np.int64)
    for each in comparisons:
        partner = each.match(iou, class_aware=False)
        counted = each.scores >= score
        pairs = counted & (partner >= 0)
        np.add.at(counts, (each.true_labels[partner[pairs]], each.found_labels[pairs]), 1)
        false = counted & (partner < 0) & (each.in_crowd < iou)
        counts[nothing] += np.bincount(each.found_labels[false], minlength=nothing + 1)
        missed = np.setdiff1d(np.arange(len(each.true_labels)), partner[pairs])
        counts[:, nothing] += np.bincount(each.true_labels[missed], minlength=nothing + 1)
    return Confusion(classes=tuple(classes), counts=counts, score=score, iou=iou)
