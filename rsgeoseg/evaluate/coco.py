"""Average precision per image by COCO's rule, computed by pycocotools."""

from __future__ import annotations

import contextlib
import io
import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from rsgeoseg.errors import UsageError
from rsgeoseg.evaluate.class_names import plain_class
from rsgeoseg.evaluate.plain import plain_values

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from rsgeoseg.contract import Instances

logger = logging.getLogger(__name__)

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
        plain: dict[str, Any] = plain_values(asdict(self))
        return plain


@dataclass(frozen=True, slots=True, kw_only=True)
class CocoScores:
    """Figures of the same detections by the overlap of masks and by that of boxes."""

    masks: CocoResult | None
    """None where the truth or the detections have boxes only."""
    boxes: CocoResult

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values: those of the masks (of the boxes, without masks; ``iou_type``), and ``boxes``."""
        kind = "segm" if self.masks else "bbox"
        return {**(self.masks or self.boxes).to_dict(), "iou_type": kind, "boxes": self.boxes.to_dict()}

    def by_kind(self) -> dict[str, Any]:
        """Return plain JSON values as ``masks`` and ``boxes``."""
        return {"masks": self.masks.to_dict() if self.masks else None, "boxes": self.boxes.to_dict()}


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
    truth = _index(read_truth(ground_truth))
    found = read_detections(detections, truth.dataset)
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        results = truth.loadRes(found) if found else _index({**truth.dataset, "annotations": []})
        job = COCOeval(truth, results, iou_type)
        job.params.maxDets = list(max_detections)
        if image_ids is not None:
            job.params.imgIds = sorted(image_ids)
        job.evaluate()
        job.accumulate()
    return _summarise(job, truth, results)


def coco_scores(
    ground_truth: Mapping[str, Any] | str | Path,
    detections: Sequence[Mapping[str, Any]] | str | Path,
    *,
    image_ids: Iterable[int] | None = None,
) -> CocoScores:
    """Score detections by masks and by boxes.

    As with pycocotools, the size of a detection, which decides whether a false alarm counts as small, medium or large,
    is that of its box where it has one, else that of its mask.

    Args:
        ground_truth: annotations, or their JSON file.
        detections: COCO results, or their JSON file.
        image_ids: score these images only; default all.

    Raises:
        UsageError: as ``coco_metrics``.
    """
    truth = read_truth(ground_truth)
    found = read_detections(detections, truth)
    images = None if image_ids is None else list(image_ids)
    masks = None
    if all(item.get("segmentation") for item in (*truth["annotations"], *found)):
        masks = coco_metrics(truth, found, iou_type="segm", image_ids=images)
    return CocoScores(masks=masks, boxes=coco_metrics(truth, found, iou_type="bbox", image_ids=images))


def read_truth(source: Mapping[str, Any] | str | Path) -> dict[str, Any]:
    """Read COCO annotations and fill in what annotation tools leave out: ids, ``iscrowd``, ``area``, ``bbox``.

    Raises:
        UsageError: the file cannot be read or is no COCO instances file.
    """
    loaded = _load(source, "ground truth")
    if not isinstance(loaded, Mapping):
        msg = f"{_named(source, 'the ground truth')} is no COCO instances file; give the annotations"
        raise UsageError(msg)
    return _complete(loaded, _named(source, "the ground truth"))


def read_detections(source: Sequence[Mapping[str, Any]] | str | Path, truth: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Read COCO results, or the annotations with ``score`` of a COCO file such as ``rsgeoseg run`` writes.

    Args:
        source: the results, or their JSON file.
        truth: what they will be compared with; a COCO file's images and classes are found there by name.

    Raises:
        UsageError: the file cannot be read, a detection lacks a field, or names an image or class that ``truth`` lacks.
    """
    name, loaded = _named(source, "the detections"), _load(source, "detections")
    if isinstance(loaded, Mapping):
        loaded = _renamed(loaded, truth, name)
    found = [dict(item) for item in loaded]
    for item in found:
        missing = [key for key in ("image_id", "category_id", "score") if item.get(key) is None]
        if missing or not (item.get("segmentation") or item.get("bbox")):
            what = ", ".join(missing) or "segmentation or bbox"
            msg = f"{name}: a detection has no {what}; give COCO results"
            raise UsageError(msg)
    _check_known(truth, found)
    sizes = {image["id"]: (image.get("height"), image.get("width")) for image in truth["images"]}
    for item in found:
        if isinstance(item.get("segmentation"), list):  # pycocotools measures results as run lengths only
            item["segmentation"] = to_rle(item["segmentation"], *sizes[item["image_id"]])
    return found


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


def _named(source: Any, otherwise: str) -> str:
    return str(source) if isinstance(source, str | Path) else otherwise


def _complete(dataset: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Fill what pycocotools needs and annotation tools leave out."""
    missing = [key for key in ("images", "annotations", "categories") if key not in dataset]
    if missing:
        msg = f"{name} has no {', '.join(missing)}; give a COCO instance annotation file"
        raise UsageError(msg)
    sizes = {image["id"]: (image.get("height"), image.get("width")) for image in dataset["images"]}
    annotations = []
    for number, given in enumerate(dataset["annotations"], start=1):
        if given.get("image_id") not in sizes or "category_id" not in given:
            what = f"image {given.get('image_id')} and category {given.get('category_id')}"
            msg = f"{name}: annotation {given.get('id', number)} is of {what}, and there is no such image"
            raise UsageError(msg)
        annotations.append(_filled({"id": number, "iscrowd": 0, **given}, *sizes[given["image_id"]]))
    return {"info": {}, **dataset, "annotations": annotations}


def _filled(annotation: dict[str, Any], height: int, width: int) -> dict[str, Any]:
    if annotation.get("segmentation") and ("area" not in annotation or "bbox" not in annotation):
        encoded = to_rle(annotation["segmentation"], height, width)
        annotation.setdefault("area", float(rle.area(encoded)))
        annotation.setdefault("bbox", rle.toBbox(encoded).tolist())
    box = annotation.setdefault("bbox", [0, 0, 0, 0])
    annotation.setdefault("area", float(box[2] * box[3]))
    return annotation


def _renamed(document: Mapping[str, Any], truth: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    """Turn the annotations of a COCO file into results with the truth's ids."""
    parts = [document.get(key) for key in ("images", "annotations", "categories")]
    if any(part is None for part in parts):
        msg = f"{name} is neither a list of COCO results nor a COCO file; give what the model found"
        raise UsageError(msg)
    images, annotations, categories = parts
    assert images is not None
    assert annotations is not None
    assert categories is not None
    by_file = {Path(str(image["file_name"])).name: image["id"] for image in truth["images"] if "file_name" in image}
    image_ids = {image["id"]: by_file.get(Path(str(image.get("file_name"))).name, image["id"]) for image in images}
    by_name = {plain_class(str(entry["name"])): entry["id"] for entry in truth["categories"]}
    names = {entry["id"]: str(entry["name"]) for entry in categories}
    known = {category: by_name[plain_class(text)] for category, text in names.items() if plain_class(text) in by_name}
    if annotations and not known:
        theirs, ours = ", ".join(names.values()), ", ".join(by_name)
        msg = f"{name} has no class of the truth: it has {theirs}; the truth has {ours}"
        raise UsageError(msg)
    results = []
    for item in annotations:
        if item["category_id"] in known:
            keep = {key: item[key] for key in ("segmentation", "bbox") if key in item}
            image_id, score = image_ids.get(item["image_id"], item["image_id"]), item.get("score", 1.0)
            results.append({"image_id": image_id, "category_id": known[item["category_id"]], "score": score, **keep})
    if len(results) < len(annotations):
        text = "%s: %d of %d objects are of classes that the truth does not have, and are left out"
        logger.warning(text, name, len(annotations) - len(results), len(annotations))
    return results


def to_rle(segmentation: Any, height: int, width: int) -> Any:
    """Encode a COCO segmentation: polygons, or run lengths of either kind."""
    if isinstance(segmentation, list):
        return rle.merge(rle.frPyObjects(segmentation, height, width))
    return rle.frPyObjects(segmentation, height, width) if isinstance(segmentation["counts"], list) else segmentation


def _index(dataset: dict[str, Any]) -> COCO:
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = dataset
        coco.createIndex()
    return coco


def _check_known(truth: Mapping[str, Any], found: list[dict[str, Any]]) -> None:
    images = {item["image_id"] for item in found} - {image["id"] for image in truth["images"]}
    categories = {item["category_id"] for item in found} - {entry["id"] for entry in truth["categories"]}
    if images or categories:
        what = f"image {min(images, key=str)}" if images else f"category {min(categories, key=str)}"
        msg = f"the detections name {what}, which the ground truth does not have; use the same annotation file"
        raise UsageError(msg)


def _mean(values: NDArray[np.float64]) -> float:
    """Average what pycocotools could measure; it marks the rest by -1."""
    known = values[values > -1]
    return float(known.mean()) if known.size else float("nan")
