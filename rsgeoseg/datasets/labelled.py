"""One image and the objects it shows: what every instance dataset gives and every training reads."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any, TypeAlias

import cv2
import numpy as np
from pycocotools import mask as rle

from rsgeoseg.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

Rings: TypeAlias = "tuple[NDArray[np.float64], ...]"
"""Outlines of one object, (K, 2) x y pixels each; their union is the object, as in COCO."""
Rle: TypeAlias = "dict[str, Any]"
"""COCO's compressed run-length encoding of one object in its whole image, ``size`` (H, W) and ``counts`` bytes."""
Shape: TypeAlias = "Rings | Rle"
Reader: TypeAlias = "Callable[[], NDArray[np.uint8]]"
"""Gives the pixels (H, W, 3) uint8 RGB; can be pickled, so that worker processes can read."""


@dataclass(frozen=True, slots=True)
class ImageFile:
    """Reads an 8-bit image file as RGB."""

    path: Path

    def __call__(self) -> NDArray[np.uint8]:
        """Read the file.

        Raises:
            UsageError: it cannot be read as an image.
        """
        # imdecode and not imread: OpenCV cannot open paths with other letters on Windows
        try:
            pixels = cv2.imdecode(np.fromfile(self.path, np.uint8), cv2.IMREAD_COLOR)
        except (OSError, cv2.error):
            pixels = None
        if pixels is None:
            msg = f"{self.path}: cannot be read as an image; check the file or leave it out of the annotations"
            raise UsageError(msg)
        return np.asarray(cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB))


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelledImage:
    """One image and what it shows; the pixels are read when asked for."""

    name: str
    """Unique in its dataset: path below the dataset's root with forward slashes, or a chip's name."""
    image_id: int
    """Unique in its dataset: COCO image id where there is one."""
    width: int
    """Columns."""
    height: int
    """Rows."""
    labels: NDArray[np.int64]
    """(N,) indices into the dataset's classes."""
    shapes: tuple[Shape, ...]
    """N objects."""
    reader: Reader
    """Where the pixels come from."""
    cut: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, np.bool_))
    """(N,) True where the image's edge cuts the object; empty where that is not known."""

    def read(self) -> NDArray[np.uint8]:
        """Read the pixels, (H, W, 3) uint8 RGB.

        Raises:
            UsageError: they cannot be read, or their size differs from the annotation.
        """
        pixels = self.reader()
        if pixels.shape[:2] != (self.height, self.width):
            sizes = f"{pixels.shape[1]} x {pixels.shape[0]} but annotated as {self.width} x {self.height}"
            msg = f"{self.name}: is {sizes}; its masks would lie beside their objects: mend the file or leave it out"
            raise UsageError(msg)
        return pixels

    def masks(self) -> NDArray[np.uint8]:
        """Draw the objects, (N, H, W) in {0, 1}."""
        out = np.zeros((len(self.shapes), self.height, self.width), np.uint8)
        for mask, shape in zip(out, self.shapes, strict=True):
            mask[...] = rle.decode(to_rle(shape, self.height, self.width))
        return out


def to_rle(shape: Shape, height: int, width: int) -> Rle:
    """Encode a shape as pycocotools draws and scores it.

    Args:
        shape: rings, or an encoding (then returned as it is).
        height: of the image, pixels.
        width: of the image, pixels.
    """
    if isinstance(shape, dict):
        return shape
    runs = rle.frPyObjects([ring.ravel().tolist() for ring in shape], height, width)
    encoded: Rle = rle.merge(runs)
    return encoded


def encode_masks(masks: NDArray[Any]) -> list[Rle]:
    """Encode masks (N, H, W), nonzero = object."""
    return [rle.encode(np.asfortranarray(mask != 0, np.uint8)) for mask in masks]


def bounds(shape: Shape) -> tuple[float, float, float, float]:
    """Return x0 y0 x1 y1 of a shape, pixels."""
    if isinstance(shape, dict):
        x, y, w, h = rle.toBbox(shape).tolist()
        return x, y, x + w, y + h
    points = np.concatenate(shape)
    (x0, y0), (x1, y1) = points.min(0).tolist(), points.max(0).tolist()
    return x0, y0, x1, y1


def tight_boxes(masks: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return (N, 4) half-open x0 y0 x1 y1 of masks (N, H, W); zeros for an empty mask."""
    boxes = np.zeros((len(masks), 4), np.float32)
    for box, mask in zip(boxes, masks, strict=True):
        ys, xs = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        if len(ys):
            box[:] = xs[0], ys[0], xs[-1] + 1, ys[-1] + 1
    return boxes


def encode_numbered(numbers: NDArray[Any], count: int) -> list[Rle]:
    """Encode all objects of a raster in one pass over it; an object may have several parts.

    Args:
        numbers: (H, W) integers, 0 = no object, 1 to ``count`` = that object.
        count: how many objects.
    """
    height, width = numbers.shape
    column_wise = numbers.ravel(order="F")  # the order of COCO's run lengths
    starts = np.flatnonzero(np.diff(column_wise, prepend=-1))
    stops = np.append(starts[1:], column_wise.size)
    owners = column_wise[starts]
    by_owner = np.argsort(owners, kind="stable")
    first_runs = np.searchsorted(owners[by_owner], np.arange(1, count + 2))
    found: list[Rle] = []
    for first, last in pairwise(first_runs.tolist()):
        mine = by_owner[first:last]
        changes = np.concatenate([[0], np.column_stack([starts[mine], stops[mine]]).ravel(), [column_wise.size]])
        lengths = np.diff(changes)
        runs = lengths[:-1] if lengths[-1] == 0 else lengths
        found.append(rle.frPyObjects({"size": [height, width], "counts": runs.tolist()}, height, width))
    return found


def components(label: NDArray[Any], *, value: int | None = None, smallest: int = 1) -> list[Rle]:
    """Split a raster into its 8-connected components, one object each.

    Args:
        label: (H, W) raster.
        value: the components of this value; None = of everything but zero.
        smallest: components with fewer pixels are left out.

    Returns:
        Encoded masks, from the top down.
    """
    wanted = np.asarray(label != 0 if value is None else label == value, np.uint8)
    _, numbers, stats, _ = cv2.connectedComponentsWithStats(wanted, connectivity=8)
    kept = stats[:, cv2.CC_STAT_AREA] >= smallest
    kept[0] = False  # the background
    renumbered = np.cumsum(kept) * kept
    return encode_numbered(renumbered[numbers], int(kept.sum()))


def touches_edge(shapes: Sequence[Rle], height: int, width: int) -> NDArray[np.bool_]:
    """Tell which encoded objects touch the edge of their image, so that it may cut them: (N,)."""
    if not shapes:
        return np.zeros(0, np.bool_)
    x, y, w, h = rle.toBbox(list(shapes)).T
    touching: NDArray[np.bool_] = (x == 0) | (y == 0) | (x + w == width) | (y + h == height)
    return touching


def read_label(path: Path) -> NDArray[np.uint8]:
    """Read a label raster of one 8-bit or 1-bit band, (H, W); the set bits of a 1-bit raster are 255.

    Three equal bands count as one: some labels are grey images stored as RGB.

    Raises:
        UsageError: it cannot be read, or has several bands or a palette.
    """
    # OpenCV and not GDAL: GDAL gives the bits of a 1-bit TIFF as stored, which are the other way round where its
    # header says that white is zero, as it does in the WHU building dataset
    try:
        label = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_UNCHANGED)
    except (OSError, cv2.error):
        label = None
    if label is not None and label.ndim == 3 and (label == label[..., :1]).all():
        label = label[..., 0]
    if label is None or label.ndim != 2 or label.dtype != np.uint8:
        what = "cannot be read" if label is None else f"is {label.shape} {label.dtype}, not one 8-bit band"
        msg = f"{path}: label raster {what}; get the file again"
        raise UsageError(msg)
    return np.asarray(label)


def size_of(path: Path) -> tuple[int, int]:
    """Return height and width of an image file without reading its pixels.

    Raises:
        UsageError: it is not an image.
    """
    from PIL import Image, UnidentifiedImageError  # noqa: PLC0415  (only for its header)

    try:
        with Image.open(path) as image:
            return image.height, image.width
    except (OSError, UnidentifiedImageError) as error:
        msg = f"{path}: cannot be read as an image ({error})"
        raise UsageError(msg) from error


def list_missing(root: Path, wanted: Sequence[str], layout: str) -> None:
    """Refuse a dataset folder that lacks files.

    Args:
        root: the dataset's folder.
        wanted: paths below it.
        layout: a picture of the expected folder, shown in the message.

    Raises:
        UsageError: some are missing; the message counts them, names the first five and shows the layout.
    """
    missing = [name for name in wanted if not (root / name).exists()]
    if missing:
        first = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
        msg = f"{root}: {len(missing)} of {len(wanted)} expected files are missing: {first}\nexpected:\n{layout}"
        raise UsageError(msg)
