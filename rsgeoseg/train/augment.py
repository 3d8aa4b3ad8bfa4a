"""Training crops: large-scale jitter, the eight symmetries of a plane, colour, mosaic.

Objects given as polygons are drawn after the geometry is settled, so their masks are never resampled; objects given as
masks are turned and scaled once, to the nearest pixel. Everything is a function of a random generator: the same
generator gives the same crop.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import cv2
import numpy as np
from pycocotools import mask as rle

from rsgeoseg.datasets.labelled import bounds, tight_boxes, to_rle

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from rsgeoseg.datasets.labelled import LabelledImage, Shape


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
        canvas[where] = cv2.warpAffine(
            rgb,
            at_centres(matrix),
            (side, side),
            flags=cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_CONSTANT,
            borderValue=(127, 127, 127),
        )
        for label, shape in zip(image.labels.tolist(), image.shapes, strict=True):
            mask = _draw(shape, matrix, side, config.smallest_part)
            if mask is not None:
                full = np.zeros((config.crop, config.crop), np.uint8)
                full[where] = mask
                labels.append(label)
                masks.append(full)
    stacked = np.stack(masks) if masks else np.zeros((0, config.crop, config.crop), np.uint8)
    return Crop(
        image=_recolour(canvas, config, rng),
        labels=np.array(labels, np.int64),
        boxes=tight_boxes(stacked),
        masks=stacked,
    )


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
        x0, y0, x1, y1 = bounds(image.shapes[int(rng.integers(len(image.labels)))])
        wanted = np.array([x0 + x1, y0 + y1]) / 2 + rng.uniform(-0.3, 0.3, 2) * span
    else:
        wanted = rng.uniform(0, 1, 2) * room
    # inside the image where it is larger than the crop, anywhere in the crop where it is smaller
    slack = np.abs(room - span) / 2
    low_edge, high_edge = room / 2 - slack, room / 2 + slack
    centre = np.where(room >= span, np.clip(wanted, low_edge, high_edge), rng.uniform(low_edge, high_edge))
    shift = side / 2 - linear @ centre
    return np.column_stack([linear, shift])


def _draw(shape: Shape, matrix: NDArray[np.float64], side: int, smallest: float) -> NDArray[np.uint8] | None:
    """Draw a moved object in a square of ``side``; None where too little of it is left."""
    x0, y0, x1, y1 = bounds(shape)
    corners = np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]]) @ matrix[:, :2].T + matrix[:, 2]
    if (corners.max(0) <= 0).any() or (corners.min(0) >= side).any():
        return None
    if isinstance(shape, dict):
        whole = float(rle.area(shape)) * abs(float(np.linalg.det(matrix[:, :2])))
        mask = cv2.warpAffine(rle.decode(shape), at_centres(matrix), (side, side), flags=cv2.INTER_NEAREST)
    else:
        moved = [ring @ matrix[:, :2].T + matrix[:, 2] for ring in shape]
        whole = sum(abs(_area(ring)) for ring in moved)
        # pycocotools draws as the annotations are scored; cv2.fillPoly would add half a pixel all around
        mask = rle.decode(to_rle(tuple(moved), side, side))
    visible = int(mask.sum())
    if visible < 16 or visible < smallest * whole:
        return None
    return np.asarray(mask)


def at_centres(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rewrite an affine of pixel corners for OpenCV, which counts pixel centres as integers."""
    out = matrix.copy()
    out[:, 2] += matrix[:, :2].sum(1) / 2 - 0.5
    return out


def _area(ring: NDArray[np.float64]) -> float:
    x, y = ring.T
    return float((x * np.roll(y, -1) - np.roll(x, -1) * y).sum() / 2)


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
