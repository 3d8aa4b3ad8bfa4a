"""Training crops: large-scale jitter, the eight symmetries of a plane, colour, mosaic.

Objects are carried as polygons and drawn after the geometry is settled, so masks are never resampled. Everything is a
function of a random generator: the same generator gives the same crop.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import cv2
import numpy as np
from pycocotools import mask as rle

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from rsgeoseg.datasets.coco import LabelledImage


@dataclass(frozen=True, slots=True, kw_only=True)
class AugmentConfig:
    """Ranges of the augmentation."""

    crop: int = 512
    """Side of the crop, pixels."""
    scale: tuple[float, float] = (0.5, 1.6)
    """Resize before the crop, drawn log-uniformly (large-scale jitter; the paper's code: 0.1-2.0 of 1024)."""
    centred: float = 0.75
    """Share of crops that contain the centre of some object."""
    mosaic: float = 0.2
    """Share of crops put together from four smaller ones."""
    colour: float = 0.2
    """Strength of brightness, contrast and saturation changes."""
    blur: float = 0.1
    """Share of crops that are blurred slightly."""
    smallest_part: float = 0.2
    """An object with a smaller share of itself inside the crop is not a target."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Crop:
    """One training sample."""

    image: NDArray[np.uint8]
    """(side, side, 3) RGB."""
    labels: NDArray[np.int64]
    """(N,)."""
    boxes: NDArray[np.float32]
    """(N, 4) tight x0 y0 x1 y1."""
    masks: NDArray[np.uint8]
    """(N, side, side) in {0, 1}."""


def draw_crop(
    pixels: Sequence[NDArray[np.uint8]],
    images: Sequence[LabelledImage],
    config: AugmentConfig,
    rng: np.random.Generator,
) -> Crop:
    """Draw a training crop.

    Args:
        pixels: one image (H, W, 3), or four for a mosaic.
        images: their annotations, same length.
        config: ranges.
        rng: the only source of chance.
    """
    parts = 1 if len(images) == 1 else 2
    side = config.crop // parts
    canvas = np.empty((config.crop, config.crop, 3), np.uint8)
    labels, masks = [], []
    for index, (rgb, image) in enumerate(zip(pixels, images, strict=True)):
        matrix = _geometry(image, side, config, rng)
        row, column = divmod(index, parts)
        where = np.s_[row * side : (row + 1) * side, column * side : (column + 1) * side]
        centres = matrix.copy()  # cv2 counts pixel centres as integers, annotations count pixel corners
        centres[:, 2] += matrix[:, :2].sum(1) / 2 - 0.5
        canvas[where] = cv2.warpAffine(
            rgb,
            centres,
            (side, side),
            flags=cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_CONSTANT,
            borderValue=(127, 127, 127),
        )
        for label, rings in zip(image.labels.tolist(), image.polygons, strict=True):
            mask = _draw(rings, matrix, side, config.smallest_part)
            if mask is not None:
                full = np.zeros((config.crop, config.crop), np.uint8)
                full[where] = mask
                labels.append(label)
                masks.append(full)
    stacked = np.stack(masks) if masks else np.zeros((0, config.crop, config.crop), np.uint8)
    boxes = np.array([_tight(mask) for mask in stacked], np.float32).reshape(-1, 4)
    return Crop(image=_recolour(canvas, config, rng), labels=np.array(labels, np.int64), boxes=boxes, masks=stacked)


def _geometry(image: LabelledImage, side: int, config: AugmentConfig, rng: np.random.Generator) -> NDArray[np.float64]:
    """Affine (2, 3) from image pixels to crop pixels: scale, symmetry, shift."""
    low, high = np.log(config.scale)
    scale = float(np.exp(rng.uniform(low, high)))
    turn = np.linalg.matrix_power(np.array([[0.0, -1.0], [1.0, 0.0]]), int(rng.integers(4)))
    mirror = np.diag([1.0, 1.0 if rng.random() < 0.5 else -1.0])
    linear = scale * turn @ mirror
    span = side / scale
    room = np.array([image.width, image.height], float)
    if len(image.labels) and rng.random() < config.centred:
        rings = image.polygons[int(rng.integers(len(image.labels)))]
        wanted = (rings[0].min(0) + rings[0].max(0)) / 2 + rng.uniform(-0.3, 0.3, 2) * span
    else:
        wanted = rng.uniform(0, 1, 2) * room
    # inside the image where it is larger than the crop, anywhere in the crop where it is smaller
    slack = np.abs(room - span) / 2
    low_edge, high_edge = room / 2 - slack, room / 2 + slack
    centre = np.where(room >= span, np.clip(wanted, low_edge, high_edge), rng.uniform(low_edge, high_edge))
    shift = side / 2 - linear @ centre
    return np.column_stack([linear, shift])


def _draw(
    rings: Sequence[NDArray[np.float64]], matrix: NDArray[np.float64], side: int, smallest: float
) -> NDArray[np.uint8] | None:
    moved = [ring @ matrix[:, :2].T + matrix[:, 2] for ring in rings]
    points = np.concatenate(moved)
    low, high = points.min(0), points.max(0)
    if (high <= 0).any() or (low >= side).any():
        return None
    # pycocotools draws as the annotations are scored; cv2.fillPoly would add half a pixel all around
    runs = rle.frPyObjects([ring.ravel().tolist() for ring in moved], side, side)
    mask = np.asarray(rle.decode(rle.merge(runs)))
    whole = sum(abs(_area(ring)) for ring in moved)
    visible = int(mask.sum())
    if visible < 16 or visible < smallest * whole:
        return None
    return mask


def _area(ring: NDArray[np.float64]) -> float:
    x, y = ring.T
    return float((x * np.roll(y, -1) - np.roll(x, -1) * y).sum() / 2)


def _tight(mask: NDArray[np.uint8]) -> tuple[int, int, int, int]:
    ys, xs = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return int(xs[0]), int(ys[0]), int(xs[-1]) + 1, int(ys[-1]) + 1


def _recolour(rgb: NDArray[np.uint8], config: AugmentConfig, rng: np.random.Generator) -> NDArray[np.uint8]:
    strength = config.colour
    brightness, contrast, saturation = rng.uniform(-strength, strength, 3)
    gains = 1 + rng.uniform(-strength / 4, strength / 4, 3)
    blurred = rng.random() < config.blur
    x = rgb.astype(np.float32)
    grey = x.mean(-1, keepdims=True)
    x = grey + (x - grey) * (1 + 1.5 * saturation)
    mean = float(grey.mean())
    x = ((x - mean) * (1 + contrast) + mean * (1 + brightness)) * gains.astype(np.float32)
    if blurred:
        x = cv2.GaussianBlur(x, (0, 0), float(rng.uniform(0.4, 1.2)))
    return np.asarray(np.clip(x, 0, 255), np.uint8)
