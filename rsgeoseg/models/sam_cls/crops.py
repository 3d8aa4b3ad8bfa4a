"""What the labeller sees of a mask: twice its box, sharp inside the mask and blurred around it (paper section III-C2).

Source: KyanChen/RSPrompter, branch lightning, ``tools/ins_seg/sam/sam_cls`` (box blur of 7 x 7 pixels on the whole
image, box doubled about its middle in whole pixels and cut at the image's edge). The side that crops are resized to
stood in a config that was not published; 224 is what its ResNet-18 was made for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import cv2
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

Box = tuple[int, int, int, int]
"""x0 y0 x1 y1 in whole pixels, half-open."""

BLUR = 7
"""Side of the averaging window, pixels."""


def double_box(box: Box, shape: tuple[int, int]) -> Box:
    """Enlarge a box to twice its sides about its middle, and cut it at the image's edge.

    Args:
        box: x0 y0 x1 y1 in whole pixels, half-open.
        shape: h, w of the image.

    Returns:
        x0 y0 x1 y1.
    """
    x0, y0, x1, y1 = box
    w, h = x1 - x0, y1 - y0
    x, y = x0 + w // 2, y0 + h // 2
    return max(x - w, 0), max(y - h, 0), min(x + w, shape[1]), min(y + h, shape[0])


class MaskCrops:
    """Crops of one image; it is blurred once for all of them.

    Args:
        image: (3, h, w) uint8.
    """

    def __init__(self, image: NDArray[np.uint8]) -> None:
        self.sharp = np.ascontiguousarray(image.transpose(1, 2, 0))
        self.blurred = np.asarray(cv2.blur(self.sharp, (BLUR, BLUR)), np.uint8)

    def crop(self, box: Box, mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
        """Cut one mask's surroundings out.

        Args:
            box: x0 y0 x1 y1 in whole pixels, half-open, inside the image.
            mask: (y1 - y0, x1 - x0).

        Returns:
            (h', w', 3): pixels of the mask as they are, all others blurred.
        """
        x0, y0, x1, y1 = double_box(box, self.sharp.shape[:2])
        cut = self.blurred[y0:y1, x0:x1].copy()
        inner = np.s_[box[1] - y0 : box[3] - y0, box[0] - x0 : box[2] - x0]
        cut[inner][mask] = self.sharp[box[1] : box[3], box[0] : box[2]][mask]
        return cut

    def resized(self, objects: Iterable[tuple[Box, NDArray[np.bool_]]], side: int) -> NDArray[np.uint8]:
        """Cut several masks' surroundings out and resize them to squares.

        Args:
            objects: boxes and masks as in :meth:`crop`.
            side: of the squares, pixels.

        Returns:
            (N, 3, side, side).
        """
        squares = [_square(self.crop(box, mask), side) for box, mask in objects]
        return np.stack(squares).transpose(0, 3, 1, 2) if squares else np.zeros((0, 3, side, side), np.uint8)


def _square(crop: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """Resize by averaging where the crop is larger, bilinearly where it is smaller."""
    shrinks = min(crop.shape[:2]) >= side
    return cv2.resize(crop, (side, side), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)  # type: ignore[return-value]
