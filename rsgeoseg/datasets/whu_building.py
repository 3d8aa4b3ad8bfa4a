"""WHU building, aerial imagery: 8,188 tiles of 512 pixels over Christchurch, 0.3 m (Ji et al., TGRS 2019)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rsgeoseg.datasets.buildings import Buildings
from rsgeoseg.datasets.labelled import list_missing
from rsgeoseg.datasets.published_coco import PublishedCoco
from rsgeoseg.datasets.source import check_split, refuse_download
from rsgeoseg.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rsgeoseg.datasets.instances import Transforms

_WHERE = "get it from http://gpcv.whu.edu.cn/data/building_dataset.html and unpack it below root"
_ARCHIVE = "3. The cropped image tiles and raster labels"
_FOLDERS = ("", "images/", "imgs/", f"{_ARCHIVE}/")
"""Where the splits may lie below root: themselves, as people and RSPrompter sort them, as unpacked."""
_LAYOUT = f"""  ROOT/ (or ROOT/images/, ROOT/imgs/, ROOT/{_ARCHIVE}/)
    train/ val/ test/        (or image/ and label/ alone, for split all)
      image/0.tif ...
      label/0.tif ..."""
_RASTERS = {".tif", ".tiff", ".png"}


class WHUBuilding(Buildings):
    """WHU building, aerial; each 8-connected region of a label is one building.

    Buildings that touch one another are one region: the rasters do not tell them apart. RSPrompter's figures are of
    `WHUBuildingCoco`.

    Args:
        root: the dataset's folder.
        split: ``train`` 4 736, ``val`` 1 036, ``test`` 2 416 tiles; ``all`` for a folder with ``image`` and ``label``.
        transforms: applied to every sample.
        download: refused, the message says where the files are.
        checksum: refused, none are published.
        smallest: regions with fewer pixels are left out.

    Raises:
        UsageError: the split does not exist, or files are missing.
    """

    splits = ("train", "val", "test", "all")

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
        check_split("WHU building", split, self.splits)
        refuse_download("WHU building", _WHERE, download=download, checksum=checksum)
        root = Path(root)
        places = [root] if split == "all" else [root / f"{folder}{split}" for folder in _FOLDERS]
        found = next((place for place in places if (place / "image").is_dir()), None)
        if found is None:
            flat = "; it has image/ and label/ themselves: that is split all" if (root / "image").is_dir() else ""
            msg = f"{root}: has no folder {'image' if split == 'all' else f'{split}/image'}{flat}; {_WHERE}\n{_LAYOUT}"
            raise UsageError(msg)
        images = sorted(path for path in (found / "image").iterdir() if path.suffix.lower() in _RASTERS)
        pairs = {image: found / "label" / image.name for image in images}
        list_missing(root, [label.relative_to(root).as_posix() for label in pairs.values()], _LAYOUT)
        super().__init__(root, pairs, values=(0, 1, 255), smallest=smallest, transforms=transforms)


class WHUBuildingCoco(PublishedCoco):
    """WHU building in the COCO files that RSPrompter trains and scores on; its ``val_dataloader`` is ``test``.

    Their objects are the 4-connected regions of the same rasters: buildings that touch at a corner only are two here
    and one in `WHUBuilding`.
    """

    title = "WHU building (COCO files)"
    where = "the images are those of WHUBuilding, the COCO files are made by RSPrompter's tools/rsprompter/whu2coco.py"
    layout = """  ROOT/
    annotations/
      WHU_building_train.json   WHU_building_val.json   WHU_building_test.json
    imgs/ (or images/, or ROOT itself)
      train/image/0.tif ...   val/image/...   test/image/..."""
    splits = ("train", "val", "test")
    classes = ("building",)

    @staticmethod
    def annotation_places(split: str) -> Sequence[str]:
        """See the base."""
        return (f"annotations/WHU_building_{split}.json",)

    @staticmethod
    def image_places(split: str) -> Sequence[str]:
        """See the base."""
        return [f"{folder}{split}/image" for folder in ("imgs/", "images/", "")]
