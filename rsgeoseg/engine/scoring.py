"""A model against annotated images: every image goes the whole way of a scene, then COCO's rule is applied."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Protocol

import cv2
import numpy as np

from rsgeoseg.engine.options import PipelineOptions
from rsgeoseg.engine.pipeline import find_objects
from rsgeoseg.errors import UsageError
from rsgeoseg.evaluate.class_names import plain_class
from rsgeoseg.evaluate.coco import CocoScores, coco_metrics, encode_mask, read_truth
from rsgeoseg.geo.scene import Scene

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager

    from numpy.typing import NDArray

    from rsgeoseg.contract import Segmenter
    from rsgeoseg.geo.stitch import StitchedObject

logger = logging.getLogger(__name__)


class AnnotatedImages(Protocol):
    """Gives the images of COCO annotations; an image is asked for by its entry in ``images``."""

    def open(self, entry: Mapping[str, Any]) -> AbstractContextManager[Path]:
        """Give a raster file of the image, for as long as it is needed."""

    def pixels(self, entry: Mapping[str, Any]) -> NDArray[np.uint8]:
        """Give the pixels (H, W, 3) RGB, for pictures."""


@dataclass(frozen=True, slots=True)
class ImageFolder:
    """Images in a folder, under the ``file_name`` of their entries."""

    folder: Path

    @contextmanager
    def open(self, entry: Mapping[str, Any]) -> Iterator[Path]:
        """Give the file itself."""
        yield self.folder / entry["file_name"]

    def pixels(self, entry: Mapping[str, Any]) -> NDArray[np.uint8]:
        """Read the first three bands, stretched to 8 bits where the file has more."""
        with Scene.open(self.folder / entry["file_name"]) as scene:
            return rgb(scene.read_thumbnail(max(scene.grid.width, scene.grid.height)).image)


@dataclass(frozen=True, slots=True)
class ReadImages:
    """Images that are not files of their own, such as those of a dataset."""

    read: Callable[[int], NDArray[np.uint8]]
    """Gives the pixels (H, W, 3) RGB of an image id."""

    @contextmanager
    def open(self, entry: Mapping[str, Any]) -> Iterator[Path]:
        """Give a temporary PNG of the pixels."""
        with TemporaryDirectory(prefix="rsgeoseg-") as folder:
            path = Path(folder) / "image.png"
            pixels = cv2.cvtColor(self.read(entry["id"]), cv2.COLOR_RGB2BGR)
            _, encoded = cv2.imencode(".png", pixels, [cv2.IMWRITE_PNG_COMPRESSION, 1])
            encoded.tofile(path)
            yield path

    def pixels(self, entry: Mapping[str, Any]) -> NDArray[np.uint8]:
        """Give the pixels."""
        return self.read(entry["id"])


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class ScoredImages:
    """What a model found on annotated images, and how good that is."""

    scores: CocoScores
    truth: dict[str, Any]
    """Complete COCO annotations."""
    found: list[dict[str, Any]]
    """COCO results."""
    image_ids: list[int]
    """Images that were looked at."""
    images: AnnotatedImages
    """Where their pixels are."""


def rgb(image: NDArray[Any]) -> NDArray[np.uint8]:
    """Turn bands (C, H, W) uint8 into a picture (H, W, 3)."""
    bands = [0, 1, 2] if len(image) >= 3 else [0, 0, 0]
    return np.ascontiguousarray(image[bands].transpose(1, 2, 0), np.uint8)


def score_images(
    segmenter: Segmenter,
    images: AnnotatedImages,
    annotations: Path | Mapping[str, Any],
    *,
    every: int = 1,
    start: int = 0,
    score_threshold: float = 0.0,
    tell: Callable[[int, int], None] | None = None,
    cancel: threading.Event | None = None,
) -> ScoredImages:
    """Measure COCO's average precision of a model on annotated images, by masks and by boxes.

    Boxes are those of the masks. As other programs do it, the size of a detection is that of its mask where masks are
    compared, and that of its box where boxes are.

    Args:
        segmenter: the model; its classes are matched with the annotations' categories by name.
        images: the images that the annotations name.
        annotations: COCO instance annotations, or their file.
        every: take only every n-th image by sorted file name.
        start: index of the first image taken.
        score_threshold: objects below are not counted; 0 gives the full precision-recall curve.
        tell: called with images done and images in all.
        cancel: set it from another thread to stop.

    Raises:
        UsageError: the annotations are no COCO file, or share no class with the model.
        SceneError: an image cannot be read.
    """
    truth = read_truth(annotations)
    name = "the dataset" if isinstance(annotations, dict) else str(annotations)
    chosen = sorted(truth["images"], key=lambda image: str(image["file_name"]))[start::every]
    if not chosen:
        msg = f"{name}: no image is left with every {every} and start {start}: lower them"
        raise UsageError(msg)
    categories = _categories(truth, segmenter.spec.classes, name)
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
        with (
            images.open(image) as path,
            Scene.open(path, value_range=spec.value_range, band_count=spec.bands) as scene,
        ):
            objects = find_objects(scene, segmenter, options, cancel)
            size = scene.grid.height, scene.grid.width
        found.extend(_as_coco(item, image["id"], size, categories) for item in objects)
        if tell is not None:
            tell(number, len(chosen))
    image_ids = [image["id"] for image in chosen]
    scores = _scores(truth, found, image_ids)
    return ScoredImages(scores=scores, truth=truth, found=found, image_ids=image_ids, images=images)


def _scores(truth: dict[str, Any], found: list[dict[str, Any]], image_ids: list[int]) -> CocoScores:
    masks = None
    if all(item.get("segmentation") for item in truth["annotations"]):
        only_masks = [{key: value for key, value in item.items() if key != "bbox"} for item in found]
        masks = coco_metrics(truth, only_masks, iou_type="segm", image_ids=image_ids)
    return CocoScores(masks=masks, boxes=coco_metrics(truth, found, iou_type="bbox", image_ids=image_ids))


def _categories(truth: dict[str, Any], classes: Sequence[str], name: str) -> dict[int, int]:
    """Model label -> category id, by name."""
    by_name = {plain_class(str(entry["name"])): int(entry["id"]) for entry in truth["categories"]}
    plain = [plain_class(each) for each in classes]
    found = {label: by_name[each] for label, each in enumerate(plain) if each in by_name}
    if not found:
        msg = f"{name} has no class of the model: it has {', '.join(by_name)}; the model has {', '.join(classes)}"
        raise UsageError(msg)
    missing = [each for each in by_name if each not in plain]
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
