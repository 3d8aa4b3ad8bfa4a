"""From mask logits to masks at chip resolution, cropped to their boxes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import cv2
import numpy as np
import torch
from torch.nn import functional as F  # noqa: N812  (torch's own name for it)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from torch import Tensor

SMALLEST_PART = 0.5
"""Parts of a mask with a smaller share of the largest part's area are left out (not in the paper): a dot product lights
up on like pixels nearby, and specks cost 0.02 mask AP on NWPU VHR-10 and look wrong on a map."""
CELL = 4
"""Pixels per cell of mask logits."""
_MARGIN = 2  # cells around those above the level: makes a cut-out equal to upsampling everything


@dataclass(frozen=True, slots=True)
class CutOut:
    """The part of a chip around one mask."""

    corner: tuple[int, int]
    """x y of its upper-left pixel in the chip."""
    logits: Tensor
    """(h', w') at chip resolution; further away all logits are at or below the level it was cut for."""


def cut_out(logits: Tensor, shape: tuple[int, int], level: float = 0.0) -> list[CutOut | None]:
    """Upsample mask logits by four, bilinearly, only where they exceed a level.

    Args:
        logits: (N, h/4, w/4), the chip's padding included.
        shape: h, w of the chip.
        level: logits that do not exceed it anywhere around are of no interest.

    Returns:
        One per mask; None where no logit of the chip exceeds the level.
    """
    inside = logits > level
    rows, columns = (_span(inside.any(axis)) for axis in (2, 1))
    spans = torch.cat([rows, columns], 1).tolist()  # one copy from the device for all masks
    return [_cut(one, span, shape) for one, span in zip(logits, spans, strict=True)]


def _span(used: Tensor) -> Tensor:
    """First and last-plus-one True of each row of (N, L): (N, 2); (L, 0) where there is none."""
    length = used.shape[1]
    places = torch.arange(length, device=used.device)
    first = torch.where(used, places, length).amin(1)
    return torch.stack([first, torch.where(used, places + 1, 0).amax(1)], 1)


def _cut(logits: Tensor, span: Sequence[int], shape: tuple[int, int]) -> CutOut | None:
    y0, y1, x0, x1 = span
    y0, x0 = max(y0 - _MARGIN, 0), max(x0 - _MARGIN, 0)
    if y1 == 0 or CELL * y0 >= shape[0] or CELL * x0 >= shape[1]:  # nothing, or in the padding alone
        return None
    crop = logits[None, None, y0 : y1 + _MARGIN, x0 : x1 + _MARGIN]
    up = F.interpolate(crop, scale_factor=float(CELL), mode="bilinear", align_corners=False)[0, 0]
    return CutOut((CELL * x0, CELL * y0), up[: shape[0] - CELL * y0, : shape[1] - CELL * x0])


def crop_mask(logits: Tensor, valid: NDArray[np.bool_]) -> tuple[tuple[int, int, int, int], NDArray[np.bool_], float]:
    """Upsample the logits of one mask by four and cut out where they are positive, without specks.

    Args:
        logits: (h/4, w/4), the chip's padding included.
        valid: (h, w) of the chip.

    Returns:
        Box x0 y0 x1 y1 in chip pixels, the mask inside it, and the mean probability of its pixels; an empty mask has
        quality 0 and a 1 x 1 box.
    """
    h, w = valid.shape
    (cut,) = cut_out(logits.unsqueeze(0), (h, w))
    return crop_cut(cut, valid)


def crop_cut(
    cut: CutOut | None, valid: NDArray[np.bool_]
) -> tuple[tuple[int, int, int, int], NDArray[np.bool_], float]:
    """Do what :func:`crop_mask` does with a mask that is already cut out."""
    nothing = (0, 0, 1, 1), np.zeros((1, 1), np.bool_), 0.0
    if cut is None:
        return nothing
    up, (x0, y0) = cut.logits.cpu().numpy(), cut.corner
    inside = (up > 0) & valid[y0 : y0 + up.shape[0], x0 : x0 + up.shape[1]]
    if not inside.any():
        return nothing
    inside = main_parts(inside)
    box, mask = tight(inside, cut.corner)
    return box, mask, float((1 / (1 + np.exp(-up[inside]))).mean())


def crop_masks(
    logits: Sequence[Tensor], valid: NDArray[np.bool_]
) -> list[tuple[tuple[int, int, int, int], NDArray[np.bool_], float]]:
    """Do as :func:`crop_mask` with many masks; from an accelerator bits are copied, all at once, and no logits.

    Args:
        logits: N of (h/4, w/4), the chip's padding included.
        valid: (h, w) of the chip.
    """
    if not len(logits) or logits[0].device.type == "cpu":
        return [crop_mask(one, valid) for one in logits]
    return _crop_on_device(torch.stack(list(logits)), valid)


def _crop_on_device(
    logits: Tensor, valid: NDArray[np.bool_]
) -> list[tuple[tuple[int, int, int, int], NDArray[np.bool_], float]]:
    """Threshold, crop and pack masks (N, h/4, w/4) where they are, and average their probabilities there."""
    known = torch.from_numpy(valid).to(logits.device)
    cuts = [CutOut((0, 0), logits.new_zeros(1, 1)) if cut is None else cut for cut in cut_out(logits, valid.shape)]
    masks = []
    for cut in cuts:
        (x, y), (h, w) = cut.corner, cut.logits.shape
        masks.append((cut.logits > 0) & known[y : y + h, x : x + w])
    sums = [cut.logits.float().sigmoid().where(mask, 0.0).sum() for cut, mask in zip(cuts, masks, strict=True)]
    shapes = [(mask.shape[0], mask.shape[1]) for mask in masks]
    fetched = fetch_masks([pack_mask(mask) for mask in masks], shapes)
    results = []
    for cut, inside, total in zip(cuts, fetched, torch.stack(sums).tolist(), strict=True):
        if not inside.any():
            results.append(((0, 0, 1, 1), np.zeros((1, 1), np.bool_), 0.0))
            continue
        kept = main_parts(inside)
        if kept is not inside:  # specks went: their probabilities too
            there = torch.from_numpy(kept).to(logits.device)
            total = cut.logits.float().sigmoid().where(there, 0.0).sum().item()  # noqa: PLW2901
        results.append((*tight(kept, cut.corner), total / float(kept.sum())))
    return results


def tight(mask: NDArray[np.bool_], corner: tuple[int, int]) -> tuple[tuple[int, int, int, int], NDArray[np.bool_]]:
    """Cut a mask that is not empty to its box.

    Args:
        mask: (h', w').
        corner: x y of its upper-left pixel in the chip.

    Returns:
        Box x0 y0 x1 y1 half-open in chip pixels, and the mask inside it.
    """
    ys, xs = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    y0, y1, x0, x1 = int(ys[0]), int(ys[-1]) + 1, int(xs[0]), int(xs[-1]) + 1
    box = (corner[0] + x0, corner[1] + y0, corner[0] + x1, corner[1] + y1)
    return box, mask[y0:y1, x0:x1].copy()


def boxes_of(masks: Sequence[Tensor]) -> list[tuple[int, int, int, int]]:
    """Find the boxes x0 y0 x1 y1, half-open, around masks (h', w') bool of any sizes; empty ones have x1 = y1 = 0."""
    if not masks:
        return []
    spans = [torch.cat([_span(mask.any(axis).unsqueeze(0))[0] for axis in (0, 1)]) for mask in masks]
    return [(x0, y0, x1, y1) for x0, x1, y0, y1 in torch.stack(spans).tolist()]  # one copy from the device


def pack_mask(mask: Tensor) -> Tensor:
    """Pack a mask (h, w) bool eight pixels to a byte, on its device: (ceil(h w / 8),) uint8."""
    flat = mask.flatten()
    if flat.device.type == "cpu":
        return torch.from_numpy(np.packbits(flat.numpy()))
    eights = F.pad(flat, (0, -len(flat) % 8)).view(-1, 8)
    weights = torch.tensor([128, 64, 32, 16, 8, 4, 2, 1], dtype=torch.uint8, device=flat.device)
    return (eights * weights).sum(1, dtype=torch.uint8)


def fetch_masks(packed: Sequence[Tensor], shapes: Sequence[tuple[int, int]]) -> list[NDArray[np.bool_]]:
    """Copy packed masks from their device, all at once, and unpack them.

    Args:
        packed: what ``pack_mask`` gave.
        shapes: (h, w) of each mask.
    """
    if not packed:
        return []
    together = torch.cat(list(packed)).cpu().numpy()
    parts = np.split(together, np.cumsum([len(bits) for bits in packed])[:-1])
    return [
        np.unpackbits(part, count=h * w).astype(np.bool_).reshape(h, w)
        for part, (h, w) in zip(parts, shapes, strict=True)
    ]


def main_parts(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Keep the largest 8-connected part of a mask (h, w) and parts at least ``SMALLEST_PART`` its size."""
    parts, areas = _regions(mask)
    if len(areas) <= 2:  # background and one part
        return mask
    areas[0] = 0
    return np.asarray((areas >= SMALLEST_PART * areas.max())[parts])


def without_specks(mask: NDArray[np.bool_], smallest: int) -> NDArray[np.bool_]:
    """Fill small holes of a mask, then leave out its small parts; the largest part stays whatever its size.

    Source: segment-anything (commit dca509f) ``utils/amg.py``, ``remove_small_regions``, both modes.

    Args:
        mask: (h, w), not empty; beyond it there is nothing.
        smallest: 8-connected holes and parts of fewer pixels go.
    """
    margin = math.isqrt(smallest) + 1  # what surrounds the mask is never a small hole
    wide = np.pad(mask, margin)
    holes, areas = _regions(~wide)
    filled = wide | (areas < smallest)[holes] & ~wide
    parts, areas = _regions(filled)
    areas[0] = 0
    large = areas >= smallest
    large[areas.argmax()] = True
    return np.asarray(large[parts] & filled)[margin:-margin, margin:-margin]


def _regions(mask: NDArray[np.bool_]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Number the 8-connected regions of a mask, 0 = outside, and count the pixels of each."""
    _, regions, statistics, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    return np.asarray(regions, np.int32), np.asarray(statistics[:, cv2.CC_STAT_AREA], np.int32)
