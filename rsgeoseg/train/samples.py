"""An endless, reproducible stream of training crops: sample k is a function of the seed and k alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from torch.utils.data import Dataset

from rsgeoseg.train.augment import AugmentConfig, Crop, draw_crop

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from rsgeoseg.datasets.coco import CocoInstances, LabelledImage

RARE_SHARE = 0.25
"""A class on a smaller share of the images is shown more often (repeat-factor sampling, LVIS section 3.3)."""


class CropStream(Dataset[Crop]):
    """Crops numbered from ``start`` on, so that a resumed training goes on where it stopped.

    Args:
        data: the training images; their pixels are kept in memory once read.
        config: augmentation.
        seed: of everything.
        start: number of the first crop.
        length: number of crops.
    """

    def __init__(self, data: CocoInstances, config: AugmentConfig, *, seed: int, start: int, length: int) -> None:
        self.data, self.config, self.seed, self.start, self.length = data, config, seed, start, length
        self._pixels: dict[int, NDArray[np.uint8]] = {}
        self._order = _repeated(data.images, len(data.classes))

    def __len__(self) -> int:
        """Count crops."""
        return self.length

    def __getitem__(self, index: int) -> Crop:
        """Draw crop ``start + index``."""
        if not 0 <= index < self.length:
            raise IndexError(index)
        number = self.start + index
        epoch, place = divmod(number, len(self._order))
        order = np.random.default_rng((self.seed, 0, epoch)).permutation(len(self._order))
        rng = np.random.default_rng((self.seed, 1, number))
        chosen = [self._order[order[place]]]
        if rng.random() < self.config.mosaic:
            chosen += [self._order[int(i)] for i in rng.integers(len(self._order), size=3)]
        images = [self.data.images[i] for i in chosen]
        return draw_crop([self._read(i) for i in chosen], images, self.config, rng)

    def _read(self, index: int) -> NDArray[np.uint8]:
        if index not in self._pixels:
            self._pixels[index] = self.data.images[index].read()
        return self._pixels[index]


def _repeated(images: tuple[LabelledImage, ...], classes: int) -> list[int]:
    """Image indices, those with rare classes more than once."""
    shown = np.zeros(classes)
    for image in images:
        shown[np.unique(image.labels)] += 1
    factor = np.maximum(1.0, np.sqrt(RARE_SHARE / np.maximum(shown / len(images), 1e-6)))
    order: list[int] = []
    for index, image in enumerate(images):
        repeats = float(factor[image.labels].max()) if len(image.labels) else 1.0
        # in half steps: an image with factor 1.5 comes three times in a list where others come twice
        order += [index] * max(1, round(2 * repeats))
    return order
