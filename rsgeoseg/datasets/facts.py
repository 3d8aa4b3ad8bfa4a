"""What is in an instance dataset: counts by class, object sizes, what the images' edges cut, resolution."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from pycocotools import mask as rle

from rsgeoseg.datasets.geo_instances import GeoInstances
from rsgeoseg.datasets.instances import count_by_class
from rsgeoseg.datasets.labelled import bounds, to_rle

if TYPE_CHECKING:
    from rsgeoseg.datasets.instances import InstanceDataset
    from rsgeoseg.datasets.labelled import LabelledImage


def describe(dataset: InstanceDataset) -> dict[str, Any]:
    """Describe a dataset; reads no pixel.

    Returns:
        ``images``, ``empty_images`` (without an object), ``objects``, ``per_class`` (objects by name), ``size_px``
        (10th, 50th and 90th percentile of the square root of the area, None without objects), ``cut`` (share of objects
        that the edge of their image cuts, or touches where it is not known whether it cuts; None without objects),
        ``gsd_m`` (smallest and largest, None where not known).
    """
    images = [dataset.labelled(index) for index in range(len(dataset))]
    per_class = count_by_class(dataset)
    objects = sum(per_class.values())
    sizes = [float(rle.area(to_rle(s, image.height, image.width))) ** 0.5 for image in images for s in image.shapes]
    low, middle, high = np.percentile(sizes, (10, 50, 90)).tolist() if sizes else (0.0, 0.0, 0.0)
    return {
        "images": len(images),
        "empty_images": sum(not len(image.labels) for image in images),
        "objects": objects,
        "per_class": per_class,
        "size_px": {"p10": low, "p50": middle, "p90": high} if sizes else None,
        "cut": sum(_count_cut(image) for image in images) / objects if objects else None,
        "gsd_m": _gsd(dataset),
    }


def _count_cut(image: LabelledImage) -> int:
    if len(image.cut):
        return int(image.cut.sum())
    boxes = [bounds(to_rle(shape, image.height, image.width)) for shape in image.shapes]
    return sum(x0 <= 0 or y0 <= 0 or x1 >= image.width or y1 >= image.height for x0, y0, x1, y1 in boxes)


def _gsd(dataset: InstanceDataset) -> list[float] | None:
    if not isinstance(dataset, GeoInstances):
        return None
    known = [scene.grid.gsd for scene in dataset.scenes if scene.grid.gsd is not None]
    return [min(known), max(known)] if known else None
