"""What lies behind the figures: the comparisons, and the pictures they can be shown on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rsgeoseg.evaluate.cases import image_cases
from rsgeoseg.evaluate.comparison import compare_images
from rsgeoseg.evaluate.confusion import confusion_matrix

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from rsgeoseg.evaluate.comparison import Comparison
    from rsgeoseg.evaluate.confusion import Confusion
    from rsgeoseg.evaluate.worst_cases import Case


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Evidence:
    """What lies behind the figures."""

    title: str
    """What was judged."""
    classes: tuple[str, ...]
    comparisons: Sequence[Comparison]
    """Images, or one map; labels index ``classes``."""
    cases: Callable[[float], list[Case]]
    """Gives the images, or parts of the map, judged at a score."""

    def confusion(self, score: float) -> Confusion:
        """Count which class was taken for which among results with at least this score."""
        return confusion_matrix(self.comparisons, self.classes, score=score)


def image_evidence(
    title: str,
    truth: Mapping[str, Any],
    found: Sequence[Mapping[str, Any]],
    *,
    image_ids: Iterable[int] | None = None,
    picture: Callable[[Mapping[str, Any]], NDArray[np.uint8]] | None = None,
) -> Evidence:
    """Compare COCO detections with annotations.

    Args:
        title: what is judged.
        truth: annotations of ``read_truth``.
        found: detections of ``read_detections``.
        image_ids: only these images; default all.
        picture: gives the pixels (H, W, 3) RGB of an entry of ``truth["images"]``; None = drawn on grey.
    """
    comparisons = compare_images(truth, found, image_ids)
    names = {entry["id"]: str(entry["name"]) for entry in truth["categories"]}
    return Evidence(
        title=title,
        classes=tuple(names[category] for category in sorted(names)),
        comparisons=comparisons,
        cases=lambda score: image_cases(comparisons, truth, found, score=score, picture=picture),
    )
