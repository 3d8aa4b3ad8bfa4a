"""Figures of referring segmentation: one expression, one predicted mask, one true mask.

Source: the evaluation that RMSIN (Liu et al., CVPR 2024) took from LAVT and that RS2-SAM2 uses as well: an empty union
has IoU 0, ``Pr@X`` counts IoU **at or above** X, and every expression counts once.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from rsgeoseg.errors import UsageError
from rsgeoseg.evaluate.overlap import as_mask_pair, count_overlap
from rsgeoseg.evaluate.plain import plain_values

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

PRECISION_AT = (0.5, 0.6, 0.7, 0.8, 0.9)
"""IoU at which precision is read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferringFigures:
    """Figures of some expressions, 0-1; NaN where there are none."""

    n: int
    """Expressions."""
    oiou: float
    """Overall IoU: all intersections over all unions, in pixels; NaN where all masks are empty."""
    miou: float
    """Mean of the IoU of each expression; 0 for one whose masks are both empty."""
    pr50: float
    """Share of expressions whose IoU is at least 0.50."""
    pr60: float
    """At 0.60."""
    pr70: float
    """At 0.70."""
    pr80: float
    """At 0.80."""
    pr90: float
    """At 0.90."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferringClassResult(ReferringFigures):
    """Figures of the expressions of one class."""

    name: str
    """Class name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferringResult(ReferringFigures):
    """Figures of a dataset."""

    class_miou: float
    """Mean of the classes' ``miou``, the way PSLG-SAM's paper words its mIoU; NaN without classes."""
    per_class: tuple[ReferringClassResult, ...]
    """In the order of the classes; empty without classes."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values; NaN becomes None."""
        plain: dict[str, Any] = plain_values(asdict(self))
        return plain


class ReferringScore:
    """Collects one expression after the other; keeps two numbers of each.

    Args:
        classes: class names, where every expression has a label.
    """

    def __init__(self, classes: Sequence[str] = ()) -> None:
        self.classes = tuple(classes)
        self._counts: list[tuple[int, int]] = []
        self._labels: list[int] = []

    def add(self, predicted: NDArray[Any], truth: NDArray[Any], label: int | None = None) -> float:
        """Score one expression.

        Args:
            predicted: (H, W) bool or integer, nonzero = object.
            truth: likewise, of the same size.
            label: index into ``classes``; given exactly where there are classes.

        Returns:
            Its IoU.

        Raises:
            UsageError: one is no mask, their sizes differ, or the label does not go with the classes.
        """
        counts = count_overlap(*as_mask_pair(predicted, truth))
        if (label is not None) != bool(self.classes) or (label is not None and not 0 <= label < len(self.classes)):
            msg = f"label {label} does not go with {len(self.classes)} classes; label every expression or none"
            raise UsageError(msg)
        self._counts.append(counts)
        self._labels.append(-1 if label is None else int(label))
        return counts[0] / counts[1] if counts[1] else 0.0

    def result(self) -> ReferringResult:
        """Give the figures of all expressions so far."""
        counts = np.array(self._counts, np.int64).reshape(-1, 2)
        labels = np.array(self._labels, np.int64)
        rows = tuple(
            ReferringClassResult(name=name, **_figures(counts[labels == label]))
            for label, name in enumerate(self.classes)
        )
        known = [row.miou for row in rows if row.n]
        class_miou = float(np.mean(known)) if known else float("nan")
        return ReferringResult(**_figures(counts), class_miou=class_miou, per_class=rows)


def referring_metrics(pairs: Iterable[tuple[NDArray[Any], NDArray[Any]]]) -> ReferringResult:
    """Score pairs of a predicted and a true mask, (H, W) each, one pair per expression.

    Raises:
        UsageError: one is no mask, or the sizes of a pair differ.
    """
    score = ReferringScore()
    for predicted, truth in pairs:
        score.add(predicted, truth)
    return score.result()


def _figures(counts: NDArray[np.int64]) -> dict[str, Any]:
    """Figures of intersections and unions (N, 2)."""
    intersection, union = counts.T
    iou = np.divide(intersection, union, out=np.zeros(len(counts)), where=union > 0)
    total = int(union.sum())
    precision = {f"pr{round(100 * at)}": _mean(iou >= at) for at in PRECISION_AT}
    return {
        "n": len(counts),
        "oiou": int(intersection.sum()) / total if total else float("nan"),
        "miou": _mean(iou),
        **precision,
    }


def _mean(values: NDArray[Any]) -> float:
    return float(values.mean()) if values.size else float("nan")
