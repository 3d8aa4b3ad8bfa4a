"""LoveDA: buildings of the urban scenes as instances."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from torchgeo.datasets import LoveDA
from torchgeo.datasets.errors import DatasetNotFoundError

from rsgeoseg.datasets.buildings import Buildings
from rsgeoseg.datasets.labelled import list_missing
from rsgeoseg.datasets.source import check_split
from rsgeoseg.errors import UsageError

if TYPE_CHECKING:
    from rsgeoseg.datasets.instances import Transforms

_LAYOUT = """  ROOT/
    Train/ Val/
      Urban/images_png/1366.png ...
      Urban/masks_png/1366.png ..."""
_BUILDING = 1 + LoveDA.classes.index("building")
"""Value of buildings in the masks: they count classes from 1, 0 is no data."""
_LARGEST = LoveDA.classes.index("no-data")
"""Largest value of the masks: torchgeo lists no data last, but the masks have it as 0."""


class LoveDAUrban(Buildings):
    """Buildings of LoveDA's urban scenes; each 8-connected region of a mask is one object.

    Download, checksums and file lists are torchgeo's (``torchgeo.datasets.LoveDA``). Pixels without data hold no
    objects. Objects that touch the edge of an image are marked as cut; images without buildings are kept.

    Args:
        root: the dataset's folder.
        split: ``train`` or ``val``; ``test`` has no masks.
        transforms: applied to every sample.
        download: get the split from Zenodo where it is not there.
        checksum: check the downloaded archive.
        smallest: regions with fewer pixels are left out.

    Raises:
        UsageError: the split has no masks or does not exist, or files are missing.
    """

    splits = ("train", "val", "test")

    def __init__(
        self,
        root: Path | str,
        split: str = "train",
        transforms: Transforms | None = None,
        download: bool = False,
        checksum: bool = False,
        *,
        smallest: int = 1,
    ) -> None:
        check_split("LoveDA", split, self.splits)
        if split == "test":
            msg = "LoveDA's test masks are held back by its evaluation server; give split 'train' or 'val'"
            raise UsageError(msg)
        try:
            urban = LoveDA(root, split, scene=["urban"], download=download, checksum=checksum)
        except DatasetNotFoundError as error:
            msg = f"{root}: LoveDA's {split} split is not there; give download=True\nexpected:\n{_LAYOUT}"
            raise UsageError(msg) from error
        pairs = {Path(pair["image"]): Path(pair["mask"]) for pair in urban.files}
        list_missing(Path(root), [label.relative_to(root).as_posix() for label in pairs.values()], _LAYOUT)
        super().__init__(
            root, pairs, values=range(_LARGEST + 1), building=_BUILDING, smallest=smallest, transforms=transforms
        )
