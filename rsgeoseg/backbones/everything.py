"""Everything mode: ask SAM or SAM 2 at every point of a grid and keep the good, distinct masks.

Source: segment-anything (commit dca509f) ``automatic_mask_generator.py`` and ``utils/amg.py``; facebookresearch/sam2
``automatic_mask_generator.py`` is the same with another default. Same results, in another order of work: qualities are
predicted before anything is drawn, prompts without a good mask are never upscaled, the others only around the mask,
and a mask leaves the device once, as bits, if it survives. Crops are the business of the engine's chips.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torchvision.ops import nms

from rsgeoseg.backbones.build import SAM2_BACKBONES
from rsgeoseg.backbones.sam_fit import cut_masks
from rsgeoseg.backbones.sam_parts import MULTIPLE
from rsgeoseg.contract import Instances
from rsgeoseg.nn.masks import CutOut, boxes_of, fetch_masks, pack_mask, tight, without_specks

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from rsgeoseg.backbones.promptable import PromptableSam, SamScene

PROMPTS_AT_ONCE = 16
"""Prompts per call of SAM's decoder on a CPU: more at once no longer fit its caches."""
PROMPTS_AT_ONCE_ON_GPU = 128
"""Prompts per call elsewhere."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EverythingConfig:
    """What is asked and what is kept; defaults and meaning are those of ``SamAutomaticMaskGenerator``."""

    points_per_side: int = 32
    """Points of the grid along each side of a chip."""
    pred_iou: float = 0.88
    """Masks must have a higher predicted IoU; SAM 2's generator has 0.8."""
    stability: float = 0.95
    """Least IoU between the masks at thresholds ``+ stability_offset`` and ``- stability_offset``."""
    stability_offset: float = 1.0
    """Shift of the threshold, logits."""
    nms: float = 0.7
    """Box IoU above which the mask of lower predicted IoU goes."""
    min_region: int = 0
    """Holes and parts of fewer pixels are cleaned away (``min_mask_region_area``)."""
    min_area: int = 0
    """Masks of fewer pixels are left out; not in the packages."""


def default_everything(backbone: str) -> EverythingConfig:
    """Give the package's defaults for a backbone."""
    return EverythingConfig(pred_iou=0.8) if backbone in SAM2_BACKBONES else EverythingConfig()


@dataclass(frozen=True, slots=True)
class _Found:
    """Masks so far, packed on their device."""

    boxes: list[tuple[int, int, int, int]]
    """x0 y0 x1 y1 half-open in the chip."""
    packed: list[Tensor]
    """Bits of each mask inside its box."""
    quality: list[float]
    """Predicted IoU."""


def find_everything(
    network: PromptableSam, scene: SamScene, valid: NDArray[np.bool_], config: EverythingConfig
) -> Instances:
    """Find everything in one chip.

    Args:
        network: in evaluation mode.
        scene: of one image: ``scene.one(i)``.
        valid: (h, w) of the chip; points without data are not asked, masks do not cover them.
        config: what is asked and what is kept.

    Returns:
        Instances of label 0, best predicted IoU first; scores are the predicted IoU within [0, 1].
    """
    found = _Found([], [], [])
    known = torch.from_numpy(valid).to(scene.device)
    at_once = PROMPTS_AT_ONCE if scene.device.type == "cpu" else PROMPTS_AT_ONCE_ON_GPU
    for points in torch.split(point_grid(valid, config.points_per_side).to(scene.device), at_once):
        logits, quality = _ask(network, scene, points, config)
        if len(logits):
            cuts = cut_masks(logits, (valid.shape[0], valid.shape[1]), scene.fit, -config.stability_offset)
            _keep(found, cuts, quality.tolist(), known, config)
    kept = _distinct(found.boxes, found.quality, config.nms)
    shapes = [(found.boxes[i][3] - found.boxes[i][1], found.boxes[i][2] - found.boxes[i][0]) for i in kept]
    masks = fetch_masks([found.packed[i] for i in kept], shapes)
    return _instances([found.boxes[i] for i in kept], masks, [found.quality[i] for i in kept], config)


def point_grid(valid: NDArray[np.bool_], per_side: int) -> Tensor:
    """Spread points evenly over a chip: (P, 2) float32 x y pixels, row by row, without those on invalid pixels."""
    height, width = valid.shape
    places = (np.arange(per_side) + 0.5) / per_side
    xs, ys = (grid.ravel() for grid in np.meshgrid(places * width, places * height))
    known = valid[ys.astype(int), xs.astype(int)]
    return torch.from_numpy(np.stack([xs, ys], -1)[known].astype(np.float32))


def _ask(network: PromptableSam, scene: SamScene, points: Tensor, config: EverythingConfig) -> tuple[Tensor, Tensor]:
    """Masks of points (P, 2) that promise enough: logits (N, H/4, W/4) float32 and predicted IoU (N,)."""
    image = torch.zeros(len(points), dtype=torch.int64, device=points.device)
    attended = network.attend(scene, image, points=points.unsqueeze(1), point_labels=torch.ones_like(image)[:, None])
    quality = network.sam.qualities(attended.tokens)[:, MULTIPLE]
    prompt, which = (quality > config.pred_iou).nonzero(as_tuple=True)
    if not len(prompt):
        return quality.new_zeros(0, 1, 1), quality.new_zeros(0)
    drawn, place = torch.unique(prompt, return_inverse=True)
    logits = network.sam.masks(attended.at(drawn), MULTIPLE)[place, which]
    return logits.float(), quality[prompt, which]


def _keep(
    found: _Found,
    cuts: Sequence[CutOut | None],
    quality: Sequence[float],
    valid: Tensor,
    config: EverythingConfig,
) -> None:
    """Add the stable ones of some masks."""
    some = [(cut, score) for cut, score in zip(cuts, quality, strict=True) if cut is not None]
    stable = _stable([cut.logits for cut, _ in some], config)
    corners, masks, scores = [], [], []
    for (cut, score), good in zip(some, stable, strict=True):
        if good:
            (x, y), (height, width) = cut.corner, cut.logits.shape
            corners.append((x, y))
            masks.append((cut.logits > 0) & valid[y : y + height, x : x + width])
            scores.append(score)
    for (x, y), mask, score, (x0, y0, x1, y1) in zip(corners, masks, scores, boxes_of(masks), strict=True):
        if x1:
            found.boxes.append((x + x0, y + y0, x + x1, y + y1))
            found.packed.append(pack_mask(mask[y0:y1, x0:x1]))
            found.quality.append(score)


def _stable(logits: Sequence[Tensor], config: EverythingConfig) -> list[bool]:
    """Tell which masks hardly change when the threshold moves; an empty one is not stable."""
    if not logits:
        return []
    counts = [torch.stack([(x > sign * config.stability_offset).sum() for sign in (1, -1)]) for x in logits]
    inside, around = torch.stack(counts).float().T
    stable: list[bool] = (inside / around >= config.stability).tolist()
    return stable


def _distinct(boxes: Sequence[tuple[int, ...]], quality: Sequence[float], threshold: float) -> list[int]:
    """Keep the best of boxes that overlap, best first; as in the packages a box ends at its last pixel's index."""
    corners = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4) - torch.tensor([0.0, 0.0, 1.0, 1.0])
    kept: list[int] = nms(corners, torch.tensor(quality, dtype=torch.float32), threshold).tolist()
    return kept


def _instances(
    boxes: list[tuple[int, int, int, int]],
    masks: list[NDArray[np.bool_]],
    quality: list[float],
    config: EverythingConfig,
) -> Instances:
    if config.min_region:
        boxes, masks, quality = _cleaned(boxes, masks, quality, config)
    large = [i for i, mask in enumerate(masks) if mask.sum() >= config.min_area]
    return Instances(
        boxes=np.array([boxes[i] for i in large], np.int32).reshape(-1, 4),
        masks=[masks[i] for i in large],
        scores=np.array([quality[i] for i in large], np.float32).clip(0, 1),
        labels=np.zeros(len(large), np.int64),
    )


def _cleaned(
    boxes: list[tuple[int, int, int, int]],
    masks: list[NDArray[np.bool_]],
    quality: list[float],
    config: EverythingConfig,
) -> tuple[list[tuple[int, int, int, int]], list[NDArray[np.bool_]], list[float]]:
    """Clean masks, and leave out those that now overlap, the changed ones first (``postprocess_small_regions``)."""
    clean = [tight(without_specks(mask, config.min_region), box[:2]) for box, mask in zip(boxes, masks, strict=True)]
    same = [float(mask.shape == old.shape and (mask == old).all()) for (_, mask), old in zip(clean, masks, strict=True)]
    kept = sorted(_distinct([box for box, _ in clean], same, config.nms))
    return [clean[i][0] for i in kept], [clean[i][1] for i in kept], [quality[i] for i in kept]
