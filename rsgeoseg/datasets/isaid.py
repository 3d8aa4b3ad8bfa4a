"""iSAID: instances of fifteen classes in the aerial images of DOTA, whole or as the 800-pixel tiles of its devkit.

Layout, colours and tiling: https://github.com/CAPTAIN-WHU/iSAID_Devkit. The annotation files in COCO format are not
read: their category ids differ between ``iSAID_train.json`` and ``iSAID_val.json`` and they lack the images' sizes
(issue 35 of the devkit), while the two mask images of every picture hold all that is needed.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np

from rsgeoseg.datasets.instances import InstanceDataset
from rsgeoseg.datasets.isaid_masks import defect, read_objects, size_text
from rsgeoseg.datasets.labelled import (
    ImageFile,
    LabelledImage,
    encode_numbered,
    list_missing,
    size_of,
    touches_edge,
)
from rsgeoseg.datasets.source import check_split, refuse_download
from rsgeoseg.datasets.tiling import OVERLAP, SIZE, TileReader, parse_tile, plan_tiles
from rsgeoseg.errors import OutputError, UsageError
from rsgeoseg.geo.windows import Box

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rsgeoseg.datasets.instances import Transforms

LEFT_OUT = ("P1527", "P1530")
"""Images that the devkit does not cut."""
_COLOUR, _ID = "_instance_color_RGB.png", "_instance_id_RGB.png"
_WHERE = (
    "get the images from https://captain-whu.github.io/DOTA and the masks from https://captain-whu.github.io/iSAID, "
    "and unpack them below root"
)
_LAYOUT = """  ROOT/
    train/ val/
      images/P0002.png ...                         images of DOTA, or tiles such as P0002_0_800_600_1400.png
      images/P0002_instance_color_RGB.png ...      classes, or in Semantic_masks/images/
      images/P0002_instance_id_RGB.png ...         instances, or in Instance_masks/images/"""


class ISAID(InstanceDataset):
    """iSAID's train or val images as tiles.

    Whole images are cut on the fly; images that are tiles already are taken as they are. Each process keeps the last
    two decoded images: where tiles are read in random order, write them once with ``tile_dataset``. An object is
    marked as cut where it touches its tile's edge or goes on outside it. Tiles without objects are kept.

    Args:
        root: the dataset's folder.
        split: ``train`` or ``val``; the masks of ``test`` are not published.
        transforms: applied to every sample.
        download: refused, the message says where the files are.
        checksum: refused, none are published.
        tile_size: side of a tile, pixels; an image is cut where both of its sides are longer.
        overlap: pixels that neighbouring tiles share.
        leave_out: images, by name without extension. By default those that the devkit leaves out.

    Raises:
        UsageError: the split has no masks or does not exist, files are missing, or an option is out of range.
    """

    splits = ("train", "val", "test")
    classes = (
        "ship",
        "storage_tank",
        "baseball_diamond",
        "tennis_court",
        "basketball_court",
        "Ground_Track_Field",
        "Bridge",
        "Large_Vehicle",
        "Small_Vehicle",
        "Helicopter",
        "Swimming_pool",
        "Roundabout",
        "Soccer_ball_field",
        "plane",
        "Harbor",
    )
    """In the order of the devkit's class ids, 1 to 15, which are the category ids."""

    def __init__(
        self,
        root: Path | str,
        split: str = "train",
        transforms: Transforms | None = None,
        download: bool = False,
        checksum: bool = False,
        *,
        tile_size: int = SIZE,
        overlap: int = OVERLAP,
        leave_out: Sequence[str] = LEFT_OUT,
    ) -> None:
        super().__init__(type(self).classes, transforms)
        check_split("iSAID", split, self.splits)
        refuse_download("iSAID", _WHERE, download=download, checksum=checksum)
        if split == "test":
            msg = "iSAID's test masks are held back by its evaluation server; give split 'train' or 'val'"
            raise UsageError(msg)
        self.root = Path(root)
        parts = [
            part
            for picture in _pictures(self.root, split, leave_out, with_masks=True)
            for part in _parts(picture, tile_size, overlap)
        ]
        self._parts = sorted(parts, key=lambda part: part.name)

    def __len__(self) -> int:
        """Count tiles."""
        return len(self._parts)

    def labelled(self, index: int) -> LabelledImage:
        """Give tile ``index``.

        Raises:
            UsageError: a mask cannot be read, has another size than its image, a colour of no class, or an instance
                of several classes.
        """
        part = self._parts[index]
        objects = read_objects(part.picture.colours, part.picture.ids)
        if objects.numbers.shape != (part.height, part.width):
            raise defect(part.picture.ids, f"is {size_text(objects.numbers)}, its image {part.width} x {part.height}")
        numbers = objects.numbers[part.box.as_slices()]
        pixels = np.bincount(numbers.ravel(), minlength=len(objects.labels) + 1)[1:]
        present = np.flatnonzero(pixels)
        renumbered = np.zeros(len(objects.labels) + 1, np.int32)
        renumbered[present + 1] = np.arange(1, len(present) + 1)
        shapes = encode_numbered(renumbered[numbers], len(present))
        return LabelledImage(
            name=f"{part.name}.png",
            image_id=index + 1,
            width=part.box.width,
            height=part.box.height,
            labels=objects.labels[present],
            shapes=tuple(shapes),
            reader=TileReader(part.picture.image, part.box),
            cut=touches_edge(shapes, *numbers.shape) | (pixels[present] < objects.areas[present]),
        )


def tile_dataset(
    root: Path | str,
    folder: Path | str,
    *,
    split: str = "train",
    tile_size: int = SIZE,
    overlap: int = OVERLAP,
    leave_out: Sequence[str] = LEFT_OUT,
) -> int:
    """Cut the images of a split and their masks into tiles, in the devkit's layout and naming.

    The tiles appear under their final name all at once, when all are written; images of ``test`` have no masks.

    Args:
        root: the dataset's folder, see ``ISAID``.
        folder: gets ``SPLIT/images/``; ``SPLIT`` must not exist in it yet.
        split: ``train``, ``val`` or ``test``.
        tile_size: side of a tile, pixels.
        overlap: pixels that neighbouring tiles share.
        leave_out: images, by name without extension.

    Returns:
        The number of tiles.

    Raises:
        UsageError: files are missing or cannot be read.
        OutputError: the tiles exist already or cannot be written.
    """
    check_split("iSAID", split, ISAID.splits)
    pictures = _pictures(Path(root), split, leave_out, with_masks=split != "test")
    final = Path(folder) / split
    if final.exists():
        msg = f"{final} exists; choose another folder or remove it"
        raise OutputError(msg)
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        staged = Path(tempfile.mkdtemp(prefix=f".{split}.", suffix=".part", dir=final.parent))
        try:
            (staged / split / "images").mkdir(parents=True)
            written = sum(_write_parts(picture, staged / split / "images", tile_size, overlap) for picture in pictures)
            (staged / split).rename(final)
        finally:
            shutil.rmtree(staged, ignore_errors=True)
    except OSError as error:
        msg = f"{final}: cannot be written: {error.strerror or error}"
        raise OutputError(msg) from error
    return written


@dataclass(frozen=True, slots=True)
class _Picture:
    """The files of one image."""

    image: Path
    colours: Path
    ids: Path

    @property
    def stem(self) -> str:
        return self.image.stem


@dataclass(frozen=True, slots=True)
class _Part:
    """A tile of a picture."""

    name: str
    picture: _Picture
    height: int
    """Of the picture."""
    width: int
    """Of the picture."""
    box: Box


def _pictures(root: Path, split: str, leave_out: Sequence[str], *, with_masks: bool) -> list[_Picture]:
    """Find the images of a split and, if asked for, their masks."""
    folder = Path(split) / "images"
    list_missing(root, [folder.as_posix()], _LAYOUT)
    names = {entry.name for entry in os.scandir(root / folder) if entry.name.endswith(".png")}
    images = {name.removesuffix(".png") for name in names if not name.endswith((_COLOUR, _ID))}
    stems = sorted(images.difference(leave_out))
    if not stems:
        msg = f"{root / folder}: holds no PNG image to read\nexpected:\n{_LAYOUT}"
        raise UsageError(msg)
    pictures = []
    for stem in stems:
        beside = stem + _COLOUR in names or stem + _ID in names
        colours, ids = (
            (folder, folder)
            if beside
            else (
                Path(split) / "Semantic_masks" / "images",
                Path(split) / "Instance_masks" / "images",
            )
        )
        pictures.append(_Picture(folder / f"{stem}.png", colours / (stem + _COLOUR), ids / (stem + _ID)))
    if with_masks:
        wanted = [mask.as_posix() for picture in pictures for mask in (picture.colours, picture.ids)]
        list_missing(root, wanted, _LAYOUT)
    return [_Picture(root / picture.image, root / picture.colours, root / picture.ids) for picture in pictures]


def _parts(picture: _Picture, tile_size: int, overlap: int) -> list[_Part]:
    parsed = parse_tile(picture.stem)
    if parsed is not None:  # a tile already; its name tells its size
        height, width = parsed[1].height, parsed[1].width
        return [_Part(picture.stem, picture, height, width, Box(0, 0, width, height))]
    height, width = size_of(picture.image)
    tiles = plan_tiles(picture.stem, height, width, size=tile_size, overlap=overlap)
    return [_Part(tile.name, picture, height, width, tile.box) for tile in tiles]


def _write_parts(picture: _Picture, folder: Path, tile_size: int, overlap: int) -> int:
    """Write the tiles of an image and of the masks that it has; what is not cut is copied byte for byte."""
    parts = _parts(picture, tile_size, overlap)
    endings = {picture.image: ".png", picture.colours: _COLOUR, picture.ids: _ID}
    for path, ending in endings.items():
        if not path.exists():
            continue
        if len(parts) == 1:
            shutil.copyfile(path, folder / (parts[0].name + ending))
            continue
        pixels = ImageFile(path)()
        if pixels.shape[:2] != (parts[0].height, parts[0].width):
            raise defect(path, f"is {size_text(pixels)}, its image {parts[0].width} x {parts[0].height}")
        for part in parts:
            bgr = cv2.cvtColor(pixels[part.box.as_slices()], cv2.COLOR_RGB2BGR)
            (folder / (part.name + ending)).write_bytes(cv2.imencode(".png", bgr)[1].tobytes())
    return len(parts)
