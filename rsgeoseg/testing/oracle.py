"""Segmenters that know the answer: the chip itself carries the truth, one 24-bit instance id a pixel.

Band 1 is the high byte, band 3 the low byte, 0 is background. A scene of such pixels, segmented through tiles, must
give back the truth exactly; so these models test the map wing and measure it, without any network.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import cv2
import numpy as np

from rsgeoseg.contract import Instances, ModelSpec
from rsgeoseg.errors import PromptError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from rsgeoseg.contract import Chip, Prompts, Segmenter

    Bool = NDArray[np.bool_]
    Corners = tuple[int, int, int, int]


def encode_ids(ids: NDArray[np.int32]) -> NDArray[np.uint8]:
    """Instance ids to pixels.

    Args:
        ids: (h, w), 0 to 2**24 - 1, 0 = background.

    Returns:
        (3, h, w) uint8, high byte first.

    Raises:
        ValueError: an id that does not fit 24 bits.
    """
    if ids.size and not (int(ids.min()) >= 0 and int(ids.max()) < 1 << 24):
        msg = f"ids need 24 bits, got {ids.min()} to {ids.max()}"
        raise ValueError(msg)
    return np.stack([(ids >> shift) & 255 for shift in (16, 8, 0)]).astype(np.uint8)


def decode_ids(chip: Chip) -> NDArray[np.int32]:
    """Pixels to instance ids (h, w), 0 on invalid pixels.

    Raises:
        ValueError: the chip is not (3, h, w) uint8.
    """
    if chip.image.shape[0] != 3 or chip.image.dtype != np.uint8:
        msg = f"an oracle reads three uint8 bands, got {chip.image.shape} {chip.image.dtype}"
        raise ValueError(msg)
    high, middle, low = (np.ascontiguousarray(band) for band in chip.image)
    merged = cv2.merge([low, middle, high, np.zeros_like(low)])  # little-endian bytes of one int32 a pixel
    ids: NDArray[np.int32] = merged.reshape(*low.shape, 4).view("<i4")[..., 0]
    if not chip.valid.all():
        ids[~chip.valid] = 0
    return ids


def find_instances(ids: NDArray[np.int32]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Find where each id lies, by horizontal runs: the cost does not grow with the largest id.

    Args:
        ids: (h, w), 0 = background.

    Returns:
        Ids (N,) in ascending order, and their tight half-open boxes (N, 4).
    """
    height, width = ids.shape
    flat = ids.ravel()
    change = np.empty(flat.shape, np.bool_)
    change[0] = True
    np.not_equal(flat[1:], flat[:-1], out=change[1:])
    change.reshape(height, width)[:, 0] = True
    starts = np.flatnonzero(change)
    stops = np.append(starts[1:], flat.size)
    runs = flat[starts]
    solid = runs != 0
    starts, stops, runs = starts[solid], stops[solid], runs[solid]
    if not len(runs):
        return np.zeros(0, np.int32), np.zeros((0, 4), np.int32)
    order = np.argsort(runs, kind="stable")
    starts, stops, runs = starts[order], stops[order], runs[order]
    first = np.flatnonzero(np.append(True, runs[1:] != runs[:-1]))
    row, col = np.divmod(starts, width)
    boxes = np.stack(
        [
            np.minimum.reduceat(col, first),
            np.minimum.reduceat(row, first),
            np.maximum.reduceat(col + stops - starts, first),
            np.maximum.reduceat(row, first) + 1,
        ],
        axis=1,
    )
    return runs[first], boxes.astype(np.int32)


@dataclass(frozen=True, slots=True, kw_only=True)
class OracleSegmenter:
    """Returns the instances whose ids the chip's pixels spell; all scores are 1."""

    spec: ModelSpec
    """Any; ``oracle_spec`` makes one."""
    mode: Literal["instances", "components"] = "instances"
    """``instances``: one object an id, also where the chip shows several parts of it; ``components``: one object a
    connected part."""
    connectivity: Literal[4, 8] = 8
    """Of components."""
    class_of: NDArray[np.int64] | None = None
    """(K,) class by id; None: id modulo the number of classes."""

    def segment(self, chips: Sequence[Chip], prompts: Sequence[Prompts | None] | None = None) -> list[Instances]:
        """Read the truth off each chip.

        Raises:
            PromptError: prompts are given.
            ValueError: a chip that is not (3, h, w) uint8.
        """
        if prompts is not None and any(prompt is not None and prompt.kinds() for prompt in prompts):
            msg = "the oracle takes no prompts: leave them out"
            raise PromptError(msg)
        return [self._segment(chip) for chip in chips]

    def _segment(self, chip: Chip) -> Instances:
        ids = decode_ids(chip)
        found, boxes = find_instances(ids)
        objects: list[tuple[int, Corners, Bool]] = []
        for value, (x0, y0, x1, y1) in zip(found.tolist(), boxes.tolist(), strict=True):
            mask = ids[y0:y1, x0:x1] == value
            if self.mode == "instances":
                objects.append((value, (x0, y0, x1, y1), mask))
            else:
                objects += [(value, box, part) for box, part in split_components(mask, (x0, y0), self.connectivity)]
        if not objects:
            return Instances.empty()
        values = np.array([value for value, _, _ in objects], np.int64)
        labels = values % len(self.spec.classes) if self.class_of is None else self.class_of[values]
        return Instances(
            boxes=np.array([box for _, box, _ in objects], np.int32),
            masks=[mask for _, _, mask in objects],
            scores=np.ones(len(objects), np.float32),
            labels=labels,
        )


def oracle_spec(
    classes: Sequence[str] = ("object",), *, name: str = "oracle", chip_size: int = 1024, overlap: int = 128
) -> ModelSpec:
    """Describe an oracle as a model."""
    return ModelSpec(name=name, classes=tuple(classes), chip_size=chip_size, overlap=overlap, source="the truth itself")


def split_components(mask: Bool, origin: tuple[int, int], connectivity: Literal[4, 8]) -> list[tuple[Corners, Bool]]:
    """Split a mask into its connected parts.

    Args:
        mask: (h, w).
        origin: x and y of its upper-left pixel.
        connectivity: 4 or 8.

    Returns:
        Boxes (in the frame of ``origin``) and masks, in scan order.
    """
    count, parts, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=connectivity)
    found: list[tuple[Corners, Bool]] = []
    for label in range(1, count):
        x, y, width, height = stats[label, :4].tolist()
        box = (origin[0] + x, origin[1] + y, origin[0] + x + width, origin[1] + y + height)
        found.append((box, parts[y : y + height, x : x + width] == label))
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class NoisyOracle:
    """Spoils another segmenter's answers as a network would; the same chip always gives the same answer.

    Masks grow or shrink by a pixel and move by a pixel, objects are missed, and scores fall where the chip's border
    cuts an object.
    """

    inner: Segmenter
    """Gives the true answers."""
    seed: int = 0
    """Of the noise; joined with the chip's content."""
    miss: float = 0.02
    """Share of objects that are not found."""
    jitter: float = 0.5
    """Probability of each disturbance: grow or shrink, move in x, move in y."""

    @property
    def spec(self) -> ModelSpec:
        """The inner model's."""
        return self.inner.spec

    def segment(self, chips: Sequence[Chip], prompts: Sequence[Prompts | None] | None = None) -> list[Instances]:
        """Spoil the inner model's answers."""
        truths = self.inner.segment(chips, prompts)
        return [self._spoil(chip, truth) for chip, truth in zip(chips, truths, strict=True)]

    def _spoil(self, chip: Chip, truth: Instances) -> Instances:
        rng = np.random.default_rng([self.seed, zlib.crc32(np.ascontiguousarray(chip.image).tobytes())])
        height, width = chip.valid.shape
        kept: list[tuple[Corners, Bool, float, int]] = []
        for box, mask, label in zip(truth.boxes.tolist(), truth.masks, truth.labels.tolist(), strict=True):
            missed, luck = rng.random() < self.miss, float(rng.normal(0, 0.02))
            found = self._jitter(rng, box, mask, chip.valid)
            cut = box[0] == 0 or box[1] == 0 or box[2] == width or box[3] == height
            score = min(max((rng.uniform(0.5, 0.9) if cut else 0.95) + luck, 0.05), 0.999)
            if found is not None and not missed:
                kept.append((*found, score, label))
        if not kept:
            return Instances.empty()
        boxes, masks, scores, labels = zip(*kept, strict=True)
        return Instances(
            boxes=np.array(boxes, np.int32),
            masks=list(masks),
            scores=np.array(scores, np.float32),
            labels=np.array(labels, np.int64),
        )

    def _jitter(
        self, rng: np.random.Generator, box: Sequence[int], mask: Bool, valid: Bool
    ) -> tuple[Corners, Bool] | None:
        """Grow or shrink, then move; inside the chip and on valid pixels; None where nothing is left."""
        grow, dx, dy = (int(rng.choice([-1, 1])) if rng.random() < self.jitter else 0 for _ in range(3))
        pixels: NDArray[np.uint8] = np.pad(mask.astype(np.uint8), 2)
        if grow:
            kernel = np.ones((3, 3), np.uint8)
            pixels = (cv2.dilate(pixels, kernel) if grow > 0 else cv2.erode(pixels, kernel)).astype(np.uint8)
        canvas = np.pad(valid, 3)  # so that a moved mask never leaves the array
        x, y = box[0] - 2 + dx + 3, box[1] - 2 + dy + 3
        hit = np.argwhere((pixels > 0) & canvas[y : y + pixels.shape[0], x : x + pixels.shape[1]])
        if not len(hit):
            return None
        (top, left), (bottom, right) = hit.min(axis=0).tolist(), (hit.max(axis=0) + 1).tolist()
        inside = canvas[y + top : y + bottom, x + left : x + right]
        part = (pixels[top:bottom, left:right] > 0) & inside
        return (x + left - 3, y + top - 3, x + right - 3, y + bottom - 3), part
