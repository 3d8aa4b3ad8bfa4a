"""Many images of a dataset in one picture, to see at a glance whether the labels lie on their objects."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from rsgeoseg.datasets.picture import overlay

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from rsgeoseg.datasets.instances import InstanceDataset

_GAP = 6


def draw_sheet(dataset: InstanceDataset, *, count: int = 12, columns: int = 4, side: int = 384) -> NDArray[np.uint8]:
    """Draw images with their objects tinted by class, evenly chosen over the dataset.

    Args:
        dataset: not empty.
        count: images at most.
        columns: images beside each other.
        side: of a cell, pixels; larger images are made smaller, smaller ones stay.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    chosen = np.unique(np.linspace(0, len(dataset) - 1, min(count, len(dataset))).round().astype(int)).tolist()
    columns = min(columns, len(chosen))
    rows = -(-len(chosen) // columns)
    step = side + _GAP
    sheet = np.full((rows * step + _GAP, columns * step + _GAP, 3), 255, np.uint8)
    for place, index in enumerate(chosen):
        cell = _cell(dataset, index, side)
        y, x = place // columns * step + _GAP, place % columns * step + _GAP
        sheet[y : y + cell.shape[0], x : x + cell.shape[1]] = cell
    return sheet


def _cell(dataset: InstanceDataset, index: int, side: int) -> NDArray[np.uint8]:
    image = dataset.labelled(index)
    tinted: NDArray[Any] = overlay(image.read() / 255.0, image.masks(), image.labels)
    factor = side / max(image.width, image.height)
    if factor < 1:
        size = max(1, round(image.width * factor)), max(1, round(image.height * factor))
        tinted = cv2.resize(tinted, size, interpolation=cv2.INTER_AREA)
    return np.asarray(np.clip(tinted, 0, 1) * 255, np.uint8)
