"""Any instance dataset as a folder that other programs read: COCO, or YOLO's polygons.

A folder is written beside its final name and renamed when it is complete; an existing one is never touched.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import shapely
from pycocotools import mask as rle
from rasterio.features import shapes as trace

from rsgeoseg.errors import OutputError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray

    from rsgeoseg.datasets.instances import InstanceDataset
    from rsgeoseg.datasets.labelled import LabelledImage, Shape

logger = logging.getLogger(__name__)

_FORBIDDEN = re.compile(r'[<>:"/\\|?*\x00-\x1f]')
_RESERVED = re.compile(r"^(con|prn|aux|nul|com\d|lpt\d)(\.|$)", re.IGNORECASE)
_LONGEST_NAME = 120
_DECIMALS = 7
"""Of YOLO's relative coordinates: a hundredth of a pixel in images of 100,000."""


def write_coco(splits: Mapping[str, InstanceDataset], folder: Path | str) -> Path:
    """Write datasets as COCO: ``images/*.png`` and ``annotations/instances_SPLIT.json``.

    `rsgeoseg.datasets.coco.CocoInstances` reads the same masks and pixels back.

    Args:
        splits: dataset by name, such as ``train`` and ``val``.
        folder: a new folder.

    Returns:
        The folder.

    Raises:
        OutputError: it exists, or cannot be written.
        UsageError: an image cannot be read.
    """
    names = _file_names(splits)
    with _new_folder(Path(folder)) as staged:
        (staged / "images").mkdir()
        (staged / "annotations").mkdir()
        for split, dataset in splits.items():
            document = dataset.to_coco()
            files = {}
            for index in range(len(dataset)):
                image = dataset.labelled(index)
                files[image.image_id] = f"{names[split, image.name]}.png"
                _write_png(staged / "images" / files[image.image_id], image)
            for entry in document["images"]:
                entry["file_name"] = files[entry["id"]]
            text = json.dumps(document, ensure_ascii=False, allow_nan=False)
            (staged / "annotations" / f"instances_{split}.json").write_text(text, encoding="utf-8")
    return Path(folder)


def write_yolo(splits: Mapping[str, InstanceDataset], folder: Path | str) -> Path:
    """Write datasets for YOLO segmentation: ``images/SPLIT/*.png``, ``labels/SPLIT/*.txt`` and ``data.yaml``.

    A line of a label file is one polygon, so holes are filled and only the largest part of an object in several parts
    is written; a warning counts both.

    Args:
        splits: dataset by name; ``train`` and ``val`` are what YOLO looks for.
        folder: a new folder.

    Returns:
        The folder.

    Raises:
        OutputError: it exists, or cannot be written.
        UsageError: an image cannot be read, or the datasets have different classes.
    """
    classes = {dataset.classes for dataset in splits.values()}
    if len(classes) != 1:
        msg = "YOLO has one list of classes for all splits, but these have different ones: give the classes"
        raise UsageError(msg)
    names = _file_names(splits)
    lost = {"holes": 0, "parts": 0}
    with _new_folder(Path(folder)) as staged:
        for split, dataset in splits.items():
            (staged / "images" / split).mkdir(parents=True)
            (staged / "labels" / split).mkdir(parents=True)
            for index in range(len(dataset)):
                image = dataset.labelled(index)
                name = names[split, image.name]
                _write_png(staged / "images" / split / f"{name}.png", image)
                lines = [
                    _yolo_line(label, shape, image, lost)
                    for label, shape in zip(image.labels.tolist(), image.shapes, strict=True)
                ]
                (staged / "labels" / split / f"{name}.txt").write_text("".join(lines), encoding="ascii")
        (staged / "data.yaml").write_text(_data_yaml(list(splits), classes.pop()), encoding="utf-8")
    if any(lost.values()):
        logger.warning(
            "%s: YOLO holds one outline per object: the holes of %d objects were filled, and of %d objects in several "
            "parts only the largest part was written; COCO holds both",
            folder,
            lost["holes"],
            lost["parts"],
        )
    return Path(folder)


def safe_names(names: list[str]) -> list[str]:
    """Turn names of images into file names without ending that every system takes.

    Folders become ``-``, forbidden characters ``_``, a reserved name (``con``) gets a ``_`` in front, long names are
    cut; names that would be the same on a system that ignores case are numbered.
    """
    taken: set[str] = set()
    out = []
    for name in names:
        stem = str(Path(name).with_suffix("")) if Path(name).suffix.lower() in _IMAGE_ENDINGS else name
        stem = _FORBIDDEN.sub("_", stem.replace("\\", "/").replace("/", "-"))[:_LONGEST_NAME].rstrip(" .") or "image"
        if _RESERVED.match(stem):
            stem = f"_{stem}"
        free, number = stem, 1
        while free.lower() in taken:
            number += 1
            free = f"{stem}_{number}"
        taken.add(free.lower())
        out.append(free)
    return out


_IMAGE_ENDINGS = {".png", ".jpg", ".jpeg", ".tif", ".tiff", ".jp2", ".bmp", ".webp"}


def _file_names(splits: Mapping[str, InstanceDataset]) -> dict[tuple[str, str], str]:
    """File name of every image of every split, all different."""
    for split in splits:
        if not re.fullmatch(r"[A-Za-z0-9_-]+", split):
            msg = f"{split!r} cannot be a split's name: use letters, digits, - and _"
            raise UsageError(msg)
    keys = [(split, data.labelled(i).name) for split, data in splits.items() for i in range(len(data))]
    return dict(zip(keys, safe_names([name for _, name in keys]), strict=True))


@contextmanager
def _new_folder(final: Path) -> Iterator[Path]:
    """Give a folder to fill, which gets its final name when the block ends well."""
    if os.path.lexists(final):
        msg = f"{final} exists; choose another folder or remove it"
        raise OutputError(msg)
    staged = None
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        staged = Path(tempfile.mkdtemp(prefix=f".{final.name[:60]}.", suffix=".part", dir=final.parent))
        staged.chmod(0o755)  # mkdtemp's folders are for their owner alone
        yield staged
        if os.path.lexists(final):
            msg = f"{final} appeared while it was being written; choose another folder"
            raise OutputError(msg)
        staged.rename(final)
    except OSError as error:
        msg = f"cannot write {final}: {error.strerror or error}; check the space and the permissions"
        raise OutputError(msg) from error
    finally:
        if staged is not None:
            shutil.rmtree(staged, ignore_errors=True)


def _write_png(path: Path, image: LabelledImage) -> None:
    done, encoded = cv2.imencode(".png", cv2.cvtColor(image.read(), cv2.COLOR_RGB2BGR))
    assert done
    path.write_bytes(encoded.tobytes())  # OpenCV cannot write to paths with other letters on Windows


def _data_yaml(splits: list[str], classes: tuple[str, ...]) -> str:
    """Describe the folder; JSON strings are YAML too, whatever is in them."""
    lines = ["path: .", *(f"{split}: images/{split}" for split in splits)]
    lines += [f"{split}: images/{splits[0]}" for split in ("train", "val") if split not in splits]  # YOLO wants both
    lines += [f"nc: {len(classes)}", "names:"]
    lines += [f"  {index}: {json.dumps(name, ensure_ascii=False)}" for index, name in enumerate(classes)]
    return "\n".join(lines) + "\n"


def _yolo_line(label: int, shape: Shape, image: LabelledImage, lost: dict[str, int]) -> str:
    """Write an object as class and outline, 0-1 of width and height; counts what is lost."""
    ring, holes, parts = largest_outline(shape)
    lost["holes"] += holes
    lost["parts"] += parts > 1
    relative = np.clip(ring / (image.width, image.height), 0, 1)
    numbers = " ".join(f"{value:.{_DECIMALS}f}".rstrip("0").rstrip(".") for value in relative.ravel().tolist())
    return f"{label} {numbers}\n"


def largest_outline(shape: Shape) -> tuple[NDArray[np.float64], bool, int]:
    """Give the outline of an object's largest part.

    Returns:
        (K, 2) x y pixels, whether the part has holes, and the number of parts.
    """
    if not isinstance(shape, dict):
        return max(shape, key=lambda ring: shapely.Polygon(ring).area), False, len(shape)
    mask: NDArray[Any] = rle.decode(shape)
    found = [shapely.geometry.shape(part) for part, _ in trace(mask, mask=mask != 0, connectivity=4)]
    whole = max(found, key=lambda part: part.area)
    return np.asarray(whole.exterior.coords)[:-1], bool(whole.interiors), len(found)
