"""Crops to train the labeller on: objects under imperfect masks, and places that are no object.

The authors ran SAM over the training images and took each mask's label from the object whose box it overlaps by an IoU
above 0.2, background where there is none (KyanChen/RSPrompter, branch lightning, ``get_sam_cls_crops.py``). Here masks
are made from the truth, which needs no run of SAM and never runs out: objects with shifted boxes and grown or shrunk
masks, and, at places with a smaller IoU to every object, the outlines of objects, so that an outline alone tells
nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import cv2
import numpy as np
import torch

from rsgeoseg.models.sam_cls.crops import Box, MaskCrops, double_box

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from rsgeoseg.nn.targets import Target

JITTER = 0.1
"""Standard deviation of a shift, as a share of the box's side."""
GROWTH = 2
"""Most pixels by which a mask is grown or shrunk."""
TRIES = 20
"""Random places drawn for one background crop before it is left out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleConfig:
    """How many crops of which kind."""

    objects: int = 8
    """Crops per image that show an object, drawn with replacement."""
    background: int = 8
    """Crops per image that show none."""
    background_iou: float = 0.2
    """A place is background where its box overlaps every object's by a smaller IoU (released code)."""
    smallest_crop: int = 16
    """Crops with a shorter side are left out, pixels (released code)."""


def draw_crops(
    images: Tensor, targets: Sequence[Target], config: SampleConfig, *, side: int, background: int
) -> tuple[Tensor, Tensor]:
    """Draw the crops of a batch; torch's generator is the source of chance.

    Args:
        images: (B, 3, H, W) uint8.
        targets: one per image.
        config: how many.
        side: of the crops, pixels.
        background: label of background.

    Returns:
        (N, 3, side, side) uint8 and labels (N,) int64, on the images' device.
    """
    rng = np.random.default_rng(int(torch.randint(2**31, ())))
    pixels, truths = images.cpu().numpy(), [_Truth(target) for target in targets]
    outlines = [mask for truth in truths for _, mask in truth.objects]
    crops, labels = [], []
    for image, truth in zip(pixels, truths, strict=True):
        shown = [truth.draw_object(rng) for _ in range(config.objects if truth.objects else 0)]
        shown += [truth.draw_background(rng, config, outlines, background) for _ in range(config.background)]
        large = [found for found in shown if found is not None and _side(found[0], truth.shape) >= config.smallest_crop]
        crops.append(MaskCrops(image).resized([found[:2] for found in large], side))
        labels += [found[2] for found in large]
    given = torch.from_numpy(np.concatenate(crops)).to(images.device)
    return given, torch.tensor(labels, dtype=torch.int64, device=images.device)


def _side(box: Box, shape: tuple[int, int]) -> int:
    x0, y0, x1, y1 = double_box(box, shape)
    return min(x1 - x0, y1 - y0)


class _Truth:
    """The objects of one image as numpy values."""

    def __init__(self, target: Target) -> None:
        masks = target.masks.cpu().numpy().astype(np.bool_)
        self.shape = (int(masks.shape[1]), int(masks.shape[2]))
        boxes = [_int_box(row) for row in target.boxes.cpu().numpy()]
        self.objects = [(box, m[box[1] : box[3], box[0] : box[2]]) for box, m in zip(boxes, masks, strict=True)]
        self.labels = target.labels.tolist()

    def draw_object(self, rng: np.random.Generator) -> tuple[Box, NDArray[np.bool_], int] | None:
        """Draw an object under a mask as SAM might give it; None where nothing of it is left."""
        index = int(rng.integers(len(self.objects)))
        (x0, y0, x1, y1), mask = self.objects[index]
        grown = _grow(np.pad(mask, GROWTH), int(rng.integers(-GROWTH, GROWTH + 1)))
        shift = rng.normal(0, JITTER, 4) * [x1 - x0, y1 - y0, x1 - x0, y1 - y0]
        wanted = _clip(np.array([x0, y0, x1, y1]) + shift, self.shape)
        if wanted is None:
            return None
        full = np.zeros((self.shape[0] + 2 * GROWTH, self.shape[1] + 2 * GROWTH), np.bool_)
        full[y0 : y1 + 2 * GROWTH, x0 : x1 + 2 * GROWTH] = grown
        full = full[GROWTH:-GROWTH, GROWTH:-GROWTH]
        return wanted, full[wanted[1] : wanted[3], wanted[0] : wanted[2]], self.labels[index]

    def draw_background(
        self, rng: np.random.Generator, config: SampleConfig, outlines: Sequence[NDArray[np.bool_]], label: int
    ) -> tuple[Box, NDArray[np.bool_], int] | None:
        """Draw a place without an object, in the outline of some object; None where none was found."""
        for _ in range(TRIES):
            h, w = (np.exp(rng.uniform(np.log(min(8, s)), np.log(s))) for s in self.shape)
            x, y = rng.uniform(0, self.shape[1]), rng.uniform(0, self.shape[0])
            box = _clip(np.array([x - w / 2, y - h / 2, x + w / 2, y + h / 2]), self.shape)
            if box is None or any(_iou(box, other) >= config.background_iou for other, _ in self.objects):
                continue
            outline = outlines[int(rng.integers(len(outlines)))] if outlines else np.ones((1, 1), np.bool_)
            return box, _fit(outline, box), label
        return None


def _int_box(row: NDArray[np.float32]) -> Box:
    """Whole pixels of a box that is tight around a mask."""
    x0, y0, x1, y1 = (round(float(value)) for value in row)
    return x0, y0, x1, y1


def _clip(box: NDArray[np.float64], shape: tuple[int, int]) -> Box | None:
    """Round and cut a box at the image's edge; None where nothing is left."""
    x0, x1 = np.clip(np.rint(box[[0, 2]]), 0, shape[1]).astype(int).tolist()
    y0, y1 = np.clip(np.rint(box[[1, 3]]), 0, shape[0]).astype(int).tolist()
    return (x0, y0, x1, y1) if x1 > x0 and y1 > y0 else None


def _grow(mask: NDArray[np.bool_], pixels: int) -> NDArray[np.bool_]:
    """Grow a mask by some pixels, or shrink it where they are negative."""
    kernel = np.ones((2 * abs(pixels) + 1,) * 2, np.uint8)
    change = cv2.dilate if pixels > 0 else cv2.erode
    return np.asarray(change(mask.astype(np.uint8), kernel), np.bool_)


def _fit(mask: NDArray[np.bool_], box: Box) -> NDArray[np.bool_]:
    """Stretch a mask over a box."""
    size = (box[2] - box[0], box[3] - box[1])
    return np.asarray(cv2.resize(mask.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST), np.bool_)


def _iou(a: Box, b: Box) -> float:
    w, h = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    if w <= 0 or h <= 0:
        return 0.0
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - w * h
    return w * h / union
