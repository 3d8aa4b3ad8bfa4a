"""HRSID: ships in 5,604 SAR images of 800 pixels, 0.5-3 m (Wei et al., IEEE Access 2020)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rsgeoseg.datasets.published_coco import PublishedCoco

if TYPE_CHECKING:
    from collections.abc import Sequence


class HRSID(PublishedCoco):
    """HRSID with instance masks: 65 % of the images to train, 35 % to test, and both together as ``all``.

    Insight Any Instance re-splits it 7:3 at random and does not publish which; figures on ``test`` are not its.
    ``inshore_offshore/*.json`` of the archive cover training and test images together and are no splits; the images of
    pure background that came later are in none of the annotation files.
    """

    title = "HRSID"
    where = "get it from https://github.com/chaozhong2010/HRSID"
    layout = """  ROOT/                     (or ROOT/HRSID_JPG/, as unpacked)
    JPEGImages/ (or images/)
      P0001_0_800_7200_8000.jpg ...
    annotations/
      train2017.json   test2017.json   train_test2017.json"""
    splits = ("train", "test", "all")
    classes = ("ship",)

    @staticmethod
    def annotation_places(split: str) -> Sequence[str]:
        """See the base."""
        name = {"train": "train2017.json", "test": "test2017.json", "all": "train_test2017.json"}[split]
        return (f"annotations/{name}", f"HRSID_JPG/annotations/{name}", name)

    @staticmethod
    def image_places(split: str) -> Sequence[str]:
        """See the base."""
        del split
        return ("JPEGImages", "HRSID_JPG/JPEGImages", "images")
