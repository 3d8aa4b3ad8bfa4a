"""The base of all instance datasets: a torchgeo dataset that training, evaluation and export can read as well."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from pycocotools import mask as rle
from torchgeo.datasets import NonGeoDataset

from rsgeoseg.datasets.labelled import bounds, tight_boxes, to_rle
from rsgeoseg.datasets.picture import draw_instances

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from matplotlib.figure import Figure

    from rsgeoseg.datasets.labelled import LabelledImage

    Transforms = Callable[[dict[str, Any]], dict[str, Any]]

HOLD_OUT_EVERY = 5
"""Every fifth image by sorted name is held out: index 0, 5, 10, ..."""


class InstanceDataset(NonGeoDataset, ABC):
    """Images with instance masks.

    A sample is a dict with torchgeo's keys: ``image`` (3, H, W) float32 0-255, ``mask`` (N, H, W) uint8 in {0, 1},
    ``bbox_xyxy`` (N, 4) float32 half-open pixels, ``label`` (N,) int64 index into ``classes``.

    Args:
        classes: class names.
        transforms: applied to every sample.
    """

    def __init__(self, classes: Sequence[str], transforms: Transforms | None = None) -> None:
        self.classes = tuple(classes)
        self.transforms = transforms

    @property
    def category_ids(self) -> tuple[int, ...]:
        """COCO category id of each class in ``to_coco``."""
        return tuple(range(1, len(self.classes) + 1))

    @abstractmethod
    def __len__(self) -> int:
        """Count images."""

    @abstractmethod
    def labelled(self, index: int) -> LabelledImage:
        """Give image ``index`` and its objects, sorted by name; its pixels are not read."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Read a sample."""
        image = self.labelled(index)
        masks = image.masks()
        sample: dict[str, Any] = {
            "image": torch.from_numpy(image.read()).permute(2, 0, 1).float(),
            "mask": torch.from_numpy(masks),
            "bbox_xyxy": torch.from_numpy(tight_boxes(masks)),
            "label": torch.from_numpy(image.labels),
        }
        return sample if self.transforms is None else self.transforms(sample)

    def subset(self, indices: Sequence[int]) -> InstanceDataset:
        """Give some of the images."""
        return _Subset(self, indices)

    def split(self) -> tuple[InstanceDataset, InstanceDataset]:
        """Split into (training, held out): every fifth image by sorted name, from index 0, is held out."""
        held = range(0, len(self), HOLD_OUT_EVERY)
        return self.subset([i for i in range(len(self)) if i % HOLD_OUT_EVERY]), self.subset(held)

    def to_coco(self) -> dict[str, Any]:
        """Describe the dataset as a COCO instances document, ready for JSON."""
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for index in range(len(self)):
            image = self.labelled(index)
            images.append({"id": image.image_id, "file_name": image.name, "width": image.width, "height": image.height})
            for label, shape in zip(image.labels.tolist(), image.shapes, strict=True):
                encoded = to_rle(shape, image.height, image.width)
                x0, y0, x1, y1 = bounds(encoded)
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": image.image_id,
                        "category_id": self.category_ids[label],
                        "segmentation": {"size": list(encoded["size"]), "counts": encoded["counts"].decode("ascii")}
                        if isinstance(shape, dict)
                        else [ring.ravel().tolist() for ring in shape],
                        "area": float(rle.area(encoded)),
                        "bbox": [x0, y0, x1 - x0, y1 - y0],
                        "iscrowd": 0,
                    }
                )
        named = zip(self.category_ids, self.classes, strict=True)
        categories = [{"id": category, "name": name} for category, name in named]
        return {"images": images, "annotations": annotations, "categories": categories}

    def plot(self, sample: dict[str, Any], *, show_titles: bool = True, suptitle: str | None = None) -> Figure:
        """Draw a sample: its image, and the same with its objects.

        Args:
            sample: what ``__getitem__`` gave; with ``prediction_mask`` and ``prediction_label`` a third panel is drawn.
            show_titles: name the panels.
            suptitle: a title over all.
        """
        panels = [("Image", None, None), ("Objects", "mask", "label")]
        if "prediction_mask" in sample:
            panels.append(("Prediction", "prediction_mask", "prediction_label"))
        return draw_instances(sample, panels, self.classes, show_titles=show_titles, suptitle=suptitle)


class _Subset(InstanceDataset):
    """Some images of another dataset."""

    def __init__(self, whole: InstanceDataset, indices: Sequence[int]) -> None:
        super().__init__(whole.classes, whole.transforms)
        self.whole, self.indices = whole, tuple(indices)

    def __len__(self) -> int:
        """Count images."""
        return len(self.indices)

    def labelled(self, index: int) -> LabelledImage:
        """Give image ``index`` of the subset."""
        return self.whole.labelled(self.indices[index])

    @property
    def category_ids(self) -> tuple[int, ...]:
        """As of the whole dataset."""
        return self.whole.category_ids

    def to_coco(self) -> dict[str, Any]:
        """Describe these images as the whole dataset does."""
        document = self.whole.to_coco()
        ids = {self.labelled(index).image_id for index in range(len(self))}
        return {
            **document,
            "images": [image for image in document["images"] if image["id"] in ids],
            "annotations": [item for item in document["annotations"] if item["image_id"] in ids],
        }


def count_by_class(dataset: InstanceDataset) -> dict[str, int]:
    """Count the objects of every class."""
    counts = np.zeros(len(dataset.classes), np.int64)
    for index in range(len(dataset)):
        np.add.at(counts, dataset.labelled(index).labels, 1)
    return dict(zip(dataset.classes, counts.tolist(), strict=True))
