"""NWPU VHR-10: ten classes in 650 annotated aerial images of 0.08-2 m."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torchgeo.datasets import VHR10
from torchgeo.datasets.utils import check_integrity

from rsgeoseg.datasets.published_coco import PublishedCoco
from rsgeoseg.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

_TORCHGEO = "NWPU VHR-10 dataset"
_FOLDERS = ("imgs", "images", "positive image set", f"{_TORCHGEO}/positive image set")


class NWPUVHR10(PublishedCoco):
    """NWPU VHR-10 with instance masks; ``train`` and ``val`` are RSPrompter's split, ``positive`` all 650 images.

    ``positive`` is torchgeo's layout, and its download (``torchgeo.datasets.VHR10``). Images are found by their file
    names: torchgeo's own class finds annotations by counting, and numbers classes from one. The 150 images of the
    negative set have no annotations and are in no split. ``checksum`` alone checks the annotations of ``positive``.
    """

    title = "NWPU VHR-10"
    where = "split positive can be fetched with download=True; the files of train and val come with RSPrompter's code"
    layout = """  ROOT/
    imgs/ (or images/)
      001.jpg ...
    annotations/ (or ROOT itself)
      NWPU_instances_train.json   NWPU_instances_val.json      (or instances_train.json ...)
  or, for split positive:
    NWPU VHR-10 dataset/
      annotations.json
      positive image set/001.jpg ..."""
    splits = ("train", "val", "positive")
    classes = (
        "airplane",
        "ship",
        "storage_tank",
        "baseball_diamond",
        "tennis_court",
        "basketball_court",
        "ground_track_field",
        "harbor",
        "bridge",
        "vehicle",
    )

    @staticmethod
    def annotation_places(split: str) -> Sequence[str]:
        """See the base."""
        if split == "positive":
            return (f"{_TORCHGEO}/annotations.json", "annotations.json")
        names = (f"NWPU_instances_{split}.json", f"instances_{split}.json")
        return [folder + name for folder in ("annotations/", "") for name in names]

    @staticmethod
    def image_places(split: str) -> Sequence[str]:
        """See the base."""
        return _FOLDERS[::-1] if split == "positive" else _FOLDERS

    def _fetch(self, *, download: bool, checksum: bool) -> None:
        if self.split_name != "positive":
            super()._fetch(download=download, checksum=checksum)
        elif download:
            VHR10(str(self.root), "positive", download=True, checksum=checksum)
        elif checksum:
            path = self._find(self.annotation_places("positive"), "annotations")
            if not check_integrity(str(path), VHR10.target_meta["md5"]):
                msg = f"{path}: is not the file that torchgeo downloads (md5 {VHR10.target_meta['md5']}); get it again"
                raise UsageError(msg)
