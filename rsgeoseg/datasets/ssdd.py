"""SSDD: ships in 1,160 SAR images of Sentinel-1, RadarSat-2 and TerraSAR-X."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rsgeoseg.datasets.published_coco import PublishedCoco

if TYPE_CHECKING:
    from collections.abc import Sequence


class SSDD(PublishedCoco):
    """SSDD with instance masks, RSPrompter's files and split: 928 images to train, 232 to validate."""

    title = "SSDD"
    where = "get it from https://github.com/TianwenZhang0825/Official-SSDD, the COCO files from RSPrompter's code"
    layout = """  ROOT/
    imgs/ (or images/)
      000001.jpg ...
    annotations/
      SSDD_instances_train.json   SSDD_instances_val.json"""
    splits = ("train", "val")
    classes = ("ship",)

    @staticmethod
    def annotation_places(split: str) -> Sequence[str]:
        """See the base."""
        return (f"annotations/SSDD_instances_{split}.json", f"annotations/instances_{split}.json")

    @staticmethod
    def image_places(split: str) -> Sequence[str]:
        """See the base."""
        del split
        return ("imgs", "images")
