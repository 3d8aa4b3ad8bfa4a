"""What was found beside what is there: one image or one map, ready for a confusion matrix, curves and pictures."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from pycocotools import mask as rle

from rsgeoseg.evaluate.coco import to_rle
from rsgeoseg.evaluate.matching import Overlaps, match_greedy
from rsgeoseg.evaluate.polygons import measure_overlaps

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from rsgeoseg.evaluate.map_objects import MapObjects

MATCH_IOU = 0.5
"""IoU from which a result is its true object."""
_MAX_DETECTIONS = 100
"""Detections per image and class that COCO's rule looks at."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Comparison:
    """True and found objects of one image or map."""

    name: str
    """File name."""
    true_labels: NDArray[np.int64]
    """(N,) index into the classes."""
    found_labels: NDArray[np.int64]
    """(M,) index into the classes, best score first."""
    scores: NDArray[np.float64]
    """(M,) descending."""
    overlaps: Overlaps
    """All pairs, whatever their classes."""
    in_crowd: NDArray[np.float64]
    """(M,) largest share of a result that lies in a crowd of its class: from the IoU asked of a pair on, results
    without a partner do not count."""
    true_rows: NDArray[np.int64]
    """(N,) place of each true object in what it was read from."""
    found_rows: NDArray[np.int64]
    """(M,) place of each result in what it was read from."""

    def match(self, iou: float = MATCH_IOU, *, class_aware: bool = True) -> NDArray[np.int64]:
        """Match results with true objects.

        Returns:
            (M,) index of the true object, -1 = none.
        """
        pairs = self.overlaps
        if class_aware:
            pairs = pairs.select(self.found_labels[pairs.found] == self.true_labels[pairs.truth])
        return match_greedy(pairs, len(self.true_labels), len(self.found_labels), iou)

    def judge(self, score: float) -> Outcome:
        """Tell hits, misses and false alarms among results with at least this score; the class must be right."""
        partner = self.match()
        counted = self.scores >= score
        hits = np.flatnonzero((partner >= 0) & counted)
        missed = np.setdiff1d(np.arange(len(self.true_labels)), partner[hits])
        return Outcome(hits, missed, np.flatnonzero((partner < 0) & counted & (self.in_crowd < MATCH_IOU)))


@dataclass(frozen=True, slots=True, eq=False)
class Outcome:
    """What became of the objects of a comparison."""

    hits: NDArray[np.int64]
    """Indices of results with a partner."""
    missed: NDArray[np.int64]
    """Indices of true objects without one."""
    false: NDArray[np.int64]
    """Indices of results without one."""


def compare_images(
    truth: Mapping[str, Any], found: Sequence[Mapping[str, Any]], image_ids: Iterable[int] | None = None
) -> list[Comparison]:
    """Compare COCO detections with annotations, image by image.

    Masks are compared where all have them, else boxes. As in COCO's rule, the best 100 detections of each class in an
    image count.

    Args:
        truth: complete annotations, as ``read_truth`` gives them.
        found: detections, as ``read_detections`` gives them.
        image_ids: only these images; default all.

    Returns:
        One comparison per image, in the order of the image ids; labels are positions in the sorted category ids, rows
        are positions in ``truth["annotations"]`` and ``found``.
    """
    label_of = {category: i for i, category in enumerate(sorted(entry["id"] for entry in truth["categories"]))}
    by_masks = all(item.get("segmentation") for item in (*truth["annotations"], *found))
    images = {image["id"]: image for image in truth["images"]}
    true_of: dict[int, list[int]] = {image_id: [] for image_id in images}
    found_of: dict[int, list[int]] = {image_id: [] for image_id in images}
    for row, item in enumerate(truth["annotations"]):
        true_of[item["image_id"]].append(row)
    for row, item in enumerate(found):
        found_of[item["image_id"]].append(row)
    chosen = sorted(images) if image_ids is None else sorted(set(image_ids))
    return [
        _compare_image(
            images[image_id],
            [(row, truth["annotations"][row]) for row in true_of[image_id]],
            [(row, found[row]) for row in found_of[image_id]],
            label_of,
            by_masks=by_masks,
        )
        for image_id in chosen
    ]


def compare_map(name: str, truth: MapObjects, result: MapObjects, classes: Sequence[str]) -> Comparison:
    """Compare the objects of a map.

    Args:
        name: of the map.
        truth: true objects, from ``pair_maps``.
        result: found objects, from ``pair_maps``.
        classes: all class names of both.
    """
    assert truth.classes is not None
    assert result.classes is not None
    label_of = {name: i for i, name in enumerate(classes)}
    order = np.argsort(-result.scores, kind="mergesort")
    return Comparison(
        name=name,
        true_labels=np.array([label_of[c] for c in truth.classes.tolist()], np.int64),
        found_labels=np.array([label_of[c] for c in result.classes[order].tolist()], np.int64),
        scores=result.scores[order],
        overlaps=measure_overlaps(truth.shapes, result.shapes[order]),
        in_crowd=np.zeros(len(result)),
        true_rows=np.arange(len(truth)),
        found_rows=order,
    )


def _compare_image(
    image: Mapping[str, Any],
    truth: list[tuple[int, Mapping[str, Any]]],
    found: list[tuple[int, Mapping[str, Any]]],
    label_of: Mapping[int, int],
    *,
    by_masks: bool,
) -> Comparison:
    found = _best(found)
    crowds = [item for _, item in truth if item["iscrowd"]]
    truth = [(row, item) for row, item in truth if not item["iscrowd"]]
    true_items, found_items = [item for _, item in truth], [item for _, item in found]
    iou, inside = (_ious(found_items, true_items, image, crowd=crowd, by_masks=by_masks) for crowd in (0, 1))
    which, of = np.nonzero(iou > 0)
    in_crowd = _ious(found_items, crowds, image, crowd=1, by_masks=by_masks)
    labels = [np.array([label_of[item["category_id"]] for item in items], np.int64) for items in (found_items, crowds)]
    own = labels[0][:, None] == labels[1]
    return Comparison(
        name=str(image.get("file_name", f"image {image['id']}")),
        true_labels=np.array([label_of[item["category_id"]] for item in true_items], np.int64),
        found_labels=labels[0],
        scores=np.array([item["score"] for item in found_items], np.float64),
        overlaps=Overlaps.sort(which, of, iou[which, of], inside[which, of]),
        in_crowd=np.where(own, in_crowd, 0).max(axis=1, initial=0),
        true_rows=np.array([row for row, _ in truth], np.int64),
        found_rows=np.array([row for row, _ in found], np.int64),
    )


def _best(found: list[tuple[int, Mapping[str, Any]]]) -> list[tuple[int, Mapping[str, Any]]]:
    """Sort by score, and keep so many of each class."""
    seen: Counter[int] = Counter()
    kept = []
    for row, item in sorted(found, key=lambda pair: -pair[1]["score"]):
        seen[item["category_id"]] += 1
        if seen[item["category_id"]] <= _MAX_DETECTIONS:
            kept.append((row, item))
    return kept


def _ious(
    found: Sequence[Mapping[str, Any]],
    truth: Sequence[Mapping[str, Any]],
    image: Mapping[str, Any],
    *,
    crowd: int,
    by_masks: bool,
) -> NDArray[np.float64]:
    """IoU (M, N), or, with ``crowd`` 1, the share of each result that lies in each true object."""
    if not found or not truth:
        return np.zeros((len(found), len(truth)))
    if by_masks:
        one, other = ([to_rle(i["segmentation"], image["height"], image["width"]) for i in s] for s in (found, truth))
    else:
        one, other = ([i["bbox"] for i in s] for s in (found, truth))
    return np.asarray(rle.iou(one, other, [crowd] * len(truth)), np.float64).reshape(len(found), len(truth))
