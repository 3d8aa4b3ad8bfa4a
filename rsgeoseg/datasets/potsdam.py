"""ISPRS Potsdam: buildings and cars of the 5-cm label rasters as instances, in tiles."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import rasterio
from rasterio.errors import RasterioError
from rasterio.windows import Window
from torchgeo.datasets import Potsdam2D
from torchgeo.datasets.errors import DatasetNotFoundError
from torchgeo.datasets.utils import check_integrity

from rsgeoseg.datasets.instances import InstanceDataset
from rsgeoseg.datasets.labelled import LabelledImage, components, list_missing, touches_edge
from rsgeoseg.datasets.source import check_split, refuse_download
from rsgeoseg.datasets.tiling import OVERLAP, SIZE, Tile, plan_tiles
from rsgeoseg.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from rsgeoseg.datasets.instances import Transforms
    from rsgeoseg.geo.windows import Box

ROUNDED = ("top_potsdam_4_12", "top_potsdam_6_7")
"""Images whose published labels are off the colour table: the first was re-encoded with loss, the second paints most
of its cars (252, 255, 0). Rounding every channel to 0 or 255 gives the colours that were meant."""
_LARGEST_ERROR = 87
"""How far from 0 and 255 a rounded channel may be: no channel of the two labels is within 40 of the middle."""
_UNKNOWN = 255
_WHERE = (
    "ask for it at https://www.isprs.org/education/benchmarks/UrbanSemLab/2d-sem-label-potsdam.aspx and put "
    "4_Ortho_RGBIR.zip and 5_Labels_all.zip into root"
)
_LAYOUT = """  ROOT/
    4_Ortho_RGBIR/top_potsdam_2_10_RGBIR.tif ...
    5_Labels_all/top_potsdam_2_10_label.tif ...      or in ROOT itself, where the archive puts them"""


class PotsdamInstances(InstanceDataset):
    """Buildings and cars of ISPRS Potsdam; each 8-connected region of a tile's label is one object.

    Split lists, colours and unpacking are torchgeo's (``torchgeo.datasets.Potsdam2D``). Tiles are 800 pixels as in the
    paper of RS-ISRefiner, which trains on them, and overlap like those of iSAID, so that every car is whole in one of
    them. Only a tile's own window is read. Objects that touch the edge of a tile are marked as cut; tiles without
    objects are kept.

    Args:
        root: the dataset's folder.
        split: ``train`` (24 images) or ``test`` (14 images), as in the challenge.
        transforms: applied to every sample.
        download: refused, the dataset has to be asked for.
        checksum: check the archive of the images, which must be in ``root``; torchgeo's checksum of the labels' archive
            is not a whole one.
        tile_size: side of a tile, pixels of 0.05 m.
        overlap: pixels that neighbouring tiles share.
        smallest: regions with fewer pixels are left out.
        leave_out: images, for example ``top_potsdam_4_12``.

    Raises:
        UsageError: files are missing, an image and its label differ in size, or an option is out of range.
    """

    splits = ("train", "test")
    classes = ("building", "car")

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
        smallest: int = 1,
        leave_out: Sequence[str] = (),
    ) -> None:
        super().__init__(type(self).classes, transforms)
        check_split("Potsdam", split, self.splits)
        refuse_download("Potsdam", _WHERE, download=download, checksum=False)
        self.root, self.smallest = Path(root), smallest
        if checksum:
            _check_archive(self.root)
        _unpack(self.root, split)
        names = sorted(set(Potsdam2D.splits[split]).difference(leave_out))
        parts = [part for pair in _pairs(self.root, names) for part in _parts(pair, tile_size, overlap)]
        self._parts = sorted(parts, key=lambda part: part.tile.name)

    def __len__(self) -> int:
        """Count tiles."""
        return len(self._parts)

    def labelled(self, index: int) -> LabelledImage:
        """Give tile ``index``.

        Raises:
            UsageError: the label cannot be read or has colours that are not in the table.
        """
        part = self._parts[index]
        label = _read_classes(part.pair, part.tile.box)
        found = [components(label, value=_index_of(name), smallest=self.smallest) for name in self.classes]
        shapes = [shape for of_class in found for shape in of_class]
        return LabelledImage(
            name=part.tile.name,
            image_id=index + 1,
            width=part.tile.box.width,
            height=part.tile.box.height,
            labels=np.repeat(np.arange(len(found)), [len(of_class) for of_class in found]),
            shapes=tuple(shapes),
            reader=BandsReader(part.pair.image, part.tile.box),
            cut=touches_edge(shapes, *label.shape),
        )


@dataclass(frozen=True, slots=True)
class BandsReader:
    """Reads a part of the first three bands of a raster, which are red, green and blue."""

    path: Path
    box: Box

    def __call__(self) -> NDArray[np.uint8]:
        """Read the part, (H, W, 3).

        Raises:
            UsageError: it cannot be read or is not of 8-bit bands.
        """
        bands = _read_window(self.path, self.box)
        return np.ascontiguousarray(bands.transpose(1, 2, 0))


def decode_classes(rgb: NDArray[np.uint8], *, rounded: bool) -> tuple[NDArray[np.uint8], int]:
    """Turn label colours into torchgeo's class numbers.

    Args:
        rgb: (H, W, 3).
        rounded: allow every channel to be off by up to 87.

    Returns:
        (H, W) class numbers, 255 where the colour is not in the table, and the number of such pixels.
    """
    off = _LARGEST_ERROR if rounded else 0
    near = (rgb <= off) | (rgb >= 255 - off)
    high = rgb > 127
    corner = (high[..., 0].view(np.uint8) << 2) | (high[..., 1].view(np.uint8) << 1) | high[..., 2].view(np.uint8)
    of_corner = np.full(8, _UNKNOWN, np.uint8)
    for number, colour in enumerate(Potsdam2D.colormap):
        of_corner[np.array(colour) // 255 @ [4, 2, 1]] = number
    classes = of_corner[corner]
    classes[~(near[..., 0] & near[..., 1] & near[..., 2])] = _UNKNOWN
    return classes, int(np.count_nonzero(classes == _UNKNOWN))


@dataclass(frozen=True, slots=True)
class _Pair:
    """An image and its label."""

    name: str
    image: Path
    label: Path


@dataclass(frozen=True, slots=True)
class _Part:
    """A tile of a pair."""

    tile: Tile
    pair: _Pair


def _index_of(name: str) -> int:
    return [known.lower() for known in Potsdam2D.classes].index(name)


def _check_archive(root: Path) -> None:
    archive = root / Potsdam2D.filenames[0]
    if not check_integrity(archive, Potsdam2D.md5s[0]):
        msg = f"{archive}: is missing or not the published file; get it again, or leave checksum off"
        raise UsageError(msg)


def _unpack(root: Path, split: str) -> None:
    """Unpack the archives where the images are not there yet."""
    try:
        Potsdam2D(root, split)
    except DatasetNotFoundError as error:
        msg = f"{root}: neither {Potsdam2D.image_root} nor both archives are there; {_WHERE}\nexpected:\n{_LAYOUT}"
        raise UsageError(msg) from error


def _pairs(root: Path, names: Sequence[str]) -> list[_Pair]:
    pairs = []
    for name in names:
        label = Path(f"{name}_label.tif")
        beside = (root / label).exists()
        pairs.append(
            _Pair(
                name,
                Path(Potsdam2D.image_root, f"{name}_RGBIR.tif"),
                label if beside else "5_Labels_all" / label,
            )
        )
    list_missing(root, [path.as_posix() for pair in pairs for path in (pair.image, pair.label)], _LAYOUT)
    return [_Pair(pair.name, root / pair.image, root / pair.label) for pair in pairs]


def _parts(pair: _Pair, tile_size: int, overlap: int) -> list[_Part]:
    (height, width), of_label = _size_of(pair.image), _size_of(pair.label)
    if of_label != (height, width):
        msg = (
            f"{pair.label}: is {of_label[1]} x {of_label[0]}, its image {width} x {height}; get both again, or name "
            f"{pair.name} in leave_out"
        )
        raise UsageError(msg)
    return [_Part(tile, pair) for tile in plan_tiles(pair.name, height, width, size=tile_size, overlap=overlap)]


def _read_classes(pair: _Pair, box: Box) -> NDArray[np.uint8]:
    rgb = _read_window(pair.label, box).transpose(1, 2, 0)
    classes, unknown = decode_classes(rgb, rounded=pair.name in ROUNDED)
    if unknown:
        example = tuple(rgb[classes == _UNKNOWN][0].tolist())
        place = f"x {box.x0}-{box.x1} y {box.y0}-{box.y1}"
        msg = (
            f"{pair.label}: {unknown} pixels in {place} have colours of no class, {example} for one; get the file "
            f"again, or name {pair.name} in leave_out"
        )
        raise UsageError(msg)
    return classes


def _size_of(path: Path) -> tuple[int, int]:
    try:
        with rasterio.open(path) as raster:
            return raster.height, raster.width
    except RasterioError as error:
        msg = f"{path}: cannot be read as a raster ({error}); get the file again"
        raise UsageError(msg) from error


def _read_window(path: Path, box: Box) -> NDArray[Any]:
    """Read (3, H, W) uint8: a window of a file of many blocks costs little, so nothing is kept."""
    try:
        with rasterio.open(path) as raster:
            bands = raster.read((1, 2, 3), window=Window(box.x0, box.y0, box.width, box.height))
    except (RasterioError, IndexError) as error:
        msg = f"{path}: cannot be read as an image of three bands or more ({error}); get the file again"
        raise UsageError(msg) from error
    if bands.dtype != np.uint8:
        msg = f"{path}: has {bands.dtype} bands and not 8-bit ones; get the file again"
        raise UsageError(msg)
    return np.asarray(bands)
