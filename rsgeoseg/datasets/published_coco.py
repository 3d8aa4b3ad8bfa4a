"""Published datasets whose annotations are COCO files: NWPU VHR-10, SSDD, HRSID, SandBar, WHU building in COCO form."""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from rsgeoseg.datasets.coco import CocoInstances
from rsgeoseg.datasets.source import check_split, refuse_download
from rsgeoseg.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rsgeoseg.datasets.instances import Transforms


class PublishedCoco(CocoInstances):
    """A folder of images and one COCO file per split.

    Args:
        root: the dataset's folder.
        split: one of ``splits``.
        transforms: applied to every sample.
        download: fetch the files first, where there is a stable public address; else refused, the message says where
            the files are.
        checksum: check what was fetched, where checksums are published; else refused.

    Raises:
        UsageError: the split does not exist, files are missing (the message shows the layout), or the annotations have
            other classes than the dataset.
    """

    title: ClassVar[str]
    """Name for people."""
    where: ClassVar[str]
    """How a person gets it."""
    layout: ClassVar[str]
    """A picture of the expected folder."""
    splits: ClassVar[tuple[str, ...]]
    classes: tuple[str, ...]

    def __init__(
        self,
        root: Path | str,
        split: str = "train",
        transforms: Transforms | None = None,
        download: bool = False,
        checksum: bool = False,
    ) -> None:
        check_split(self.title, split, self.splits)
        self.root, self.split_name = Path(root), split
        self._fetch(download=download, checksum=checksum)
        annotations = self._find(self.annotation_places(split), "annotations")
        images = self._find(self.image_places(split), "images")
        expected = type(self).classes
        super().__init__(images, annotations, transforms)
        if [_plain(name) for name in self.classes] != [_plain(name) for name in expected]:
            names = f"{', '.join(self.classes)}; {self.title} has {', '.join(expected)}"
            msg = f"{annotations}: has the classes {names}: get the file again, or open it as a COCO set"
            raise UsageError(msg)
        self.classes = expected

    @staticmethod
    @abstractmethod
    def annotation_places(split: str) -> Sequence[str]:
        """Give the paths below root where a split's annotations may lie, the usual one first."""

    @staticmethod
    @abstractmethod
    def image_places(split: str) -> Sequence[str]:
        """Give the folders below root where its images may lie."""

    def _fetch(self, *, download: bool, checksum: bool) -> None:
        refuse_download(self.title, self.where, download=download, checksum=checksum)

    def _find(self, places: Sequence[str], what: str) -> Path:
        for place in places:
            if (self.root / place).exists():
                return self.root / place
        names = " or ".join(places)
        what = f"has no {what} of {self.title} {self.split_name} ({names})"
        msg = f"{self.root}: {what}; {self.where}\nexpected:\n{self.layout}"
        raise UsageError(msg)


def _plain(name: str) -> str:
    """Bring spellings of one class together: ``ships``, ``storage tank``, ``Ship``."""
    plain = name.lower().replace("_", " ").replace("-", " ").strip()
    return plain.removesuffix("s")
