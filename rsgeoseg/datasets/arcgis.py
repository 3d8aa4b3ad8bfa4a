"""Chips exported by ArcGIS Pro ("Export Training Data For Deep Learning", metadata format RCNN Masks).

Layout by Esri's documentation and by how ``arcgis.learn`` reads it: a folder of masks per class below ``labels``, named
by the class's name; in a mask, 0 is background and every other value one object; objects that overlap lie in
further bands. A chip has no mask for a class that it does not show.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pycocotools import mask as rle
from rasterio.errors import RasterioError

from rsgeoseg.datasets.instances import InstanceDataset
from rsgeoseg.datasets.labelled import LabelledImage
from rsgeoseg.datasets.scene_chip import SceneChip
from rsgeoseg.errors import UsageError
from rsgeoseg.geo.opening import gdal_env, open_dataset
from rsgeoseg.geo.scene import Scene
from rsgeoseg.geo.windows import Box

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from rsgeoseg.datasets.instances import Transforms
    from rsgeoseg.datasets.labelled import Rle

MODEL_DEFINITION = "esri_model_definition.emd"
_LAYOUT = """  ROOT/
    esri_model_definition.emd       Classes: Value and Name
    images/000000000.tif ...
    labels/CLASS/000000000.tif ...  per class; 0 = background, 1, 2, ... = objects"""
_DRIVERS = {".tif": "GTiff", ".tiff": "GTiff", ".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}


class ArcGISChips(InstanceDataset):
    """Chips and instance masks of an ArcGIS Pro export in the RCNN Masks format, in the order of their names.

    Chips are read like scenes. Values other than 0-255 need a stretch with fixed limits, because a stretch found chip
    by chip would show the same ground differently in two of them.

    Args:
        root: the exported folder.
        bands: band numbers from 1; None = a sensible choice.
        stretch: ``auto`` (8-bit chips as they are) or ``minmax:LOW,HIGH``.
        transforms: applied to every sample.

    Raises:
        UsageError: the folder is none of the kind, was exported in another format, or a mask does not fit its chip.
        SceneError: a chip cannot be opened.
    """

    def __init__(
        self,
        root: Path | str,
        bands: Sequence[int] | None = None,
        stretch: str = "auto",
        transforms: Transforms | None = None,
    ) -> None:
        self.root = Path(root)
        named = _read_classes(self.root)
        super().__init__([name for _, name in named], transforms)
        folders = [_class_folder(self.root, value, name) for value, name in named]
        if not any(folders):
            found = sorted(p.name for p in (self.root / "labels").iterdir() if p.is_dir())
            msg = (
                f"{self.root}: labels has no folder named like a class ({', '.join(self.classes)}), only "
                f"{', '.join(found) or 'files'}: export with the metadata format RCNN Masks; expected:\n{_LAYOUT}"
            )
            raise UsageError(msg)
        files = sorted(p for p in (self.root / "images").iterdir() if p.suffix.lower() in _DRIVERS)
        self.images = tuple(
            _labelled(file, number, folders, bands=bands, stretch=stretch) for number, file in enumerate(files, 1)
        )
        """All chips, sorted by file name."""

    def __len__(self) -> int:
        """Count chips."""
        return len(self.images)

    def labelled(self, index: int) -> LabelledImage:
        """Give chip ``index``."""
        return self.images[index]


def _read_classes(root: Path) -> list[tuple[int, str]]:
    """Value and name of every class, by value."""
    source = root / MODEL_DEFINITION
    if not source.is_file() or not (root / "images").is_dir() or not (root / "labels").is_dir():
        msg = f"{root}: is not a folder of exported training data; expected:\n{_LAYOUT}"
        raise UsageError(msg)
    try:
        entries = json.loads(source.read_text(encoding="utf-8-sig"))["Classes"]
        classes = sorted((int(entry["Value"]), str(entry["Name"])) for entry in entries)
    except (ValueError, KeyError, TypeError) as error:
        msg = f"{source}: cannot be read for its classes ({type(error).__name__} {error}); export again"
        raise UsageError(msg) from error
    return [(value, name) for value, name in classes if value != 0]  # 0 stands for background


def _class_folder(root: Path, value: int, name: str) -> Path | None:
    """Folder of a class's masks: by its name, or by its value."""
    for folder in (root / "labels" / name, root / "labels" / str(value)):
        if folder.is_dir():
            return folder
    return None


def _labelled(
    file: Path, number: int, folders: Sequence[Path | None], *, bands: Sequence[int] | None, stretch: str
) -> LabelledImage:
    scene = Scene.open(file, bands=bands, stretch=stretch)
    if scene.dtype != np.uint8 and not stretch.strip().lower().startswith("minmax:"):
        msg = f"{file}: chips of {scene.dtype} need one stretch for all: give stretch minmax:LOW,HIGH"
        raise UsageError(msg)
    height, width = scene.grid.height, scene.grid.width
    labels: list[int] = []
    shapes: list[Rle] = []
    for label, folder in enumerate(folders):
        found = [] if folder is None else _read_objects(_mask_file(folder, file), (height, width))
        labels += [label] * len(found)
        shapes += found
    return LabelledImage(
        name=f"images/{file.name}",
        image_id=number,
        width=width,
        height=height,
        labels=np.array(labels, np.int64),
        shapes=tuple(shapes),
        reader=SceneChip.of(scene, Box(0, 0, width, height)),
    )


def _mask_file(folder: Path, image: Path) -> Path | None:
    """Mask of a chip: the same name, whatever the ending."""
    names = [image.name, *(f"{image.stem}{ending}" for ending in _DRIVERS)]
    return next((folder / name for name in names if (folder / name).is_file()), None)


def _read_objects(path: Path | None, size: tuple[int, int]) -> list[Rle]:
    """Objects of a mask, band by band."""
    if path is None:
        return []
    try:
        with gdal_env(), open_dataset(path, _DRIVERS[path.suffix.lower()]) as source:
            values: NDArray[Any] = source.read()
            nodata = source.nodata
    except RasterioError as error:
        msg = f"{path}: cannot be read ({error}); export again"
        raise UsageError(msg) from error
    if values.shape[1:] != size:
        msg = f"{path}: is {values.shape[2]} x {values.shape[1]} pixels, its chip {size[1]} x {size[0]}; export again"
        raise UsageError(msg)
    found: list[Rle] = []
    for band in values:
        ids = [value for value in np.unique(band).tolist() if value not in (0, nodata)]
        found += [rle.encode(np.asfortranarray(band == value, np.uint8)) for value in ids]
    return found
