"""RefSegRS: referring segmentation of crops of SkyScapes, 512 x 512 pixels at 13 cm.

Source: Yuan et al., RRSIS: Referring Remote Sensing Image Segmentation (IEEE TGRS 2024); train / val / test have
2 172 / 431 / 1 817 expressions.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from rsgeoseg.datasets.labelled import ImageFile, encode_masks, list_missing, size_of
from rsgeoseg.datasets.referring import Expression, ReferringDataset, read_lines
from rsgeoseg.datasets.source import check_split
from rsgeoseg.errors import UsageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from rsgeoseg.datasets.instances import Transforms

_LAYOUT = """  ROOT/
    images/ID.tif ...        or ID.png
    masks/ID.tif ...         or ID.png; white = object
    output_phrase_train.txt  lines: ID expression
    output_phrase_val.txt
    output_phrase_test.txt"""
_WHITE_ABOVE = 50
"""Masks hold greys where they were resampled; the authors take values above 50 as object."""


class RefSegRS(ReferringDataset):
    """RefSegRS in the layout of its authors, in the order of the split's file; it has no boxes and no classes.

    Args:
        root: dataset folder.
        split: ``train``, ``val`` or ``test``.
        transforms: applied to every sample.

    Raises:
        UsageError: files are missing, or a line is not an ID and an expression.
    """

    splits: ClassVar[tuple[str, ...]] = ("train", "val", "test")

    def __init__(self, root: Path | str, split: str = "train", *, transforms: Transforms | None = None) -> None:
        super().__init__((), transforms)
        check_split("RefSegRS", split, self.splits)
        root, listing = Path(root), f"output_phrase_{split}.txt"
        list_missing(root, ["images", "masks", listing], _LAYOUT)
        lines = []
        for number, line in read_lines(root / listing):
            stem, _, text = line.partition(" ")
            if not text.strip() or Path(stem).name != stem:
                msg = f"{root / listing}: line {number} is not an ID and an expression: '{line}'"
                raise UsageError(msg)
            lines.append((_file(root, "images", stem), _file(root, "masks", stem), text.strip()))
        list_missing(root, sorted({name for image, mask, _ in lines for name in (image, mask)}), _LAYOUT)
        ids = {name: number for number, name in enumerate(sorted({image for image, _, _ in lines}), start=1)}
        self.phrases = tuple(_Phrase(root, ids[image], image, mask, text) for image, mask, text in lines)
        """All lines of the split's file."""

    def __len__(self) -> int:
        """Count expressions."""
        return len(self.phrases)

    def expression(self, index: int) -> Expression:
        """Give expression ``index``; reads its mask.

        Raises:
            UsageError: the mask cannot be read, does not fit its image, or is neither black nor white.
        """
        return self.phrases[index].expression()


@dataclass(frozen=True, slots=True)
class _Phrase:
    root: Path
    image_id: int
    image: str
    mask: str
    text: str

    def expression(self) -> Expression:
        height, width = size_of(self.root / self.image)
        mask = _read_mask(self.root / self.mask)
        if mask.shape != (height, width):
            sizes = f"{mask.shape[1]} x {mask.shape[0]} and its image {width} x {height}"
            msg = f"{self.root / self.mask}: the mask is {sizes}; mend the file or remove its line"
            raise UsageError(msg)
        return Expression(
            name=self.image,
            image_id=self.image_id,
            text=self.text,
            width=width,
            height=height,
            shape=encode_masks(mask[None])[0],
            reader=ImageFile(self.root / self.image),
        )


def _file(root: Path, folder: str, stem: str) -> str:
    """Find an image by its name without suffix; where there is none, the name that it should have."""
    names = [f"{folder}/{stem}{suffix}" for suffix in (".tif", ".png")]
    return next((name for name in names if (root / name).is_file()), names[0])


def _read_mask(path: Path) -> NDArray[np.bool_]:
    pixels = ImageFile(path)()[..., 0]
    highest = int(pixels.max())
    if 0 < highest <= _WHITE_ABOVE:
        msg = f"{path}: the mask's highest value is {highest}, but white is object; multiply masks of 0 and 1 by 255"
        raise UsageError(msg)
    return np.asarray(pixels > _WHITE_ABOVE)
