"""SandBar: sandbars of the upper Yellow River in images of Landsat 8 and GF-2, 512 pixels."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rsgeoseg.datasets.published_coco import PublishedCoco

if TYPE_CHECKING:
    from collections.abc import Sequence


class SandBar(PublishedCoco):
    """SandBar with instance masks.

    RS-ISRefiner's paper (section IV-A) says three bands, 512 x 512, annotations and files "in the COCO format"; the
    files themselves could not be had, so the folders are COCO's usual ones. A copy that looks different is refused.
    """

    title = "SandBar"
    where = "ask its authors; the paper of RS-ISRefiner names no address"
    layout = """  ROOT/                     (assumed: COCO's usual folders)
    train/ val/ test/         (or images/, or images/train/ ...)
      *.png or *.jpg
    annotations/
      instances_train.json   instances_val.json   instances_test.json"""
    splits = ("train", "val", "test")
    classes = ("sandbar",)

    @staticmethod
    def annotation_places(split: str) -> Sequence[str]:
        """See the base."""
        return (f"annotations/instances_{split}.json", f"annotations/instances_{split}2017.json")

    @staticmethod
    def image_places(split: str) -> Sequence[str]:
        """See the base."""
        return (f"images/{split}", split, f"{split}2017", "images")
