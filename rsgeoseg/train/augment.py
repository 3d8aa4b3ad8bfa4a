"""Training crops: large-scale jitter, symmetries of a plane, colour, mosaic.

Objects given as polygons are drawn after the geometry is settled, so their masks are never resampled; objects given as
masks are turned and scaled once, to the nearest pixel. Everything is a function of a random generator: the same
generator gives the same crop.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import cv2
import numpy as np
from pycocotools import mask as rle

from rsgeoseg.datasets.labelled import bounds, tight_boxes, to_rle

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from rsgeoseg.datasets.labelled import LabelledImage, Shape


Symmetries = Literal["all", "flip", "none"]


@dataclass(frozen=True, slots=True, kw_only=True)
class AugmentConfig:
    """Ranges of the augmentation."""

    crop: int = 512
    """Side of the crop, pixels."""
    scale: tuple[float, float] = (0.5, 1.6)
    """Resize before the crop, drawn log-uniformly (large-scale jitter; the paper's code: 0.1-2.0 of 1024)."""
    centred: float = 0.75
    """Share of crops that contain the centre of some object."""
    symmetries: Symmetries = "all"
    """Turns and mirrors: "all" eight, a "flip" left to right in half of the crops (the paper), or "none"."""
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
    sources: tuple[str, ...] = ()
    """Names of the images it was cut from."""


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
    labels: list[int] = []
    drawn: list[tuple[tuple[int, int], NDArray[np.uint8]]] = []
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
            found = _draw(shape, matrix, side, config.smallest_part)
            if found is not None:
                (x, y), mask = found
                labels.append(label)
                drawn.append(((x + column * side, y + row * side), mask))
    masks = np.zeros((len(drawn), config.crop, config.crop), np.uint8)
    boxes = np.zeros((len(drawn), 4), np.float32)
    for whole, box, ((x, y), mask) in zip(masks, boxes, drawn, strict=True):
        whole[y : y + mask.shape[0], x : x + mask.shape[1]] = mask
        box[:] = tight_boxes(mask[None])[0] + (x, y, x, y)
    return Crop(
        image=_recolour(canvas, config, rng),
        labels=np.array(labels, np.int64),
        boxes=boxes,
        masks=masks,
        sources=tuple(image.name for image in images),
    )


def _geometry(image: LabelledImage, side: int, config: AugmentConfig, rng: np.random.Generator) -> NDArray[np.float64]:
    """Affine (2, 3) from image pixels to crop pixels: scale, symmetry, shift."""
    low, high = np.log(config.scale)
    scale = float(np.exp(rng.uniform(low, high)))
    quarter, mirrored = int(rng.integers(4)), rng.random() >= 0.5
    turn = np.linalg.matrix_power(np.array([[0.0, -1.0], [1.0, 0.0]]), quarter if config.symmetries == "all" else 0)
    mirror = np.eye(2)
    if mirrored and config.symmetries != "none":
        mirror = np.diag([1.0, -1.0] if config.symmetries == "all" else [-1.0, 1.0])
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


def _draw(
    shape: Shape, matrix: NDArray[np.float64], side: int, smallest: float
) -> tuple[tuple[int, int], NDArray[np.uint8]] | None:
    """Draw a moved object in a square of ``side``: corner x y and mask; None where too little is left.

    Only the object's own box is drawn: a large crop with fifty objects would otherwise be mostly zeros to fill.
    """
    x0, y0, x1, y1 = bounds(shape)
    corners = np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]]) @ matrix[:, :2].T + matrix[:, 2]
    low = np.clip(np.floor(corners.min(0)) - 1, 0, side).astype(int)
    high = np.clip(np.ceil(corners.max(0)) + 1, 0, side).astype(int)
    if (corners.max(0) <= 0).any() or (corners.min(0) >= side).any():
        return None
    width, height = (high - low).tolist()
    here = matrix.copy()
    here[:, 2] -= low
    if isinstance(shape, dict):
        whole = float(rle.area(shape)) * abs(float(np.linalg.det(matrix[:, :2])))
        mask = cv2.warpAffine(rle.decode(shape), at_centres(here), (width, height), flags=cv2.INTER_NEAREST)
    else:
        moved = [ring @ here[:, :2].T + here[:, 2] for ring in shape]
        whole = sum(abs(_area(ring)) for ring in moved)
        # pycocotools draws as the annotations are scored; cv2.fillPoly would add half a pixel all around
        mask = rle.decode(to_rle(tuple(moved), height, width))
    visible = int(mask.sum())
    if visible < 16 or visible < smallest * whole:
        return None
    return (int(low[0]), int(low[1])), np.asarray(mask)


def at_centres(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rewrite an affine of pixel corners for OpenCV, which counts pixel centres as integers."""
    out = matrix.copy()
    out[:, 2] += matrix[:, :2].sum(1) / 2 - 0.5
    return out


def _area(ring: NDArray[np.float64]) -> float:
    x, y = ring.T
    return float((x * np.roll(y, -1) - np.roll(x, -1) * y).sum() / 2)


def _recolour(rgb: NDArray[np.uint8], config: AugmentConfig, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Change saturation, contrast, brightness and the bands' gains: one affine map of a pixel's three values."""
    strength = config.colour
    brightness, contrast, saturation = rng.uniform(-strength, strength, 3)
    gains = 1 + rng.uniform(-strength / 4, strength / 4, 3)
    blurred = rng.random() < config.blur
    sigma = float(rng.uniform(0.4, 1.2))
    out: NDArray[Any] = rgb
    if strength > 0:
        mean = float(np.mean(cv2.mean(rgb)[:3]))
        grey = np.full((3, 3), 1 / 3)
        linear = (1 + contrast) * (grey + (np.eye(3) - grey) * (1 + 1.5 * saturation))
        offset = mean * ((1 + brightness) - (1 + contrast))
        affine = gains[:, None] * np.column_stack([linear, np.full(3, offset)])
        out = cv2.transform(rgb, affine)
    if blurred:
        out = cv2.GaussianBlur(out, (0, 0), sigma)
    return np.asarray(out, np.uint8)
