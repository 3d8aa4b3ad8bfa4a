"""Joining rules, ours and peers', on the same detections.

Each rule is a function that prepares the tool's own form of the detections and gives back the work to be measured and
the export of its result to polygons in scene pixels (`isolated.Work`). Masks reach every tool along their pixel edges;
what a tool cannot hold (SAHI: holes) is lost on the way in. Thresholds are the tool's defaults unless the name says
otherwise; all rules compare within a class.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import shapely
from detections import Detections, Joined, outline

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from isolated import Work
    from numpy.typing import NDArray

    from rsgeoseg.contract import Instances
    from rsgeoseg.geo.stitch import StitchedObject
    from rsgeoseg.geo.windows import Window


def prepare(name: str, path: Path) -> Work:
    """Load detections and make a rule ready for them."""
    return RULES[name](Detections.load(path))


def prepare_all(name: str, paths: list[Path]) -> Work:
    """Make a rule ready for several sets of detections, one after the other."""
    works = [prepare(name, path) for path in paths]
    return (
        lambda: [join() for join, _ in works],
        lambda results: [export(result) for (_, export), result in zip(works, results, strict=True)],
    )


def _ours(detections: Detections) -> Work:
    from rsgeoseg.geo.stitch import Stitcher

    def join() -> list[StitchedObject]:
        stitcher, objects = Stitcher(detections.plan), []
        for window, instances in zip(detections.plan.windows, detections.found, strict=True):
            objects += stitcher.add(window, instances)
        return objects + stitcher.finish()

    def export(objects: list[StitchedObject]) -> Joined:
        placed = [((item.box.x0, item.box.y0), item.mask) for item in objects]
        return Joined(
            shapes=outline(placed, detections.plan.height, detections.plan.width),
            labels=np.array([item.label for item in objects], np.int64),
            scores=np.array([item.score for item in objects], np.float64),
        )

    return join, export


def _no_joining(detections: Detections) -> Work:
    flat = _Flat(detections)
    return lambda: np.arange(len(flat.labels)), flat.take


def _box_nms(detections: Detections) -> Work:
    import torch
    from torchvision.ops import batched_nms

    flat = _Flat(detections)
    boxes, scores = torch.from_numpy(flat.boxes.astype(np.float64)), torch.from_numpy(flat.scores)
    labels = torch.from_numpy(flat.labels)
    batched_nms(boxes[:2], scores[:2], labels[:2], 0.5)  # likewise
    return lambda: batched_nms(boxes, scores, labels, 0.5).numpy(), flat.take


def _sahi(detections: Detections, kind: str, metric: str) -> Work:
    from sahi.postprocess import combine
    from sahi.prediction import ObjectPrediction

    flat = _Flat(detections)
    shape = [detections.plan.height, detections.plan.width]
    predictions = [
        ObjectPrediction(
            bbox=box, category_id=label, category_name=detections.classes[label], score=score,
            segmentation=[ring.ravel().tolist() for ring in _outer_rings(polygon)], full_shape=shape,
        )
        for box, label, score, polygon in zip(
            flat.boxes.tolist(), flat.labels.tolist(), flat.scores.tolist(), flat.shapes, strict=True
        )
    ]  # fmt: skip
    rule = getattr(combine, kind)(match_threshold=0.5, match_metric=metric, class_agnostic=False)
    rule(predictions[:2])  # what is loaded on first use is not the rule's

    def export(found: list[ObjectPrediction]) -> Joined:
        return Joined(
            shapes=np.array([from_rings(item.mask.segmentation) for item in found] + [None], object)[:-1],
            labels=np.array([item.category.id for item in found], np.int64),
            scores=np.array([item.score.value for item in found], np.float64),
        )

    return lambda: rule(predictions), export


def _supervision(detections: Detections, kind: str, metric: str) -> Work:
    import supervision

    scene = (detections.plan.height, detections.plan.width)
    every = [
        _to_supervision(window, instances, scene)
        for window, instances in zip(detections.plan.windows, detections.found, strict=True)
        if len(instances)
    ]
    merged = supervision.Detections.merge(every)
    how = supervision.detection.utils.iou_and_nms.OverlapMetric(metric)

    def export(found: supervision.Detections) -> Joined:
        placed = [
            ((int(x), int(y)), np.asarray(found.mask.crop(i)))
            for i, (x, y) in enumerate(np.asarray(found.mask.offsets))
        ]
        return Joined(shapes=outline(placed, *scene), labels=found.class_id.astype(np.int64), scores=found.confidence)

    return lambda: getattr(merged, kind)(threshold=0.5, overlap_metric=how), export


RULES: dict[str, Callable[[Detections], Work]] = {
    "rsgeoseg": _ours,
    "SAHI GREEDYNMM IOS .5 (default)": lambda d: _sahi(d, "GreedyNMMPostprocess", "IOS"),
    "SAHI NMM IOS .5": lambda d: _sahi(d, "NMMPostprocess", "IOS"),
    "SAHI NMS IOU .5": lambda d: _sahi(d, "NMSPostprocess", "IOU"),
    "supervision mask NMS IOU .5 (default)": lambda d: _supervision(d, "with_nms", "IOU"),
    "supervision mask NMM IOS .5": lambda d: _supervision(d, "with_nmm", "IOS"),
    "box NMS IOU .5": _box_nms,
    "no joining": _no_joining,
}
"""By the name in the tables."""


class _Flat:
    """All masks of all chips, in scene pixels."""

    def __init__(self, detections: Detections) -> None:
        pairs = list(zip(detections.plan.windows, detections.found, strict=True))
        self.boxes = np.concatenate([_scene_boxes(*pair) for pair in pairs])
        self.labels = np.concatenate([instances.labels for _, instances in pairs])
        self.scores = np.concatenate([instances.scores for _, instances in pairs]).astype(np.float64)
        self.shapes = outline(_placed(pairs), detections.plan.height, detections.plan.width)

    def take(self, index: NDArray[np.int64]) -> Joined:
        """Give some of them as a result."""
        return Joined(shapes=self.shapes[index], labels=self.labels[index], scores=self.scores[index])


def _scene_boxes(window: Window, instances: Instances) -> NDArray[np.int64]:
    return instances.boxes + np.tile([window.read.x0, window.read.y0], 2)


def _placed(pairs: list[tuple[Window, Instances]]) -> Iterator[tuple[tuple[int, int], NDArray[np.bool_]]]:
    for window, instances in pairs:
        corners = map(tuple, _scene_boxes(window, instances)[:, :2].tolist())
        yield from zip(corners, instances.masks, strict=True)


def _outer_rings(shape: shapely.Geometry) -> list[NDArray[np.float64]]:
    return [shapely.get_coordinates(part.exterior) for part in shapely.get_parts(shape)]


def from_rings(rings: list[list[float]]) -> shapely.Geometry:
    """Turn COCO rings (outer rings only) into one valid shape."""
    points = (np.reshape(ring, (-1, 2)) for ring in rings)
    return shapely.union_all([shapely.make_valid(shapely.Polygon(ring)) for ring in points if len(ring) > 2])


def _to_supervision(window: Window, instances: Instances, scene: tuple[int, int]) -> object:
    """Give a chip's instances with run-length masks cut to their boxes: the leanest form that supervision has."""
    import supervision
    from supervision.detection.compact_mask import CompactMask

    dense = np.zeros((len(instances), window.read.height, window.read.width), np.bool_)
    for canvas, (x0, y0, x1, y1), mask in zip(dense, instances.boxes.tolist(), instances.masks, strict=True):
        canvas[y0:y1, x0:x1] = mask
    inclusive = instances.boxes - np.array([0, 0, 1, 1])
    compact = CompactMask.from_dense(dense, inclusive, image_shape=dense.shape[1:])
    return supervision.Detections(
        xyxy=_scene_boxes(window, instances).astype(np.float64) - np.array([0, 0, 1, 1]),
        mask=compact.with_offset(dx=window.read.x0, dy=window.read.y0, new_image_shape=scene),
        confidence=instances.scores.astype(np.float64),
        class_id=instances.labels.astype(int),
    )
