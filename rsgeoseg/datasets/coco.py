"""Instance datasets in COCO format: a folder of images and one annotation file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from pycocotools import mask as rle

from rsgeoseg.datasets.instances import InstanceDataset
from rsgeoseg.datasets.labelled import ImageFile, LabelledImage, list_missing
from rsgeoseg.errors import UsageError

if TYPE_CHECKING:
    from rsgeoseg.datasets.instances import Transforms
    from rsgeoseg.datasets.labelled import Shape


class CocoInstances(InstanceDataset):
    """Images and instance masks of a COCO annotation file, in the order of the file names.

    Crowds (``iscrowd``) are left out; images without annotations are kept, as images of nothing.

    Args:
        folder: where the images are.
        annotations: COCO instances JSON; polygons or run-length encodings.
        transforms: applied to every sample.

    Raises:
        UsageError: the file is missing, is not COCO, names images that are not in the folder or the same image twice,
            or an annotation belongs to no image or has no usable shape.
    """

    layout: ClassVar[str] = """  FOLDER/
    IMAGE.jpg ...            every file_name of the annotations
  ANNOTATIONS.json           COCO instances: images, annotations, categories"""
    """A picture of the expected files."""

    def __init__(self, folder: Path | str, annotations: Path | str, transforms: Transforms | None = None) -> None:
        folder, self.annotations = Path(folder), Path(annotations)
        document = read_coco(self.annotations)
        categories = sorted(document["categories"], key=lambda c: int(c["id"]))
        super().__init__([str(c["name"]) for c in categories], transforms)
        self.document = document
        self._category_ids = tuple(int(c["id"]) for c in categories)
        list_missing(folder, [str(i["file_name"]) for i in document["images"]], self.layout)
        self.images = _labelled(document, folder, self._category_ids, self.annotations)
        """All images, sorted by file name."""

    def __len__(self) -> int:
        """Count images."""
        return len(self.images)

    def labelled(self, index: int) -> LabelledImage:
        """Give image ``index``."""
        return self.images[index]

    @property
    def category_ids(self) -> tuple[int, ...]:
        """As in the annotation file."""
        return self._category_ids

    def to_coco(self) -> dict[str, Any]:
        """Give the annotation file's own document, crowds included."""
        return self.document


def read_coco(path: Path) -> dict[str, Any]:
    """Read a COCO instances document.

    Raises:
        UsageError: the file is missing or is something else.
    """
    if not path.is_file():
        msg = f"{path}: no such annotation file; give a COCO instances JSON"
        raise UsageError(msg)
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        msg = f"{path}: is not JSON ({error})"
        raise UsageError(msg) from error
    if not isinstance(document, dict) or not {"images", "annotations", "categories"} <= set(document):
        msg = f"{path}: is not a COCO instances file: it needs images, annotations and categories"
        raise UsageError(msg)
    return document


def _labelled(
    document: dict[str, Any], folder: Path, category_ids: tuple[int, ...], source: Path
) -> tuple[LabelledImage, ...]:
    index_of = {category: i for i, category in enumerate(category_ids)}
    of_image: dict[int, list[dict[str, Any]]] = {int(i["id"]): [] for i in document["images"]}
    if len(of_image) != len(document["images"]):
        msg = f"{source}: two images have the same id"
        raise UsageError(msg)
    for annotation in document["annotations"]:
        image_id, category = int(annotation["image_id"]), int(annotation["category_id"])
        if image_id not in of_image or category not in index_of:
            what = f"image {image_id} and category {category}"
            msg = f"{source}: annotation {annotation['id']} is of {what}, and the file has no such thing"
            raise UsageError(msg)
        if not annotation.get("iscrowd", 0):
            of_image[image_id].append(annotation)
    images = []
    for entry in sorted(document["images"], key=lambda i: str(i["file_name"])):
        height, width = int(entry["height"]), int(entry["width"])
        found = of_image[int(entry["id"])]
        images.append(
            LabelledImage(
                name=str(entry["file_name"]),
                image_id=int(entry["id"]),
                width=width,
                height=height,
                labels=np.array([index_of[int(a["category_id"])] for a in found], np.int64),
                shapes=tuple(_shape(a.get("segmentation"), source, a.get("id"), height, width) for a in found),
                reader=ImageFile(folder / str(entry["file_name"])),
            )
        )
    return tuple(images)


def _shape(segmentation: Any, source: Path, annotation_id: object, height: int, width: int) -> Shape:
    if isinstance(segmentation, dict):
        if list(segmentation.get("size", [])) != [height, width]:
            msg = f"{source}: annotation {annotation_id} is encoded for another size than its image's"
            raise UsageError(msg)
        counts = segmentation["counts"]
        if isinstance(counts, list):
            return dict(rle.frPyObjects(segmentation, height, width))
        return {"size": [height, width], "counts": counts.encode("ascii") if isinstance(counts, str) else counts}
    rings = tuple(np.asarray(ring, np.float64).reshape(-1, 2) for ring in segmentation or [] if len(ring) >= 6)
    if not rings:
        msg = f"{source}: annotation {annotation_id} has neither a polygon of three points nor a mask; remove it"
        raise UsageError(msg)
    return rings
