"""Instance datasets in YOLO's segmentation format: images, a text file with polygons for each, and ``data.yaml``."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from rsgeoseg.datasets.instances import InstanceDataset
from rsgeoseg.datasets.labelled import ImageFile, LabelledImage, size_of
from rsgeoseg.errors import UsageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from rsgeoseg.datasets.instances import Transforms
    from rsgeoseg.datasets.labelled import Rings

_LAYOUT = """  ROOT/
    data.yaml                names of the classes; train and val: folders of images
    images/train/A.png ...
    labels/train/A.txt ...   a line per object: class x1 y1 x2 y2 x3 y3 ..., 0-1 of width and height"""
_ENDINGS = {".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp"}


class YoloInstances(InstanceDataset):
    """Images and polygons of a YOLO segmentation folder, in the order of the images' names.

    Images without a label file, or with an empty one, are images of nothing. Label files lie where YOLO looks for
    them: the path of the image with its last folder ``images`` called ``labels``.

    Args:
        root: the folder with ``data.yaml``, or the YAML file itself.
        split: an entry of it: ``train``, ``val`` or ``test``.
        transforms: applied to every sample.

    Raises:
        UsageError: the YAML file is missing, is none, or lacks the split; a label cannot be read as a polygon.
    """

    def __init__(self, root: Path | str, split: str = "train", transforms: Transforms | None = None) -> None:
        root = Path(root)
        self.yaml = root if root.suffix.lower() in {".yaml", ".yml"} else root / "data.yaml"
        document = read_data_yaml(self.yaml)
        super().__init__(_class_names(document["names"]), transforms)
        if not document.get(split):
            msg = f"{self.yaml}: has no split {split}; it has {', '.join(splits_of(document)) or 'none'}"
            raise UsageError(msg)
        base = self.yaml.parent / str(document.get("path") or ".")
        if not base.is_dir():  # YOLO keeps its own folder of data sets, which is not ours to know
            base = self.yaml.parent
        files = _image_files(base, document[split], self.yaml)
        ordered = sorted((_name(file, base), file) for file in files)
        self.images = tuple(_labelled(name, file, number, self.classes) for number, (name, file) in enumerate(ordered))
        """All images, sorted by name."""

    def __len__(self) -> int:
        """Count images."""
        return len(self.images)

    def labelled(self, index: int) -> LabelledImage:
        """Give image ``index``."""
        return self.images[index]


def read_data_yaml(path: Path) -> dict[str, Any]:
    """Read the description of a YOLO folder.

    Raises:
        UsageError: it is missing or is something else.
    """
    if not path.is_file():
        msg = f"{path}: no such file; expected:\n{_LAYOUT}"
        raise UsageError(msg)
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        msg = f"{path}: is not YAML ({' '.join(str(error).split())[:150]})"
        raise UsageError(msg) from error
    if not isinstance(document, dict) or not isinstance(document.get("names"), list | dict):
        msg = f"{path}: does not describe a YOLO data set: it needs names, and train or val"
        raise UsageError(msg)
    return document


def splits_of(document: dict[str, Any]) -> list[str]:
    """Names of the splits that a ``data.yaml`` has."""
    return [split for split in ("train", "val", "test") if document.get(split)]


def _class_names(names: Any) -> list[str]:
    """Class names by number; numbers that are left out get their number as a name."""
    if isinstance(names, list):
        return [str(name) for name in names]
    numbered = {int(number): str(name) for number, name in names.items()}
    return [numbered.get(number, str(number)) for number in range(max(numbered, default=-1) + 1)]


def _image_files(base: Path, entry: Any, source: Path) -> list[Path]:
    """Image files of a split: a folder, a list of images (.txt), or several of them."""
    files: list[Path] = []
    for part in entry if isinstance(entry, list) else [entry]:
        place = base / str(part)
        if not place.exists():  # exports for the web say ../train/images from a folder that is not there
            place = base / str(part).removeprefix("../")
        if place.is_dir():
            files += [file for file in place.rglob("*") if file.suffix.lower() in _ENDINGS]
        elif place.is_file():
            lines = place.read_text(encoding="utf-8").split("\n")
            files += [base / line.strip() for line in lines if line.strip()]
        else:
            msg = f"{source}: {part} is neither a folder of images nor a list; expected:\n{_LAYOUT}"
            raise UsageError(msg)
    return files


def _name(file: Path, base: Path) -> str:
    return (file.relative_to(base) if file.is_relative_to(base) else file).as_posix()


def label_file(image: Path) -> Path:
    """Where YOLO looks for an image's labels: the last folder ``images`` of its path is called ``labels``."""
    parts = list(PurePosixPath(image.as_posix()).parts)
    for place in range(len(parts) - 2, -1, -1):
        if parts[place] == "images":
            parts[place] = "labels"
            break
    return Path(*parts).with_suffix(".txt")


def _labelled(name: str, file: Path, number: int, classes: tuple[str, ...]) -> LabelledImage:
    height, width = size_of(file)
    labels, shapes = _read_labels(label_file(file), len(classes), (width, height))
    return LabelledImage(
        name=name,
        image_id=number + 1,
        width=width,
        height=height,
        labels=np.array(labels, np.int64),
        shapes=tuple(shapes),
        reader=ImageFile(file),
    )


def _read_labels(path: Path, classes: int, size: tuple[int, int]) -> tuple[list[int], list[Rings]]:
    labels: list[int] = []
    shapes: list[Rings] = []
    if not path.is_file():
        return labels, shapes
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        label, ring = _read_line(line, f"{path}, line {number}", classes)
        labels.append(label)
        shapes.append((ring * size,))
    return labels, shapes


def _read_line(line: str, where: str, classes: int) -> tuple[int, NDArray[np.float64]]:
    """Class and (K, 2) relative outline of a line."""
    try:
        values = [float(word) for word in line.split()]
    except ValueError as error:
        msg = f"{where}: is not a row of numbers; a line is class x1 y1 x2 y2 x3 y3 ..."
        raise UsageError(msg) from error
    if len(values) == 5:
        msg = f"{where}: holds a box, not a polygon; this is a data set for detection, and masks are needed"
        raise UsageError(msg)
    if len(values) < 7 or len(values) % 2 == 0:
        msg = f"{where}: has {len(values)} numbers; a line is class x1 y1 x2 y2 x3 y3 ..."
        raise UsageError(msg)
    if not (values[0].is_integer() and 0 <= values[0] < classes):
        msg = f"{where}: class {values[0]:g} is not among the {classes} names of data.yaml"
        raise UsageError(msg)
    ring = np.array(values[1:], np.float64).reshape(-1, 2)
    if not (np.isfinite(ring).all() and (ring >= -0.01).all() and (ring <= 1.01).all()):
        msg = f"{where}: coordinates are not between 0 and 1; they are shares of the image's width and height"
        raise UsageError(msg)
    return int(values[0]), np.clip(ring, 0, 1)
