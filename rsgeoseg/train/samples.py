"""An endless, reproducible stream of training crops: sample k is a function of the seed and k alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from torch.utils.data import Dataset

from rsgeoseg.train.augment import AugmentConfig, Crop, draw_crop

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from rsgeoseg.datasets.instances import InstanceDataset

PIXELS_KEPT = 512 << 20
"""Bytes of decoded images that every process keeps."""
RARE_SHARE = 0.25
"""A class on a smaller share of the images is shown more often (repeat-factor sampling, LVIS section 3.3)."""


class CropStream(Dataset[Crop]):
    """Crops numbered from ``start`` on, so that a resumed training goes on where it stopped.

    Args:
        data: the training images; the pixels of the latest ones are kept in memory.
        config: augmentation.
        seed: of everything.
        start: number of the first crop.
        length: number of crops.
        variants: different crops per image, which then come again; 0 = all differ.
    """

    def __init__(
        self, data: InstanceDataset, config: AugmentConfig, *, seed: int, start: int, length: int, variants: int = 0
    ) -> None:
        self.data, self.config, self.seed, self.start, self.length = data, config, seed, start, length
        self.variants = variants
        self._pixels: dict[int, NDArray[np.uint8]] = {}
        self._order = _repeated([data.labelled(i).labels for i in range(len(data))], len(data.classes))

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
        entry = int(order[place])
        if self.variants:
            number = entry * self.variants + epoch % self.variants
        rng = np.random.default_rng((self.seed, 1, number))
        chosen = [self._order[entry]]
        if rng.random() < self.config.mosaic:
            chosen += [self._order[int(i)] for i in rng.integers(len(self._order), size=3)]
        images = [self.data.labelled(i) for i in chosen]
        return draw_crop([self._read(i) for i in chosen], images, self.config, rng)

    def _read(self, index: int) -> NDArray[np.uint8]:
        pixels = self._pixels.pop(index, None)
        if pixels is None:
            pixels = self.data.labelled(index).read()
        self._pixels[index] = pixels  # the latest is last
        while sum(kept.nbytes for kept in self._pixels.values()) > PIXELS_KEPT and len(self._pixels) > 1:
            del self._pixels[next(iter(self._pixels))]
        return pixels


def _repeated(labels: Sequence[NDArray[np.int64]], classes: int) -> list[int]:
    """Image indices, those with rare classes more than once."""
    shown = np.zeros(classes)
    for present in labels:
        shown[np.unique(present)] += 1
    factor = np.maximum(1.0, np.sqrt(RARE_SHARE / np.maximum(shown / len(labels), 1e-6)))
    order: list[int] = []
    for index, present in enumerate(labels):
        repeats = float(factor[present].max()) if len(present) else 1.0
        # in half steps: an image with factor 1.5 comes three times in a list where others come twice
        order += [index] * max(1, round(2 * repeats))
    return order
