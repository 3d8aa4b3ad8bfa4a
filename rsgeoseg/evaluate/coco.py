"""Average precision per image by COCO's rule, computed by pycocotools."""

from __future__ import annotations

import contextlib
import io
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from rsgeoseg.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from rsgeoseg.contract import Instances

_AREAS = ("all", "small", "medium", "large")


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassResult:
    """Figures of one class."""

    name: str
    """Class name."""
    ap: float
    """Mean over IoU 0.50:0.05:0.95; NaN where the truth has no such object."""
    ap50: float
    """At IoU 0.50."""
    n_truth: int
    """Objects in the truth, crowds left out."""
    n_found: int
    """Detections of this class, of any score."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CocoResult:
    """COCO's figures, 0-1; NaN where the truth has no object of that size."""

    ap: float
    """Mean over classes and IoU 0.50:0.05:0.95."""
    ap50: float
    """At IoU 0.50."""
    ap75: float
    """At IoU 0.75."""
    ap_small: float
    """Objects below 32 x 32 pixels."""
    ap_medium: float
    """Objects from 32 x 32 to 96 x 96 pixels."""
    ap_large: float
    """Objects above 96 x 96 pixels."""
    ar: float
    """Average recall with the largest number of detections."""
    per_class: tuple[ClassResult, ...]
    """In the order of category ids."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values; NaN becomes None."""
        return {key: _plain(value) for key, value in asdict(self).items()}


def coco_metrics(
    ground_truth: Mapping[str, Any] | str | Path,
    detections: Sequence[Mapping[str, Any]] | str | Path,
    *,
    iou_type: Literal["segm", "bbox"] = "segm",
    max_detections: tuple[int, ...] = (1, 10, 100),
    image_ids: Iterable[int] | None = None,
) -> CocoResult:
    """Score detections against a COCO annotation set.

    Args:
        ground_truth: annotations, or their JSON file.
        detections: COCO results (``image_id category_id score`` and ``segmentation`` or ``bbox``), or their JSON file.
        iou_type: overlap of masks or of boxes.
        max_detections: ascending; detections per image beyond the last number are ignored, best scores first.
        image_ids: score these images only; default all.

    Raises:
        UsageError: a file cannot be read, or a detection names an image or class that the truth lacks.
    """
    truth = _index(_complete(_load(ground_truth, "ground truth")))
    found = _load(detections, "detections")
    if not isinstance(found, list):
        found = list(found)
    _check_known(truth, found)
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        results = truth.loadRes(found) if found else _index({**truth.dataset, "annotations": []})
        job = COCOeval(truth, results, iou_type)
        job.params.maxDets = list(max_detections)
        if image_ids is not None:
            job.params.imgIds = sorted(image_ids)
        job.evaluate()
        job.accumulate()
    return _summarise(job, truth, results)


def _summarise(job: COCOeval, truth: COCO, results: COCO) -> CocoResult:
    precision, recall = job.eval["precision"], job.eval["recall"]  # (T, R, K, A, M), (T, K, A, M)
    half = int(np.argmin(np.abs(job.params.iouThrs - 0.5)))
    strict = int(np.argmin(np.abs(job.params.iouThrs - 0.75)))
    best = precision[..., -1]
    chosen = set(job.params.imgIds)
    classes = []
    for k, category in enumerate(job.params.catIds):
        mine = [a for a in truth.loadAnns(truth.getAnnIds(catIds=[category])) if a["image_id"] in chosen]
        theirs = [a for a in results.loadAnns(results.getAnnIds(catIds=[category])) if a["image_id"] in chosen]
        classes.append(
            ClassResult(
                name=str(truth.cats[category]["name"]),
                ap=_mean(best[:, :, k, 0]),
                ap50=_mean(best[half, :, k, 0]),
                n_truth=sum(not a["iscrowd"] for a in mine),
                n_found=len(theirs),
            )
        )
    sizes = {f"ap_{name}": _mean(best[..., a]) for a, name in enumerate(_AREAS) if a}
    return CocoResult(
        ap=_mean(best[..., 0]),
        ap50=_mean(best[half, ..., 0]),
        ap75=_mean(best[strict, ..., 0]),
        ar=_mean(recall[..., 0, -1]),
        per_class=tuple(classes),
        **sizes,
    )


def instances_to_coco(
    image_id: int, instances: Instances, *, height: int, width: int, category_ids: Sequence[int]
) -> list[dict[str, Any]]:
    """Turn the objects of one image into COCO results.

    Args:
        image_id: COCO image id.
        instances: objects in that image's pixels.
        height: of the image, pixels.
        width: of the image, pixels.
        category_ids: COCO category id of each label.

    Returns:
        One dict per object; ``segmentation`` is run-length encoded, ready for JSON.

    Raises:
        ValueError: a box reaches outside the image.
    """
    out = []
    for box, mask, score, label in zip(
        instances.boxes.tolist(),
        instances.masks,
        instances.scores.tolist(),
        instances.labels.tolist(),
        strict=True,
    ):
        x0, y0, x1, y1 = box
        if x0 < 0 or y0 < 0 or x1 > width or y1 > height:
            msg = f"box {box} lies outside image {image_id} of {width} x {height} pixels"
            raise ValueError(msg)
        out.append(
            {
                "image_id": image_id,
                "category_id": int(category_ids[label]),
                "score": float(score),
                "bbox": [x0, y0, x1 - x0, y1 - y0],
                "segmentation": encode_mask(mask, (x0, y0), height=height, width=width),
            }
        )
    return out


def encode_mask(mask: NDArray[np.bool_], corner: tuple[int, int], *, height: int, width: int) -> dict[str, Any]:
    """Paste a cropped mask into its image and run-length encode it.

    Args:
        mask: (h, w).
        corner: x0 y0 of the crop in the image.
        height: of the image, pixels.
        width: of the image, pixels.

    Returns:
        COCO's compressed run-length encoding, ``counts`` as str.
    """
    x0, y0 = corner
    canvas = np.zeros((height, width), np.uint8, order="F")
    canvas[y0 : y0 + mask.shape[0], x0 : x0 + mask.shape[1]] = mask
    encoded = rle.encode(canvas)
    return {"size": [height, width], "counts": encoded["counts"].decode("ascii")}


def _load(source: Any, what: str) -> Any:
    if not isinstance(source, str | Path):
        return source
    try:
        return json.loads(Path(source).read_text(encoding="utf-8"))
    except OSError as error:
        msg = f"{source}: cannot read the {what}: {error.strerror}; check the path"
        raise UsageError(msg) from error
    except ValueError as error:
        msg = f"{source}: the {what} are no JSON ({error}); give a COCO file"
        raise UsageError(msg) from error


def _complete(dataset: Mapping[str, Any]) -> dict[str, Any]:
    """Fill what pycocotools needs and annotation tools leave out: ids, ``iscrowd``, ``area``, ``bbox``."""
    missing = [key for key in ("images", "annotations", "categories") if key not in dataset]
    if missing:
        msg = f"the ground truth has no {', '.join(missing)}; give a COCO instance annotation file"
        raise UsageError(msg)
    sizes = {image["id"]: (image.get("height"), image.get("width")) for image in dataset["images"]}
    annotations = []
    for number, given in enumerate(dataset["annotations"], start=1):
        filled = {"id": number, "iscrowd": 0, **given}
        if "segmentation" in filled and ("area" not in filled or "bbox" not in filled):
            encoded = _to_rle(filled["segmentation"], *sizes[filled["image_id"]])
            filled.setdefault("area", float(rle.area(encoded)))
            filled.setdefault("bbox", rle.toBbox(encoded).tolist())
        filled.setdefault("area", float(filled["bbox"][2] * filled["bbox"][3]) if "bbox" in filled else 0.0)
        annotations.append(filled)
    return {"info": {}, **dataset, "annotations": annotations}


def _to_rle(segmentation: Any, height: int, width: int) -> Any:
    if isinstance(segmentation, list):
        return rle.merge(rle.frPyObjects(segmentation, height, width))
    return rle.frPyObjects(segmentation, height, width) if isinstance(segmentation["counts"], list) else segmentation


def _index(dataset: dict[str, Any]) -> COCO:
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = dataset
        coco.createIndex()
    return coco


def _check_known(truth: COCO, found: list[Mapping[str, Any]]) -> None:
    images = {item["image_id"] for item in found} - set(truth.imgs)
    categories = {item["category_id"] for item in found} - set(truth.cats)
    if images or categories:
        what = f"image {min(images)}" if images else f"category {min(categories)}"
        msg = f"the detections name {what}, which the ground truth does not have; use the same annotation file"
        raise UsageError(msg)


def _mean(values: NDArray[np.float64]) -> float:
    """Average what pycocotools could measure; it marks the rest by -1."""
    known = values[values > -1]
    return float(known.mean()) if known.size else float("nan")


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and np.isnan(value) else value
