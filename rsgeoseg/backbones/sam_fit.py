"""Chips of other sizes than a SAM encoder's square, brought to it and back as the packages do.

Sources: segment-anything (commit dca509f) ``utils/transforms.py`` and ``Sam.postprocess_masks``: the long side is
resized to the encoder's and the rest padded; mask logits are resized to the square, cut, and resized to the image.
facebookresearch/sam2 ``utils/transforms.py``: both sides are resized, and the logits straight to the image. A chip of
the encoder's own size, or with one side of it under SAM, stays as it is. SAM's package rounds resized grey levels; here
they stay fractions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F  # noqa: N812  (torch's own name for it)

from rsgeoseg.backbones.build import SAM2_BACKBONES
from rsgeoseg.backbones.chips import normalise
from rsgeoseg.backbones.transfer import pixels_of, valid_of
from rsgeoseg.nn.masks import CELL, CutOut, cut_out
from rsgeoseg.nn.targets import Target

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from rsgeoseg.backbones.features import EncoderSpec
    from rsgeoseg.contract import Chip


@dataclass(frozen=True, slots=True)
class SamFit:
    """How images of one size are brought to the encoder's square."""

    original: tuple[int, int]
    """h, w of the image, pixels."""
    resized: tuple[int, int]
    """h, w it is resized to, in the upper-left corner of the square."""
    side: int
    """Side of the square, pixels."""

    @staticmethod
    def of(shape: Sequence[int], spec: EncoderSpec) -> SamFit | None:
        """Plan for images of ``shape`` h, w; None where an encoder takes them as they are, or padded."""
        h, w = shape
        side = spec.image_size
        squash = spec.name in SAM2_BACKBONES
        resized = (side, side)
        if not squash:
            scale = side / max(h, w)
            resized = (max(int(h * scale + 0.5), 1), max(int(w * scale + 0.5), 1))
        return None if not spec.fixed_size or resized == (h, w) else SamFit((h, w), resized, side)

    @property
    def padded(self) -> bool:
        """True where the image does not fill the square: the packages then resize masks twice."""
        return self.resized != (self.side, self.side)

    def scale(self, device: torch.device) -> Tensor:
        """Pixels of the square per pixel of the image, (2,) x y."""
        (h, w), (high, wide) = self.original, self.resized
        return torch.tensor([wide / w, high / h], device=device)

    def images(self, normed: Tensor) -> Tensor:
        """Bring normalised images (B, C, h, w) to the square (B, C, side, side); padding is zero, the mean."""
        resized = F.interpolate(normed, self.resized, mode="bilinear", align_corners=False, antialias=True)
        return F.pad(resized, (0, self.side - self.resized[1], 0, self.side - self.resized[0]))

    def target(self, target: Target) -> Target:
        """Bring an image's objects to the square's frame; masks end where the image does."""
        masks = target.masks
        if len(masks):
            soft = F.interpolate(masks.unsqueeze(1).float(), self.resized, mode="bilinear", align_corners=False)
            masks = (soft.squeeze(1) >= 0.5).to(masks.dtype)
        else:
            masks = masks.new_zeros(0, *self.resized)
        return Target(labels=target.labels, boxes=target.boxes * self.scale(target.boxes.device).repeat(2), masks=masks)

    def prompt_mask(self, mask: Tensor, padding: float) -> Tensor:
        """Bring mask logits (h, w) of the image to the square (side, side), its padding filled."""
        resized = F.interpolate(mask[None, None], self.resized, mode="bilinear", align_corners=False, antialias=True)
        return F.pad(resized[0, 0], (0, self.side - self.resized[1], 0, self.side - self.resized[0]), value=padding)

    def masks(self, logits: Tensor) -> Tensor:
        """Bring mask logits (N, side/4, side/4) back to the image: (N, h, w)."""
        full = logits.unsqueeze(1)
        if self.padded:
            full = F.interpolate(full, (self.side, self.side), mode="bilinear", align_corners=False)
            full = full[..., : self.resized[0], : self.resized[1]]
        return F.interpolate(full, self.original, mode="bilinear", align_corners=False).squeeze(1)


def fitted_images(chips: Sequence[Chip], spec: EncoderSpec, fit: SamFit, device: torch.device) -> Tensor:
    """Stack chips of one size as an encoder takes them; pixels without data are the mean.

    Args:
        chips: all of one size, uint8.
        spec: of the encoder.
        fit: the plan for their size.
        device: where to.

    Returns:
        (B, 3, side, side) float32, normalised.
    """
    normed, valid = normalise(pixels_of(chips, device), spec), valid_of(chips, device)
    return fit.images(normed if valid is None else normed * valid)


def cut_masks(logits: Tensor, shape: tuple[int, int], fit: SamFit | None, level: float = 0.0) -> list[CutOut | None]:
    """Cut masks out at the chip's resolution, as :func:`rsgeoseg.nn.masks.cut_out` does where nothing was resized.

    Args:
        logits: (N, H/4, W/4), the chip's padding included.
        shape: h, w of the chip.
        fit: how it was brought to the square; None = it was not resized.
        level: logits that do not exceed it anywhere around are of no interest.
    """
    if fit is None:
        return cut_out(logits, shape, level)
    return [_cut(fit.masks(one.unsqueeze(0))[0], level) for one in logits]


def _cut(whole: Tensor, level: float) -> CutOut | None:
    """Cut logits (h, w) of a chip to the box of those above the level, a cell's margin around; None where none is."""
    above = whole > level
    ys, xs = above.any(1).nonzero(), above.any(0).nonzero()
    if not len(ys):
        return None
    (y0, y1), (x0, x1) = ((max(int(at[0]) - CELL, 0), int(at[-1]) + 1 + CELL) for at in (ys, xs))
    return CutOut((x0, y0), whole[y0:y1, x0:x1])
