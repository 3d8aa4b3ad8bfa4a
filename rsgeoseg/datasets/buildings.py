"""Buildings of semantic label rasters, one raster per image, as instances."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from rsgeoseg.datasets.instances import InstanceDataset
from rsgeoseg.datasets.labelled import ImageFile, LabelledImage, components, read_label, touches_edge
from rsgeoseg.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from rsgeoseg.datasets.instances import Transforms


class Buildings(InstanceDataset):
    """Images and label rasters; each 8-connected region of buildings is one object.

    Constructing it reads no raster; a label whose size differs from its image's is refused when the pixels are read.

    Args:
        root: images are named by their path below it.
        pairs: label raster of each image.
        values: all values that a label may have.
        building: the value of buildings; None = everything but zero.
        smallest: regions with fewer pixels are left out.
        transforms: applied to every sample.

    Raises:
        UsageError: there are no images.
    """

    classes = ("building",)

    def __init__(
        self,
        root: Path | str,
        pairs: Mapping[Path, Path],
        *,
        values: Collection[int],
        building: int | None = None,
        smallest: int = 1,
        transforms: Transforms | None = None,
    ) -> None:
        super().__init__(type(self).classes, transforms)
        if not pairs:
            msg = f"{root}: holds no images; check that the dataset is unpacked there"
            raise UsageError(msg)
        self.root, self.building, self.smallest = Path(root), building, smallest
        self._pairs = sorted(pairs.items(), key=lambda pair: self._name(pair[0]))
        self._allowed = np.isin(np.arange(256), list(values))

    def __len__(self) -> int:
        """Count images."""
        return len(self._pairs)

    def labelled(self, index: int) -> LabelledImage:
        """Give image ``index``.

        Raises:
            UsageError: its label cannot be read or has other values than those of the dataset.
        """
        image, label_path = self._pairs[index]
        label = read_label(label_path)
        unknown = ~self._allowed[label]
        if unknown.any():
            values = ", ".join(map(str, np.unique(label[unknown])[:5].tolist()))
            msg = f"{label_path}: {int(unknown.sum())} pixels have values of no class ({values}); get the file again"
            raise UsageError(msg)
        shapes = components(label, value=self.building, smallest=self.smallest)
        height, width = label.shape
        return LabelledImage(
            name=self._name(image),
            image_id=index + 1,
            width=width,
            height=height,
            labels=np.zeros(len(shapes), np.int64),
            shapes=tuple(shapes),
            reader=ImageFile(image),
            cut=touches_edge(shapes, height, width),
        )

    def _name(self, image: Path) -> str:
        return image.relative_to(self.root).as_posix()
