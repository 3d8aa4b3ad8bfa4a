"""Chips resized to an encoder's square as RSPrompter's test pipelines do it, for weights that were trained so.

Source: KyanChen/RSPrompter, test pipelines of 2023 (branches lightning and huggingface) and 2024 (release, f4e73c3);
mmcv ``imresize`` and ``imrescale``, which are OpenCV's bilinear resize. Our own path never resizes a chip
(:func:`rsgeoseg.backbones.chips.images_of`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import cv2
import numpy as np

from rsgeoseg.backbones.chips import normalise
from rsgeoseg.backbones.transfer import stacked

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from numpy.typing import NDArray
    from torch import Tensor

    from rsgeoseg.backbones.features import EncoderSpec
    from rsgeoseg.contract import Chip

Resize = Literal["none", "squash", "longest"]
"""What becomes of a chip that is smaller than the encoder's square. "none": it is padded. "squash" (2023): both sides
are resized, pixels stay whole numbers. "longest" (2024): the longer side is resized, pixels become fractions, the rest
of the square is padded."""


@dataclass(frozen=True, slots=True)
class Fit:
    """How an image was brought to the encoder's square."""

    original: tuple[int, int]
    """h, w of the image."""
    resized: tuple[int, int]
    """h, w it was resized to, in the upper-left corner of the square."""
    side: int
    """Side of the square."""
    whole_numbers: bool
    """Resized pixels are rounded to 0-255."""

    @staticmethod
    def of(shape: tuple[int, ...], side: int, policy: Resize) -> Fit | None:
        """Plan the resize of an image of ``shape`` h, w; None for the policy "none"."""
        h, w = shape
        if policy == "none":
            return None
        if policy == "squash":
            return Fit((h, w), (side, side), side, whole_numbers=True)
        scale = side / max(h, w)
        resized = (max(int(h * scale + 0.5), 1), max(int(w * scale + 0.5), 1))
        return Fit((h, w), resized, side, whole_numbers=False)

    @property
    def cut(self) -> tuple[int, int]:
        """Rows and columns of the square that the authors' code of 2024 takes for the image.

        It multiplies each side by its own quotient and truncates: 333 rows resized to 682 leave 681.
        """
        h, w = (int(whole * (part / whole)) for whole, part in zip(self.original, self.resized, strict=True))
        return max(h, 1), max(w, 1)


def fit_images(chips: Sequence[Chip], spec: EncoderSpec, fit: Fit, device: torch.device) -> Tensor:
    """Resize chips of one size bilinearly and pad them with the mean.

    Args:
        chips: all of one size; pixels without data become the mean.
        spec: of the encoder.
        fit: the plan.
        device: where to.

    Returns:
        (B, 3, side, side) float32, normalised.
    """
    h, w = fit.resized
    resized = [cv2.resize(_pixels(chip, spec, fit), (w, h)).reshape(h, w, -1) for chip in chips]
    normed = normalise(stacked(resized, device).permute(0, 3, 1, 2), spec)
    square = normed.new_zeros((len(chips), normed.shape[1], fit.side, fit.side))
    square[..., :h, :w] = normed
    return square


def _pixels(chip: Chip, spec: EncoderSpec, fit: Fit) -> NDArray[np.float32] | NDArray[np.uint8]:
    """Pixels (h, w, 3) in the number format in which they are resized."""
    pixels = np.where(chip.valid, chip.image, np.array(spec.mean, np.float32)[:, None, None]).transpose(1, 2, 0)
    if fit.whole_numbers:
        return np.ascontiguousarray(np.rint(pixels).astype(np.uint8))
    return np.ascontiguousarray(pixels.astype(np.float32))
