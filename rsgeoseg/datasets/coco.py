"""Instance datasets in COCO format: a folder of images and one annotation file."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from rsgeoseg.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

HOLD_OUT_EVERY = 5
"""Every fifth image by sorted file name is held out: index 0, 5, 10, ..."""

Ring = "NDArray[np.float64]"


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelledImage:
    """One image and what it shows."""

    path: Path
    """Image file, 8-bit RGB."""
    image_id: int
    """COCO image id."""
    width: int
    """Columns."""
    height: int
    """Rows."""
    labels: NDArray[np.int64]
    """(N,) indices into the dataset's classes."""
    polygons: tuple[tuple[NDArray[np.float64], ...], ...]
    """Per object its rings, (K, 2) x y in pixels."""

    def read(self) -> NDArray[np.uint8]:
        """Read the pixels, (H, W, 3) uint8 RGB.

        Raises:
            UsageError: the file cannot be read, or its size differs from the annotation.
        """
        pixels = cv2.imread(str(self.path), cv2.IMREAD_COLOR)
        if pixels is None:
            msg = f"{self.path}: cannot be read as an image; check the file or leave it out of the annotations"
            raise UsageError(msg)
        if pixels.shape[:2] != (self.height, self.width):
            msg = f"{self.path}: is {pixels.shape[1]} x {pixels.shape[0]} but annotated as {self.width} x {self.height}"
            raise UsageError(msg)
        return np.asarray(cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB))


@dataclass(frozen=True, slots=True, kw_only=True)
class CocoInstances:
    """Images with instance polygons, in the order of their file names."""

    images: tuple[LabelledImage, ...]
    """Sorted by file name."""
    classes: tuple[str, ...]
    """Class names in the order of their category ids."""
    category_ids: tuple[int, ...]
    """COCO category id of each class."""
    annotations: Path
    """The file it came from."""

    @staticmethod
    def open(folder: Path | str, annotations: Path | str) -> CocoInstances:
        """Read an annotation file; no pixels are read.

        Args:
            folder: where the images are.
            annotations: COCO instances JSON with polygon segmentations.

        Raises:
            UsageError: the file is missing, is not COCO, or names images that are not in the folder.
        """
        folder, annotations = Path(folder), Path(annotations)
        document = _read_json(annotations)
        categories = sorted(document["categories"], key=lambda c: int(c["id"]))
        index_of = {int(c["id"]): i for i, c in enumerate(categories)}
        of_image: dict[int, list[dict[str, Any]]] = {int(i["id"]): [] for i in document["images"]}
        for annotation in document["annotations"]:
            if not annotation.get("iscrowd", 0):
                of_image[int(annotation["image_id"])].append(annotation)
        missing = [i["file_name"] for i in document["images"] if not (folder / i["file_name"]).is_file()]
        if missing:
            count = f"{len(missing)} of {len(document['images'])}"
            msg = f"{folder}: {count} annotated images are missing, first {missing[0]}"
            raise UsageError(msg)
        images = []
        for entry in sorted(document["images"], key=lambda i: str(i["file_name"])):
            found = of_image[int(entry["id"])]
            images.append(
                LabelledImage(
                    path=folder / entry["file_name"],
                    image_id=int(entry["id"]),
                    width=int(entry["width"]),
                    height=int(entry["height"]),
                    labels=np.array([index_of[int(a["category_id"])] for a in found], np.int64),
                    polygons=tuple(_rings(a["segmentation"], annotations, a["id"]) for a in found),
                )
            )
        return CocoInstances(
            images=tuple(images),
            classes=tuple(str(c["name"]) for c in categories),
            category_ids=tuple(int(c["id"]) for c in categories),
            annotations=annotations,
        )

    def split(self) -> tuple[CocoInstances, CocoInstances]:
        """Split into (training, held out): every fifth image by sorted file name, from index 0, is held out."""
        held = self.images[::HOLD_OUT_EVERY]
        kept = tuple(image for i, image in enumerate(self.images) if i % HOLD_OUT_EVERY)
        return self._with(kept), self._with(held)

    def _with(self, images: Sequence[LabelledImage]) -> CocoInstances:
        return CocoInstances(
            images=tuple(images), classes=self.classes, category_ids=self.category_ids, annotations=self.annotations
        )


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        msg = f"{path}: no such annotation file; give a COCO instances JSON"
        raise UsageError(msg)
    try:
        document = json.loads(path.read_text())
    except ValueError as error:
        msg = f"{path}: is not JSON ({error})"
        raise UsageError(msg) from error
    if not isinstance(document, dict) or not {"images", "annotations", "categories"} <= set(document):
        msg = f"{path}: is not a COCO instances file: it needs images, annotations and categories"
        raise UsageError(msg)
    return document


def _rings(segmentation: object, path: Path, annotation_id: object) -> tuple[NDArray[np.float64], ...]:
    if not isinstance(segmentation, list) or not segmentation:
        msg = f"{path}: annotation {annotation_id} has no polygon; convert run-length masks to polygons first"
        raise UsageError(msg)
    return tuple(np.asarray(ring, np.float64).reshape(-1, 2) for ring in segmentation if len(ring) >= 6)
