"""A model against annotated images: every image goes the whole way of a scene, then COCO's rule is applied."""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Any

from rsgeoseg.engine.options import PipelineOptions
from rsgeoseg.engine.pipeline import segment_scene
from rsgeoseg.errors import UsageError
from rsgeoseg.evaluate.coco import CocoResult, coco_metrics, encode_mask
from rsgeoseg.geo.scene import Scene

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from rsgeoseg.contract import Segmenter
    from rsgeoseg.geo.stitch import StitchedObject

logger = logging.getLogger(__name__)


def score_images(
    segmenter: Segmenter,
    images: Path,
    annotations: Path,
    *,
    every: int = 1,
    start: int = 0,
    score_threshold: float = 0.0,
    tell: Callable[[int, int], None] | None = None,
    cancel: threading.Event | None = None,
) -> CocoResult:
    """Measure COCO's average precision of a model on annotated images.

    Args:
        segmenter: the model; its classes are matched with the annotations' categories by name.
        images: folder of the image files that the annotations name.
        annotations: COCO instance annotations.
        every: take only every n-th image by sorted file name.
        start: index of the first image taken.
        score_threshold: objects below are not counted; 0 gives the full precision-recall curve.
        tell: called with images done and images in all.
        cancel: set it from another thread to stop.

    Raises:
        UsageError: the annotations are no COCO file, or share no class with the model.
        SceneError: an image cannot be read.
    """
    truth = _read_annotations(annotations)
    chosen = sorted(truth["images"], key=lambda image: str(image["file_name"]))[start::every]
    if not chosen:
        msg = f"{annotations}: no image is left with every {every} and start {start}: lower them"
        raise UsageError(msg)
    categories = _categories(truth, segmenter.spec.classes, annotations)
    spec = segmenter.spec
    options = PipelineOptions(
        chip_size=spec.chip_size,
        overlap=min(spec.overlap, spec.chip_size // 4),
        score_threshold=score_threshold,
        labels=frozenset(categories),
        readers=1,
    )
    found: list[dict[str, Any]] = []
    for number, image in enumerate(chosen, start=1):
        with Scene.open(images / image["file_name"], value_range=spec.value_range, band_count=spec.bands) as scene:
            result = segment_scene(scene, segmenter, options, cancel=cancel)
            size = scene.grid.height, scene.grid.width
        found.extend(_as_coco(item, image["id"], size, categories) for item in result.objects)
        if tell is not None:
            tell(number, len(chosen))
    return coco_metrics(truth, found, image_ids=[image["id"] for image in chosen])


def _read_annotations(path: Path) -> dict[str, Any]:
    try:
        truth = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        msg = f"{path} cannot be read as COCO annotations: {error}"
        raise UsageError(msg) from error
    if not isinstance(truth, dict) or not all(key in truth for key in ("images", "annotations", "categories")):
        msg = f"{path} is not a COCO instance file: it needs images, annotations and categories"
        raise UsageError(msg)
    return truth


def _categories(truth: dict[str, Any], classes: Sequence[str], path: Path) -> dict[int, int]:
    """Model label -> category id, by name."""
    by_name = {str(entry["name"]).lower().replace("_", " "): int(entry["id"]) for entry in truth["categories"]}
    plain = [name.lower().replace("_", " ") for name in classes]
    found = {label: by_name[name] for label, name in enumerate(plain) if name in by_name}
    if not found:
        msg = f"{path} has no class of the model: it has {', '.join(by_name)}; the model has {', '.join(classes)}"
        raise UsageError(msg)
    missing = [name for name in by_name if name not in plain]
    if missing:
        logger.warning("the model does not know %s: they count as missed", ", ".join(missing))
    return found


def _as_coco(item: StitchedObject, image_id: int, size: tuple[int, int], categories: dict[int, int]) -> dict[str, Any]:
    box = item.box
    return {
        "image_id": image_id,
        "category_id": categories[item.label],
        "score": item.score,
        "bbox": [box.x0, box.y0, box.width, box.height],
        "segmentation": encode_mask(item.mask, (box.x0, box.y0), height=size[0], width=size[1]),
    }
