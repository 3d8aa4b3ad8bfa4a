"""The images of a training: opened and split into those it learns from and those it is measured on."""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING

from rsgeoseg.datasets.coco import CocoInstances
from rsgeoseg.errors import UsageError

if TYPE_CHECKING:
    from rsgeoseg.datasets.instances import InstanceDataset
    from rsgeoseg.train.config import TrainConfig

logger = logging.getLogger(__name__)


def open_data(config: TrainConfig) -> tuple[InstanceDataset, InstanceDataset]:
    """Open the (training, validation) images of a training.

    Raises:
        UsageError, SceneError: files are missing or of another kind, the two sets have other classes, or one is empty.
    """
    kept, held = _open(config)
    if config.overfit:
        held = kept
    if kept.classes != held.classes:
        msg = f"training and validation have other classes: {', '.join(kept.classes)}; {', '.join(held.classes)}"
        raise UsageError(msg)
    objects = sum(len(kept.labelled(index).labels) for index in range(len(kept)))
    if not len(held) or not objects:
        msg = f"nothing to learn from: {len(kept)} images with {objects} objects, {len(held)} to measure on"
        raise UsageError(msg)
    logger.info("%d images with %d objects to learn from, %d to measure on", len(kept), objects, len(held))
    return kept, held


def _open(config: TrainConfig) -> tuple[InstanceDataset, InstanceDataset]:
    if config.dataset is not None and config.root is not None:
        from rsgeoseg.datasets.catalog import open_dataset  # noqa: PLC0415  (each kind of data is read by other packages)

        whole = open_dataset(config.dataset, config.root, config.train_split)
        if config.val_split is not None:
            return whole, open_dataset(config.dataset, config.root, config.val_split)
        return whole.split()
    if config.polygons is not None:
        from rsgeoseg.datasets.geo_instances import GeoInstances  # noqa: PLC0415

        open_side = partial(
            GeoInstances,
            list(config.scenes),
            config.polygons,
            class_field=config.class_field,
            chip_size=2 * config.crop,  # room for shifts and scales, and fewer objects cut
            val_share=config.val_share,
            aoi=config.aoi,
            bands=config.bands,
            stretch=config.stretch,
            gsd=config.gsd,
        )
        return open_side(split="train"), open_side(split="val")
    assert config.images is not None
    assert config.annotations is not None
    coco = CocoInstances(config.images, config.annotations)
    if config.val_annotations is not None:
        return coco, CocoInstances(config.val_images or config.images, config.val_annotations)
    return coco.split()
