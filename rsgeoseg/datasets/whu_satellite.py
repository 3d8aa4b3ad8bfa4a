"""WHU building, satellite datasets I (global cities) and II (East Asia): buildings as instances."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from rsgeoseg.datasets.buildings import Buildings
from rsgeoseg.datasets.labelled import list_missing
from rsgeoseg.datasets.source import check_split, refuse_download
from rsgeoseg.errors import UsageError

if TYPE_CHECKING:
    from rsgeoseg.datasets.instances import Transforms

Part = Literal["east-asia", "global-cities"]
_SPLITS: dict[str, tuple[str, ...]] = {
    "east-asia": ("train", "test", "train_no", "test_no"),
    "global-cities": ("all",),
}
_WHERE = "get it from http://gpcv.whu.edu.cn/data/building_dataset.html and unpack it below root"
_LAYOUTS = {
    "east-asia": """  ROOT/ (or up to two folders below it)
    train/ test/ train_no/ test_no/      as in '1. The cropped image data and raster labels'
      image/0.tif ...
      label/0.tif ...""",
    "global-cities": """  ROOT/ (or up to two folders below it)
    image/1.tif ...
    label/1.tif ...""",
}


class WHUSatellite(Buildings):
    """Buildings of WHU's satellite datasets; each 8-connected region of a label is one object.

    Buildings that touch one another are one region: the rasters do not tell them apart. Objects that touch the edge of
    an image are marked as cut.

    Args:
        root: the dataset's folder.
        split: of East Asia: ``train`` or ``test``, all with buildings, or ``train_no`` or ``test_no``, most of them
            without; of the global cities ``all``, they have no published split.
        transforms: applied to every sample.
        download: refused, the message says where the files are.
        checksum: refused, none are published.
        part: ``east-asia`` (II, 0.45 m, 17 388 tiles) or ``global-cities`` (I, 0.3-2.5 m, 204 images).
        smallest: regions with fewer pixels are left out.

    Raises:
        UsageError: the part or split does not exist, or files are missing.
    """

    splits = ("train", "test", "train_no", "test_no", "all")

    def __init__(
        self,
        root: Path | str,
        split: str = "train",
        transforms: Transforms | None = None,
        download: bool = False,
        checksum: bool = False,
        *,
        part: Part = "east-asia",
        smallest: int = 1,
    ) -> None:
        if part not in get_args(Part):
            msg = f"WHU's satellite dataset has no part {part!r}; choose from {', '.join(get_args(Part))}"
            raise UsageError(msg)
        check_split(f"WHU's satellite dataset ({part})", split, _SPLITS[part])
        refuse_download("WHU's satellite dataset", _WHERE, download=download, checksum=checksum)
        below = "image" if part == "global-cities" else f"{split}/image"
        images = _find(Path(root), below, _LAYOUTS[part])
        pairs = {image: images.parent / "label" / image.name for image in images.glob("*.tif")}
        labels = [label.relative_to(root).as_posix() for label in pairs.values()]
        list_missing(Path(root), labels, _LAYOUTS[part])
        super().__init__(root, pairs, values=(0, 1, 255), smallest=smallest, transforms=transforms)


def _find(root: Path, below: str, layout: str) -> Path:
    """Find a folder below root or below the one or two folders that unpacking the archive makes."""
    found = [folder for above in ("", "*/", "*/*/") for folder in sorted(root.glob(above + below)) if folder.is_dir()]
    if not found:
        msg = f"{root}: has no folder {below}\nexpected:\n{layout}"
        raise UsageError(msg)
    if len(found) > 1:
        msg = f"{root}: has several folders {below}, {found[0]} and {found[1]}; give the folder above one of them"
        raise UsageError(msg)
    return found[0]
