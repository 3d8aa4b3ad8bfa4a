"""The two mask images of an iSAID picture: one colour per class, and one per instance."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from rsgeoseg.datasets.labelled import ImageFile
from rsgeoseg.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

COLOURS = (
    (0, 0, 63),
    (0, 63, 63),
    (0, 63, 0),
    (0, 63, 127),
    (0, 63, 191),
    (0, 63, 255),
    (0, 127, 63),
    (0, 127, 127),
    (0, 0, 127),
    (0, 0, 191),
    (0, 0, 255),
    (0, 191, 127),
    (0, 127, 191),
    (0, 127, 255),
    (0, 100, 155),
)
"""R G B of the classes in the masks, as in the devkit."""
VOC_COLOURS = (
    (128, 0, 0),
    (0, 128, 0),
    (128, 128, 0),
    (0, 0, 128),
    (128, 0, 128),
    (0, 128, 128),
    (128, 128, 128),
    (64, 0, 0),
    (192, 0, 0),
    (64, 128, 0),
    (192, 128, 0),
    (64, 0, 128),
    (192, 0, 128),
    (64, 128, 128),
    (192, 128, 128),
)
"""Colours 1 to 15 of PASCAL VOC's map: tiles of other origin in iSAID's naming are coloured by class id with it."""
_KEPT_PICTURES = 2
"""Decoded pairs of masks that a process keeps: the tiles of one picture are mostly read one after the other."""


@dataclass(frozen=True, slots=True, eq=False)
class Objects:
    """All objects of a picture."""

    numbers: NDArray[np.int32]
    """(H, W), 0 = none, 1 to N."""
    labels: NDArray[np.int64]
    """(N,) indices into the classes, 0-14."""
    areas: NDArray[np.int64]
    """(N,) pixels."""


def decode_colours(rgb: NDArray[np.uint8]) -> NDArray[np.int32]:
    """Pack the colours of a mask (H, W, 3) RGB into ``R + 256 G + 65536 B``, which is the id in an instance mask.

    Returns:
        (H, W), 0 = nothing.
    """
    red, green, blue = (rgb[..., band].astype(np.int32) for band in range(3))
    packed: NDArray[np.int32] = red + (green << 8) + (blue << 16)
    return packed


@lru_cache(maxsize=_KEPT_PICTURES)
def read_objects(colours: Path, ids: Path) -> Objects:
    """Read the objects of a picture.

    Args:
        colours: the class mask, ``..._instance_color_RGB.png``.
        ids: the instance mask, ``..._instance_id_RGB.png``.

    Raises:
        UsageError: a mask cannot be read, the two differ in size or in what they cover, an instance has several
            classes, or a colour is that of no class.
    """
    coded, owners = decode_colours(ImageFile(colours)()), decode_colours(ImageFile(ids)())
    if coded.shape != owners.shape:
        raise defect(ids, f"is {size_text(owners)}, but {colours.name} {size_text(coded)}")
    stray = int(np.count_nonzero((owners != 0) != (coded != 0)))
    if stray:
        raise defect(ids, f"{stray} pixels have an instance but no class in {colours.name}, or the reverse")
    at = np.flatnonzero(owners)
    own_colour, own_id = coded.ravel()[at], owners.ravel()[at]
    found, first, inverse = np.unique(own_id, return_index=True, return_inverse=True)
    mixed = np.unique(own_id[own_colour != own_colour[first][inverse]])
    if mixed.size:
        raise defect(ids, f"{mixed.size} instances have several classes in {colours.name}, id {mixed[0]} for one")
    numbers = np.zeros(owners.shape, np.int32)
    numbers.flat[at] = inverse + 1
    areas = np.bincount(inverse, minlength=len(found)).astype(np.int64)
    return Objects(numbers, _classify(own_colour[first], colours), areas)


def defect(path: Path, what: str) -> UsageError:
    """Make the error for a file that cannot be used."""
    return UsageError(f"{path}: {what}; get the file again, or name its image in leave_out")


def size_text(raster: NDArray[Any]) -> str:
    """Say how large a raster is."""
    return f"{raster.shape[1]} x {raster.shape[0]}"


def _classify(colours: NDArray[np.int32], source: Path) -> NDArray[np.int64]:
    """Turn the packed colours of objects into class indices; a file keeps to one of the two colour maps."""
    for colour_map in (COLOURS, VOC_COLOURS):
        packed = decode_colours(np.array([colour_map], np.uint8))[0].tolist()
        if set(colours.tolist()) <= set(packed):
            return np.array([packed.index(colour) for colour in colours.tolist()], np.int64)
    ours = decode_colours(np.array([COLOURS], np.uint8))
    unknown = [(code & 255, code >> 8 & 255, code >> 16) for code in np.setdiff1d(colours, ours).tolist()]
    raise defect(source, f"R G B colours of no class of iSAID: {', '.join(map(str, unknown[:5]))}")
