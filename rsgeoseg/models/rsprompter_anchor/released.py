"""The authors' way into and out of the network, for weights trained with it and for comparing with it.

Source: KyanChen/RSPrompter. 2023: images squashed to the encoder's square; mask probabilities resized once to the
image. 2024: resized by the longer side and padded; probabilities resized to the padded square, cut to the image's part
(truncated: often a row short), resized again. Our own path never resizes a chip.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn import functional as F  # noqa: N812  (torch's own name for it)

from rsgeoseg.backbones.chips import normalise

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from rsgeoseg.backbones.features import EncoderSpec
    from rsgeoseg.contract import Chip
    from rsgeoseg.models.rsprompter_anchor.config import Generation, Resize


@dataclass(frozen=True, slots=True)
class Fit:
    """How an image was brought to the encoder's square."""

    original: tuple[int, int]
    """h, w of the image."""
    resized: tuple[int, int]
    """h, w it was resized to, in the upper-left corner of the square."""
    padded: int
    """Side of the square."""

    @staticmethod
    def of(shape: tuple[int, ...], side: int, policy: Resize) -> Fit | None:
        """Plan the resize of an image of ``shape`` h, w; None where a policy leaves it as it is."""
        h, w = shape
        if policy == "none" or (h, w) == (side, side):
            return None
        if policy == "squash":
            return Fit((h, w), (side, side), side)
        scale = side / max(h, w)
        return Fit((h, w), (int(h * scale + 0.5), int(w * scale + 0.5)), side)


def fit_images(chips: Sequence[Chip], spec: EncoderSpec, fit: Fit, device: torch.device) -> Tensor:
    """Resize chips of one size bilinearly and pad them with the mean.

    Args:
        chips: all of one size.
        spec: of the encoder.
        fit: the plan.
        device: where to.

    Returns:
        (B, 3, side, side) float32, normalised.
    """
    pixels = torch.from_numpy(np.stack([chip.image for chip in chips])).to(device)
    valid = torch.from_numpy(np.stack([chip.valid for chip in chips])).to(device)
    normed = normalise(pixels, spec) * valid.unsqueeze(1)
    resized = F.interpolate(normed, size=fit.resized, mode="bilinear", align_corners=False)
    return F.pad(resized, (0, fit.padded - fit.resized[1], 0, fit.padded - fit.resized[0]))


def released_mask(logits: Tensor, fit: Fit, generation: Generation) -> NDArray[np.bool_]:
    """Resize one mask's probabilities (H/4, W/4 logits) to the image: True where at least one half.

    Args:
        logits: of SAM's decoder.
        fit: how the image was resized.
        generation: whose steps.

    Returns:
        (h, w) of the image.
    """
    probability = logits[None, None].float().sigmoid()
    if generation == "2024":
        probability = F.interpolate(probability, size=(fit.padded, fit.padded), mode="bilinear", align_corners=False)
        # multiplied by their own quotient and truncated, as there: 333 rows resized to 682 leave 681
        h, w = (int(whole * (part / whole)) for whole, part in zip(fit.original, fit.resized, strict=True))
        probability = probability[..., :h, :w]
    full = F.interpolate(probability, size=fit.original, mode="bilinear", align_corners=False)[0, 0]
    return (full >= 0.5).cpu().numpy()


def tighten(mask: NDArray[np.bool_]) -> tuple[tuple[int, int, int, int], NDArray[np.bool_], float]:
    """Cut a mask (h, w) to its box: box x0 y0 x1 y1, the mask inside, and 1.0; an empty mask as ``crop_mask`` does."""
    if not mask.any():
        return (0, 0, 1, 1), np.zeros((1, 1), np.bool_), 0.0
    ys, xs = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    box = (int(xs[0]), int(ys[0]), int(xs[-1]) + 1, int(ys[-1]) + 1)
    return box, mask[box[1] : box[3], box[0] : box[2]].copy(), 1.0
